"""Rows and agreements between two processes; the launcher's exit status; FSDP2 equals one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from utils.distributed import expand_hosts, gather_objects, gather_rows, row_counts, slurm_nodes

ROOT = Path(__file__).resolve().parent.parent.parent

# Each process has rank + 1 rows; its loss weighs the gathered rows with (rank + 1) * (0, 1, 2, ...).
PROGRAM = """
import json, sys, time, torch
from utils import distributed as d
d.setup(torch.device("cpu"))
r = d.rank()
if len(sys.argv) > 2:
    time.sleep(float(sys.argv[2]))
    sys.exit(int(sys.argv[1]) if r == 1 else 0)
found = {}
for gradient in ("exact", "local_slice", "none"):
    x = (10.0 * r + torch.arange(r + 1.0))[:, None].requires_grad_()
    rows = d.gather_rows(x, gradient)
    found[gradient] = {"rows": rows.flatten().tolist(), "grad": None}
    if rows.requires_grad:
        (rows.flatten() * torch.arange(3.0) * (r + 1)).sum().backward()
        found[gradient]["grad"] = x.grad.flatten().tolist()
found["empty"] = d.gather_rows(torch.ones(r, 2, dtype=torch.int64), "none").shape[0]
found["votes"] = [d.any_true(r == 1), d.all_agree(r == 1), d.all_agree(True), d.any_true(False)]
found["objects"] = d.gather_objects({"rank": r})
found["sum"] = d.all_reduce_sum(torch.tensor(r + 1.0)).item()
found["counts"] = d.row_counts(r + 5)
found["first"] = d.broadcast_object(f"from {r}")
open(f"{sys.argv[1]}.{r}", "w").write(json.dumps(found))
d.shutdown()
"""
LAUNCH = "import sys; from utils.distributed import launch; sys.exit(launch(sys.argv[1:], nproc=2))"


def start(tmp_path: Path, *argv: str) -> subprocess.Popen:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LAUNCH, str(tmp_path / "program.py"), *argv]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def test_two_processes_gather_rows_with_each_kind_of_gradient_and_agree(tmp_path: Path) -> None:
    assert start(tmp_path, str(tmp_path / "found")).wait(timeout=120) == 0
    found = [json.loads((tmp_path / f"found.{rank}").read_text()) for rank in (0, 1)]
    for each in found:
        assert all(each[kind]["rows"] == [0, 10, 11] for kind in ("exact", "local_slice", "none"))
        assert each["votes"] == [True, False, True, False]
        assert (each["sum"], each["counts"], each["first"], each["empty"]) == (3, [5, 6], "from 0", 1)
        assert each["objects"] == [{"rank": 0}, {"rank": 1}]
        assert each["none"]["grad"] is None
    assert [each["exact"]["grad"] for each in found] == [[0], [3, 6]]  # weights 1 + 2 of both losses
    assert [each["local_slice"]["grad"] for each in found] == [[0], [2, 4]]  # of the own loss only


def test_the_status_of_a_failed_process_comes_back(tmp_path: Path) -> None:
    assert start(tmp_path, "7", "0").wait(timeout=120) == 7


def test_a_signal_to_the_launcher_reaches_the_processes_and_gives_75(tmp_path: Path) -> None:
    process = start(tmp_path, "0", "60")
    time.sleep(8)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75


def test_one_process_needs_no_group() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(x) is x and not gather_rows(x, "none").requires_grad
    assert row_counts(3) == [3] and gather_objects("a") == ["a"]


def train(output_dir: Path, **settings) -> dict[str, torch.Tensor]:
    settings = {"output_dir": str(output_dir), **settings, "optim": {"lr": 0.01}}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/toy_run.py"), json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=200, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(output_dir / "checkpoints/last/model.safetensors")


@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_does(tmp_path: Path, wrap: str) -> None:
    settings = {"dropout": 0.0, "train": {"epochs": 1, "accumulate": 2, "clip_norm": 0.5}}
    one = train(tmp_path / "one", **settings)
    settings["train"]["wrap"] = wrap
    two = train(tmp_path / "two", **settings, nproc=2)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_a_sharded_run_that_stopped_ends_as_one_that_did_not(tmp_path: Path) -> None:
    settings = {"nproc": 2, "train": {"wrap": "fsdp2", "epochs": 2, "eval_every_epochs": 0}}
    whole = train(tmp_path / "whole", **settings)
    settings["train"]["keep_checkpoints"] = 9
    train(tmp_path / "cut", **settings)
    cut = tmp_path / "cut/checkpoints"
    for step in (16, 14, 12, 10):
        (cut / str(step) / "manifest.json").unlink()
    again = train(tmp_path / "cut", **settings)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_slurm_variables_name_the_machines() -> None:
    nodes = slurm_nodes({"SLURM_JOB_NODELIST": "gpu[09-11,20],login", "SLURM_NODEID": "2"})
    assert (nodes.nnodes, nodes.node_rank, nodes.master_addr) == (5, 2, "gpu09")
    assert expand_hosts("a1,b[2-3]-x") == ["a1", "b2-x", "b3-x"]
    assert slurm_nodes({}) is None
