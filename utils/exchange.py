"""Rows that lie on other processes: who wants which, and their way there and - for gradients - back.

Only the rows that are asked for travel. Rows are numbered over all processes, in rank order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.distributed import rank, world_size


@dataclass
class Order:
    """What this process takes from others and gives to them.

    foreign: the numbers that it takes, ascending, so that they are sorted by owner; given: for every rank the own rows
    that it wants; taken: how many rows come from every rank.
    """

    foreign: Tensor
    given: list[Tensor]
    taken: list[int]


def all_lists(values: Tensor) -> list[Tensor]:
    """A list of whole numbers (n,) of every process, in rank order, exchanged over the host; the n may differ."""
    if world_size() == 1:
        return [values]
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(values)]))
    padded = torch.zeros(max(map(int, sizes)), dtype=torch.int64)
    padded[: len(values)] = values
    lists = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(lists, padded)
    return [part[: int(size)] for part, size in zip(lists, sizes, strict=True)]


def order_rows(wanted: Tensor, counts: list[int]) -> Order:
    """What `wanted` (n,) row numbers, known to the host, come to when every process holds counts[r] rows."""
    starts = [0, *itertools.accumulate(counts)]
    first, last = starts[rank()], starts[rank() + 1]
    wanted = wanted.unique()
    foreign = wanted[(wanted < first) | (wanted >= last)]
    given = []
    for other in all_lists(foreign):
        given.append(other[(other >= first) & (other < last)] - first)
    taken = [int(((foreign >= low) & (foreign < high)).sum()) for low, high in itertools.pairwise(starts)]
    return Order(foreign, given, taken)


def place_in_pool(numbers: Tensor, order: Order, counts: list[int]) -> Tensor:
    """Where rows lie once the foreign ones are put behind the own ones: (n,) for `numbers` (n,) on the host."""
    first = sum(counts[: rank()])
    is_own = (numbers >= first) & (numbers < first + counts[rank()])
    return torch.where(is_own, numbers - first, counts[rank()] + torch.searchsorted(order.foreign, numbers))


def exchange(x: Tensor, given: list[int], taken: list[int]) -> Tensor:
    """Rows x (sum of given, ...), those for rank 0 first, for the rows that others send: (sum of taken, ...).

    Gradients take the way back and are added up where the rows came from.
    """
    return _Exchange.apply(x, given, taken)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, given: list[int], taken: list[int]) -> Tensor:
        ctx.given, ctx.taken = given, taken
        return _all_to_all(x, given, taken)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _all_to_all(gradient, ctx.taken, ctx.given), None, None


def _all_to_all(x: Tensor, given: list[int], taken: list[int]) -> Tensor:
    received = x.new_empty(sum(taken), *x.shape[1:])
    dist.all_to_all_single(received, x.contiguous(), taken, given)
    return received
