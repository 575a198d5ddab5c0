"""Functions and commands on several gloo processes, forked by a server that has imported everything once."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import run
from utils import distributed

PRELOADED = ["run", "rosetta", "trainer", "tasks.image_text", "tasks.prepare", "tests.parity.runners.common"]


def run_on_ranks(function: Callable, num_ranks: int, *arguments: Any) -> None:
    """Run function(rank, *arguments) in one process group; an assertion on any rank fails the caller."""
    start_ranks(_in_group, num_ranks, function, arguments)


def run_commands(commands: Sequence[Sequence[str]], folder: Path, num_ranks: int = 2) -> None:
    """Give commands, the words after `run.py`, one after the other in a folder to processes that a launcher started."""
    start_ranks(_give_commands, num_ranks, commands, str(folder), free_ports(len(commands)))


def start_ranks(function: Callable, num_ranks: int, *arguments: Any) -> None:
    """Run function(rank, *arguments) in processes that know their rank and where to meet."""
    with importable():
        multiprocessing.set_forkserver_preload(PRELOADED)
        multiprocessing.forkserver.ensure_running()
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0], "WORLD_SIZE": str(num_ranks)}
    work = pickle.dumps((function, arguments))  # as bytes: the server takes few shared tensors
    mp.start_processes(_rank_main, (environment, work), nprocs=num_ranks, start_method="forkserver")


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Let the server find the repository, wherever the test stands."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(run.ROOT), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


def _rank_main(rank: int, environment: dict[str, str], work: bytes) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    function, arguments = pickle.loads(work)
    function(rank, *arguments)


def _in_group(rank: int, function: Callable, arguments: tuple) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    try:
        function(rank, *arguments)
    finally:
        distributed.shutdown()


def _give_commands(rank: int, commands: Sequence[Sequence[str]], folder: str, ports: list[str]) -> None:
    os.chdir(folder)
    for words, port in zip(commands, ports, strict=True):
        os.environ["MASTER_PORT"] = port  # every run meets anew
        assert run.main(list(words)) == 0, " ".join(words)
