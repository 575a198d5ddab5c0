"""Ragged texts as one matrix of real tokens: which row belongs to which text, and which text meets which image.

Letters: R rows of a packed matrix (R = sum of the lengths), T texts, L text tokens, M images, N image tokens, Q query
slots of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Texts of one length, contiguous in the packed matrix: rows [start, start + count * length)."""

    start: int
    first_text: int
    count: int
    length: int


@dataclass(frozen=True)
class Packing:
    """Texts without padding: `order[p]` is the text that lies at packed place p, places are sorted by length.

    first_row (T,) is the row of the first token of each text, in the caller's order of texts. `length` (T,) repeats
    the real lengths on the device. `key_mask` (T, L) bool, by packed place, is set only where the lengths are unknown
    to the host (texts chosen on an accelerator): then every text takes L rows and the mask says which are real.
    """

    lengths: Sequence[int]
    order: Tensor
    groups: tuple[Group, ...]
    first_row: Tensor
    length: Tensor
    key_mask: Tensor | None = None

    @property
    def num_texts(self) -> int:
        return len(self.lengths)

    @property
    def num_rows(self) -> int:
        last = self.groups[-1]
        return last.start + last.count * last.length

    @property
    def is_uniform(self) -> bool:
        """Whether all texts have one length that the host knows; image tokens are packed so."""
        return len(self.groups) == 1 and self.key_mask is None

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """The rows x (R or more, ...) of each group as a view.

        One split, not a slice per group: the backward of a slice fills a whole matrix with zeros.
        """
        sizes = [group.count * group.length for group in self.groups]
        return x.split([*sizes, len(x) - sum(sizes)])[:-1]


# In bf16 a CPU compiles a matrix product for every new number of rows: 5 ms where a known one of 4,000 rows takes 0.5
# ms.
ROW_QUANTUM = 128


def num_spare_rows(num_rows: int, device: torch.device) -> int:
    """Rows to add behind the real ones so that shapes recur; nothing reads them. 0 where shapes cost nothing."""
    if device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return 0
    return -num_rows % ROW_QUANTUM


def with_spare_rows(index: Tensor) -> Tensor:
    """Row numbers index (P,) with as many repeats of row 0 behind them as `num_spare_rows` says: (P + spare,)."""
    return F.pad(index, (0, num_spare_rows(len(index), index.device)))


def pack(lengths: Sequence[int], device: torch.device | str = "cpu") -> Packing:
    """Packing of texts whose lengths the host knows; raises ValueError on an empty list or an empty text."""
    if not len(lengths) or min(lengths) < 1:
        raise ValueError(
            f"every text needs at least one token; found {len(lengths)} texts, shortest {min(lengths, default=0)}"
        )
    array = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(array, kind="stable")
    sorted_lengths = array[order]
    starts = np.concatenate([[0], np.cumsum(sorted_lengths)[:-1]])
    first_row = np.empty_like(starts)
    first_row[order] = starts
    boundaries = np.flatnonzero(np.diff(sorted_lengths, prepend=-1))
    counts = np.diff(boundaries, append=len(array))
    groups = tuple(
        Group(int(starts[b]), int(b), int(c), int(sorted_lengths[b])) for b, c in zip(boundaries, counts, strict=True)
    )
    to_device = lambda values: torch.from_numpy(values).to(device, non_blocking=True)  # noqa: E731
    return Packing(array.tolist(), to_device(order), groups, to_device(first_row), to_device(array))


def pack_uniform(length: Tensor, longest: int) -> Packing:
    """Packing of texts (T,) whose real lengths only the device knows: `longest` rows each, padding masked, nothing
    copied to the host.
    """
    num_texts = length.shape[0]
    order = torch.arange(num_texts, device=length.device)
    key_mask = torch.arange(longest, device=length.device)[None, :] < length[:, None]  # (T, L)
    group = Group(0, 0, num_texts, longest)
    return Packing([longest] * num_texts, order, (group,), order * longest, length, key_mask)


def join_packings(packings: Sequence[Packing]) -> tuple[Packing, Tensor]:
    """Packing of all texts of several packings, one after the other, and the rows (R,) of their stacked matrices it
    consists of.
    """
    offsets = np.cumsum([0] + [packing.num_rows for packing in packings])
    first = torch.cat([packing.first_row + int(offset) for packing, offset in zip(packings, offsets[:-1], strict=True)])
    joined = pack([length for packing in packings for length in packing.lengths], first.device)
    return joined, _rows_from(first[joined.order], joined.groups)


def pack_stacked(lengths: Sequence[int], device: torch.device | str = "cpu") -> tuple[Packing, Tensor]:
    """Packing of texts that lie one below the other in the caller's order, and the rows (R,) of that matrix it
    consists of.
    """
    packing = pack(lengths, device)
    starts = packing.length.cumsum(0) - packing.length
    return packing, _rows_from(starts[packing.order], packing.groups)


def stacked_rows(first: Tensor, lengths: Sequence[int]) -> Tensor:
    """Rows of texts that begin at first (n,) and have these lengths, one text below the other: (R,)."""
    length = torch.as_tensor(lengths, device=first.device)
    start = length.cumsum(0) - length
    total = int(sum(lengths))
    return torch.repeat_interleave(first - start, length, output_size=total) + torch.arange(total, device=first.device)


def _rows_from(first: Tensor, groups: Sequence[Group]) -> Tensor:
    """Rows of texts that begin at first (T,) by packed place: (R,)."""
    pieces = []
    for group in groups:
        starts = first[group.first_text : group.first_text + group.count]
        pieces.append((starts[:, None] + torch.arange(group.length, device=first.device)).flatten())
    return torch.cat(pieces)


def token_rows(packing: Packing, padded_width: int) -> Tensor:
    """For each packed row, its place in a flattened (T, padded_width) matrix of ids: (R,)."""
    return _rows_from(packing.order * padded_width, packing.groups)


def positions_in_text(packing: Packing, device: torch.device) -> Tensor:
    """Position 0, 1, 2, ... of each packed row within its text: (R,)."""
    return torch.cat([torch.arange(g.length, device=device).repeat(g.count) for g in packing.groups])


def select_texts(packing: Packing, index: Tensor) -> tuple[Packing, Tensor]:
    """Packing of the texts `index` (n,), repeats allowed, and the rows (R',) of the old matrix that make up the new
    one.

    An index on the host gives an exact packing. With an index on an accelerator the chosen lengths stay on the
    device: copying them to the host would stop it once per step, so each text takes as many rows as the longest text
    and the padding is masked.
    """
    device = packing.first_row.device
    if packing.is_uniform:
        selected = pack([packing.lengths[0]] * len(index), device)
        first = packing.first_row[index.to(device)]
    elif index.device.type == "cpu" and packing.key_mask is None:
        selected = pack(np.asarray(packing.lengths)[index.numpy()], device)
        first = packing.first_row[index.to(device)[selected.order]]  # (n,) by new place
    else:
        selected = pack_uniform(packing.length[index], max(packing.lengths))
        first = packing.first_row[index]
    return selected, _rows_from(first, selected.groups).clamp_max(packing.num_rows - 1)


@dataclass(frozen=True)
class Reading:
    """The rows of a packed matrix that a last layer has to compute, grouped like the packing's texts.

    rows (Q,) are packed rows. Group g of the packing owns `counts[g]` slots per text; `slots[g]` (count, slots)
    points into `rows` and `kept[g]` lists the flattened slots that are real (None: all of them).
    """

    rows: Tensor
    slots: tuple[Tensor, ...]
    kept: tuple[Tensor | None, ...]
    text_of_row: Tensor = field(repr=False)


def read_first(packing: Packing) -> Reading:
    """Only the first token of every text; row p of the reading is text `packing.order[p]`."""
    rows, slots = packing.first_row[packing.order], []
    for group in packing.groups:
        slots.append(torch.arange(group.first_text, group.first_text + group.count, device=rows.device)[:, None])
    return Reading(rows, tuple(slots), (None,) * len(slots), packing.order)


def read_positions(packing: Packing, positions: Tensor, wanted: Tensor) -> Reading:
    """The tokens at `positions` (T, P) where `wanted` (T, P) is True, in packed order of texts; needs wanted on the
    host.

    On an accelerator all P slots are read: the number of wanted ones is not known to the host.
    """
    placed, kept_by_place = positions[packing.order], wanted[packing.order]  # (T, P)
    rows = packing.first_row[packing.order][:, None] + placed
    exact = rows.device.type == "cpu"
    if not exact:
        kept_by_place = torch.ones_like(kept_by_place)
    flat_kept = kept_by_place.flatten()
    number = flat_kept.cumsum(0) - 1
    number = number.view_as(placed).clamp_min(0)  # (T, P) slot -> row of the reading
    slots, kept = [], []
    for group in packing.groups:
        part = slice(group.first_text, group.first_text + group.count)
        real = kept_by_place[part]
        width = int(real.sum(1).max()) if exact else real.shape[1]
        if width == 0:
            slots.append(number[part][:, :0])
            kept.append(None)
            continue
        ahead = real.int().argsort(dim=1, descending=True, stable=True)[:, :width] if exact else None
        slots.append(number[part].gather(1, ahead) if exact else number[part])
        kept.append(real.gather(1, ahead).flatten().nonzero().flatten() if exact else None)
    text = packing.order[:, None].expand_as(placed)
    if exact:
        return Reading(rows[kept_by_place], tuple(slots), tuple(kept), text[kept_by_place])
    return Reading(rows.flatten(), tuple(slots), tuple(kept), text.flatten())


@dataclass(frozen=True)
class ImageBlock:
    """Images that meet about as many query rows: query slots (m, Q) point into the rows, `kept` are the real ones."""

    images: Tensor
    slots: Tensor
    kept: Tensor
    rows: Tensor


def fold_by_image(image_of_row: Tensor, device: torch.device, slack: float = 1.25) -> tuple[ImageBlock, ...]:
    """All query rows of one image side by side, so that its keys and values are read once; image_of_row (R,) on the
    host.

    Images are sorted by their number of rows and cut into blocks in which the largest is at most `slack` times the
    smallest (plus 8), which bounds the padded query slots. Covers every row exactly once.
    """
    images = image_of_row.numpy()
    by_image = np.argsort(images, kind="stable")
    used, begin, count = np.unique(images[by_image], return_index=True, return_counts=True)
    by_count = np.argsort(count, kind="stable")
    blocks, at = [], 0
    while at < len(by_count):
        smallest = count[by_count[at]]
        limit = np.searchsorted(count[by_count], smallest * slack + 8, side="right")
        members = by_count[at:limit]
        width = int(count[members].max())
        steps = np.arange(width)
        real = steps[None, :] < count[members][:, None]  # (m, Q)
        places = begin[members][:, None] + np.minimum(steps[None, :], count[members][:, None] - 1)
        slots = by_image[places]
        to_tensor = lambda values: torch.from_numpy(values).to(device, non_blocking=True)  # noqa: E731
        kept = np.flatnonzero(real)
        blocks.append(ImageBlock(*map(to_tensor, (used[members], slots, kept, slots.reshape(-1)[kept]))))
        at = limit
    return tuple(blocks)
