"""`--dist`, `--device` and their kin: how many processes a command asks for, and on which devices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from utils.config import ConfigError

ALLOWED_DIST = "1, all, f4, l4, gpuN (N = number of the GPU)"


@dataclass(frozen=True)
class Processes:
    """What to start on this machine. `devices` are GPU numbers, None = all visible ones or the CPU."""

    nproc: int = 1
    devices: tuple[int, ...] | None = None
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    port: int | None = None
    notice: str = ""

    @property
    def are_many(self) -> bool:
        return self.nproc * self.nnodes > 1


def choose_processes(
    *,
    dist: str | None,
    device: str | None,
    nproc: int | None,
    nodes: Processes,
    visible: list[int],
) -> Processes:
    """The processes for `--dist` and `--device`; `nodes` holds the machines, `visible` the GPUs of this one."""
    devices = _parse_device(device) if device else None
    chosen = _dist_devices(dist)
    if chosen and devices:
        raise ConfigError(f"command line: --dist {dist} and --device {device} both choose GPUs; give one of them")
    devices = chosen or devices
    if nproc is not None and nproc < 1:
        raise ConfigError(f"command line: --nproc must be at least 1, found {nproc}")
    if devices and not visible:
        # The same commands run where there is no GPU; the words tell that it is not what was asked for.
        asked = f"--dist {dist}" if chosen else f"--device {device}"
        notice = f"{asked} asks for GPUs and none is visible: running on the CPU"
        return replace(nodes, nproc=nproc or 1, devices=None, notice=notice)
    absent = [number for number in devices or () if number not in visible]
    if absent:
        raise ConfigError(f"command line: GPU {absent[0]} is not here; visible: {', '.join(map(str, visible))}")
    if dist is None and nproc is None:
        return replace(nodes, nproc=1, devices=devices)
    count = nproc or len(devices or visible) or 1
    available = len(devices or visible)
    if available and count > available:
        raise ConfigError(f"command line: --nproc {count} is more than the {available} GPUs to use")
    return replace(nodes, nproc=count, devices=devices)


def choose_nodes(
    *,
    dist: str | None,
    nnodes: int | None,
    node_rank: int | None,
    master_addr: str | None,
    port: int | None,
    environment: Mapping[str, str],
    slurm: tuple[int, int, str] | None,
) -> Processes:
    """The machines of a run: one, or for `--dist all` those that flags, variables or SLURM (count, own, first) name."""
    if port is not None and not 0 < port < 65536:
        raise ConfigError(f"command line: --port must be in 1 ... 65535, found {port}")
    if dist != "all" and (nnodes or 1) == 1:
        return Processes(port=port)
    slurm_nnodes, slurm_rank, slurm_addr = slurm or (1, 0, "")
    count = nnodes or _number(environment, "NNODES") or slurm_nnodes
    rank = node_rank if node_rank is not None else _number(environment, "NODE_RANK")
    rank = slurm_rank if rank is None else rank
    address = master_addr or environment.get("MASTER_ADDR") or slurm_addr
    port = port or _number(environment, "MASTER_PORT")
    if count < 1 or not 0 <= rank < count:
        raise ConfigError(f"command line: --node_rank {rank} does not fit --nnodes {count}; allowed: 0 ... {count - 1}")
    if count > 1 and not address:
        raise ConfigError(f"command line: --nnodes {count} needs --master_addr, the name of the first machine")
    return Processes(nnodes=count, node_rank=rank, master_addr=address or "127.0.0.1", port=port)


def _dist_devices(dist: str | None) -> tuple[int, ...] | None:
    """The GPUs that a value of --dist names; None where it names none."""
    if dist in (None, "1", "all"):
        return None
    if dist in ("f4", "l4"):
        return (0, 1, 2, 3) if dist == "f4" else (4, 5, 6, 7)
    if re.fullmatch(r"gpu\d+", dist):
        return (int(dist[3:]),)
    raise ConfigError(f"command line: unknown --dist '{dist}'; allowed: {ALLOWED_DIST}")


def _parse_device(device: str) -> tuple[int, ...]:
    """`0,2,3` -> (0, 2, 3); `c4` -> (0, 1, 2, 3)."""
    text = device.strip()
    if re.fullmatch(r"c[1-9]\d*", text):
        return tuple(range(int(text[1:])))
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
        raise ConfigError(
            f"command line: --device '{device}' is not understood; allowed: numbers as 0,2,3 or cN (0 ... N-1)"
        )
    numbers = tuple(int(number) for number in text.split(","))
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"command line: --device '{device}' names a GPU twice")
    return numbers


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if text and not text.isdecimal():
        raise ConfigError(f"environment: {name} must be a whole number, found '{text}'")
    return int(text) if text else None
