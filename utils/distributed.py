"""Processes and what travels between them: rank, host agreements, gathered rows with their gradient, and the launcher.

Groups are made with gloo for host tensors and nccl for device tensors, so integers and flags never touch a device.
With one process no group exists and every function here is the identity. The nccl side has not been run on GPUs yet.
"""

import ctypes
import os
import re
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

Gradient = Literal["exact", "local_slice", "none"]
STOPPED_STATUS = 75  # exit status of a run that saved and left because of a signal: start it again to continue


def world_size() -> int:
    """Number of processes in the group; 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in the group; 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """True on the one process that writes files and logs."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has arrived, on the host."""
    any_true(False)


def device_for_rank(kind: str = "auto") -> torch.device:
    """The device of this process: `cpu`, `cuda` (one per local rank), or `auto` (cuda where there is one)."""
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(kind)


def end_with_launcher() -> None:
    """Let this worker be killed when its launcher dies: one that lived on would write beside the run that continues.

    Does nothing outside torchrun and on systems other than Linux.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or not sys.platform.startswith("linux"):
        return
    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() == 1:  # the launcher was gone before the request
        os.kill(os.getpid(), signal.SIGKILL)


def setup(device: torch.device, *, timeout_seconds: int = 1800) -> bool:
    """Join the process group that the launcher describes in the environment; whether there is one, not joined yet."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return False
    end_with_launcher()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    return True


def shutdown(*, is_joint: bool = True) -> None:
    """Leave the process group, all processes together unless this one is leaving because of an error.

    A process that took its connections down while others still used theirs made gloo abort one of them now and then.
    """
    if not dist.is_initialized():
        return
    if is_joint and sys.exc_info()[0] in (None, SystemExit):
        dist.barrier()
    dist.destroy_process_group()


def all_agree(flag: bool) -> bool:
    """True where every process says True."""
    return not any_true(not flag)


def any_true(flag: bool) -> bool:
    """True where at least one process says True; travels over the host."""
    if world_size() == 1:
        return flag
    votes = torch.tensor([int(flag)])
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes.item())


def gather_objects(value: Any) -> list[Any]:
    """What every process passed, in rank order, on every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_objects_on_main(value: Any) -> list[Any]:
    """What every process passed, in rank order, on process 0; nothing on the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def broadcast_object(value: Any) -> Any:
    """What process 0 passed."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum of x over the processes, without gradient; x itself is left alone."""
    total = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


_GROUPS: dict[tuple[int, int], dist.ProcessGroup] = {}


def rank_group(size: int) -> dist.ProcessGroup | None:
    """The group of `size` neighbouring processes that this one belongs to; None, all of them, for size 0.

    Called by all processes in the same order. The number of processes must be a multiple of the size.
    """
    ranks = world_size()
    if size in (0, ranks) or ranks == 1:
        return None
    if ranks % size:
        raise ValueError(f"{ranks} processes cannot be cut into groups of {size}")
    if id(dist.group.WORLD) not in {world for world, _ in _GROUPS}:  # the groups of an earlier world are gone with it
        _GROUPS.clear()
    key = id(dist.group.WORLD), size
    if key not in _GROUPS:
        groups = [dist.new_group(list(range(start, start + size))) for start in range(0, ranks, size)]
        _GROUPS[key] = groups[rank() // size]
    return _GROUPS[key]


def row_counts(num_rows: int, group: dist.ProcessGroup | None = None) -> list[int]:
    """Rows that every process holds, in rank order, exchanged over the host."""
    if world_size() == 1:
        return [num_rows]
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, torch.tensor([num_rows]), group=group)
    return [int(count) for count in counts]


def gather_rows(
    x: Tensor,
    gradient: Gradient = "exact",
    counts: list[int] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Rows of all processes in rank order: (n, ...) -> (sum of n, ...); the n may differ.

    gradient says what comes back to this process's rows: `exact` the sum over processes of the gradients of its rows,
    `local_slice` only what this process's own loss says of its own rows (as the published systems do), `none` nothing.
    Pass `counts` from `row_counts` where several tensors have the same rows, to exchange them once. With a `group` from
    `rank_group` the rows of that group only.
    """
    if world_size() == 1:
        return x.detach() if gradient == "none" else x
    counts = row_counts(x.shape[0], group) if counts is None else counts
    if gradient == "none":
        return _all_gather(x.detach(), counts, group)
    return _GatherRows.apply(x, counts, gradient == "exact", group)


def _all_gather(x: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
    most = max(counts)
    padded = x.contiguous()
    if x.shape[0] < most:  # collectives want equal shapes
        padded = torch.cat([x, x.new_zeros(most - x.shape[0], *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], is_summed: bool, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        ctx.start = sum(counts[: dist.get_rank(group)])
        ctx.num_rows = x.shape[0]
        ctx.is_summed = is_summed
        return _all_gather(x, counts, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.is_summed:
            grad = grad.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(grad, group=ctx.group)
        return grad[ctx.start : ctx.start + ctx.num_rows], None, None, None


@dataclass
class Nodes:
    """Machines that take part in one run, as the launcher needs to know them."""

    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"


def slurm_nodes(environment: dict[str, str]) -> Nodes | None:
    """The machines of the SLURM job that this process runs in (one launcher per machine); None outside of SLURM."""
    if "SLURM_JOB_NODELIST" not in environment:
        return None
    hosts = expand_hosts(environment["SLURM_JOB_NODELIST"])
    return Nodes(len(hosts), int(environment.get("SLURM_NODEID", "0")), hosts[0])


def expand_hosts(nodelist: str) -> list[str]:
    """`gpu[01-02,7],login` -> gpu01, gpu02, gpu7, login."""
    hosts = []
    for name, ranges, tail in re.findall(r"([^,\[\]]+)(?:\[([^\]]+)\])?([^,]*)", nodelist):
        for part in ranges.split(",") if ranges else [""]:
            first, _, last = part.partition("-")
            if not last:
                hosts.append(name + first + tail)
                continue
            hosts += [f"{name}{number:0{len(first)}d}{tail}" for number in range(int(first), int(last) + 1)]
    return hosts


def launch(
    argv: list[str],
    *,
    nproc: int,
    nnodes: int = 1,
    node_rank: int = 0,
    master_addr: str = "127.0.0.1",
    port: int | None = None,
) -> int:
    """Run the program `argv` (script, then its arguments) as nproc processes on this machine; the exit status.

    The status is 0 where all ended well, else the first failed process's (128 + signal where a signal ended it), and
    STOPPED_STATUS where the launcher itself was asked to stop and passed that on. Without a port a free one is taken.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    # Threads of the processes would fight for the cores; torchrun's own answer, one thread each, leaves cores idle.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    if nnodes == 1 and port is None:
        place = ["--standalone", "--local-addr=127.0.0.1"]
    else:
        place = [f"--node-rank={node_rank}", f"--master-addr={master_addr}", f"--master-port={port or 29500}"]
    flags = [f"--nnodes={nnodes}", f"--nproc-per-node={nproc}", "--max-restarts=0", *place]
    try:
        run(get_args_parser().parse_args([*flags, "--", *argv]))
    except ChildFailedError as error:
        exit_code = error.get_first_failure()[1].exitcode
        return exit_code if exit_code >= 0 else 128 - exit_code
    except SignalException:
        return STOPPED_STATUS
    return 0
