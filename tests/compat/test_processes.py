import pytest

from compat.processes import Processes, choose_nodes, choose_processes
from utils.config import ConfigError


def choose(dist=None, device=None, nproc=None, visible=range(8)):
    return choose_processes(dist=dist, device=device, nproc=nproc, nodes=Processes(), visible=list(visible))


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({}, (1, None)),
        ({"dist": "1"}, (8, None)),
        ({"dist": "all"}, (8, None)),
        ({"dist": "f4"}, (4, (0, 1, 2, 3))),
        ({"dist": "l4"}, (4, (4, 5, 6, 7))),
        ({"dist": "gpu5"}, (1, (5,))),
        ({"dist": "1", "device": "0,2,3"}, (3, (0, 2, 3))),
        ({"dist": "1", "device": "c4"}, (4, (0, 1, 2, 3))),
        ({"device": "2"}, (1, (2,))),
        ({"nproc": 2}, (2, None)),
        ({"dist": "f4", "nproc": 2}, (2, (0, 1, 2, 3))),
    ],
)
def test_dist_and_device_choose_processes_and_gpus(flags, expected):
    chosen = choose(**flags)
    assert (chosen.nproc, chosen.devices) == expected


@pytest.mark.parametrize("flags, nproc", [({"dist": "1"}, 1), ({"dist": "1", "nproc": 2}, 2), ({}, 1)])
def test_without_gpus_processes_are_as_many_as_asked_for(flags, nproc):
    assert choose(**flags, visible=[]) == Processes(nproc=nproc)


def test_gpus_that_are_asked_for_where_there_is_none_are_reported():
    chosen = choose(dist="1", device="c4", visible=[])
    assert chosen.nproc == 1 and chosen.notice == "--device c4 asks for GPUs and none is visible: running on the CPU"


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"dist": "2"}, "unknown --dist '2'; allowed: 1, all, f4, l4, gpuN"),
        ({"dist": "gpu9"}, "GPU 9 is not here; visible: 0, 1, 2, 3, 4, 5, 6, 7"),
        ({"dist": "f4", "device": "0"}, "both choose GPUs"),
        ({"device": "a"}, "--device 'a' is not understood"),
        ({"device": "1,1"}, "names a GPU twice"),
        ({"nproc": 0}, "--nproc must be at least 1, found 0"),
        ({"nproc": 9, "dist": "1"}, "--nproc 9 is more than the 8 GPUs to use"),
    ],
)
def test_wrong_processes_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        choose(**flags)


def nodes(dist="all", environment=None, slurm=None, **flags):
    given = {"nnodes": None, "node_rank": None, "master_addr": None, "port": None, **flags}
    return choose_nodes(dist=dist, environment=environment or {}, slurm=slurm, **given)


def test_flags_go_before_variables_and_those_before_slurm():
    variables = {"NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "var", "MASTER_PORT": "7000"}
    slurm = (3, 1, "slurm")
    got = nodes(environment=variables, slurm=slurm, master_addr="flag", port=8000)
    assert got == Processes(nnodes=4, node_rank=2, master_addr="flag", port=8000)
    assert nodes(environment=variables, slurm=slurm) == Processes(nnodes=4, node_rank=2, master_addr="var", port=7000)
    assert nodes(slurm=slurm) == Processes(nnodes=3, node_rank=1, master_addr="slurm")


def test_one_machine_ignores_the_variables_of_many():
    assert nodes(dist="1", environment={"NNODES": "4", "NODE_RANK": "2"}) == Processes()


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"nnodes": 2, "node_rank": 2, "master_addr": "a"}, "--node_rank 2 does not fit --nnodes 2; allowed: 0 ... 1"),
        ({"nnodes": 2}, "--nnodes 2 needs --master_addr"),
        ({"port": 70000}, "--port must be in 1 ... 65535, found 70000"),
        ({"environment": {"NNODES": "two"}}, "NNODES must be a whole number, found 'two'"),
    ],
)
def test_wrong_nodes_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        nodes(**flags)
