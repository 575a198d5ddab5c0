"""State-dict layouts as tables: which foreign keys make up each of our keys, applied in both directions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """Our key and the foreign keys whose rows, one below the other, it holds."""

    ours: str
    theirs: tuple[str, ...]


@dataclass
class Translation:
    """Our state; foreign keys that were missing; foreign keys left out, each with the reason; ours that stay fresh."""

    state: State
    missing: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


def with_weight_and_bias(ours: str, *theirs: str) -> list[Entry]:
    """Entries for `.weight` and `.bias` of a module."""
    return [Entry(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs)) for kind in ("weight", "bias")]


def to_ours(state: State, entries: Iterable[Entry]) -> tuple[State, list[str], list[str]]:
    """Our state, the foreign keys that are missing, and the foreign keys that no entry names."""
    ours, missing, used = {}, [], set()
    for entry in entries:
        absent = [name for name in entry.theirs if name not in state]
        missing += absent
        used.update(entry.theirs)
        if not absent:
            parts = [state[name] for name in entry.theirs]
            value = torch.cat(parts) if len(parts) > 1 else parts[0]
            if entry.ours in ours and not torch.equal(value, ours[entry.ours]):
                raise ValueError(f"{', '.join(entry.theirs)}: not equal to the other copy of what must be one weight")
            ours[entry.ours] = value
    return ours, missing, [name for name in state if name not in used]


def to_theirs(state: State, entries: Iterable[Entry]) -> State:
    """The foreign state of everything that ours holds; rows are split evenly among the foreign keys."""
    theirs: State = {}
    for entry in entries:
        if entry.ours in state:
            parts = state[entry.ours].chunk(len(entry.theirs)) if len(entry.theirs) > 1 else [state[entry.ours]]
            theirs.update(zip(entry.theirs, (part.contiguous() for part in parts), strict=True))
    return theirs
