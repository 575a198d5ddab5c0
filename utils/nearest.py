"""The best vectors of a gallery for every query by inner product: exact, in blocks, equal scores in their order.

Letters: Q queries, G gallery vectors, D width, C candidates, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

QUERY_BLOCK = 1024
GALLERY_BLOCK = 65536
SPARES = 6  # candidates beyond K: rounding may have put the right ones there
# How far a product in blocks may be from the exact one, relative to the norms: fp32 sums of up to some thousand terms.
ROUNDING = 1e-5
ROW_BLOCK = 16


@dataclass(frozen=True)
class Nearest:
    """index (Q, K) into the gallery and score (Q, K), best first."""

    index: Tensor
    score: Tensor


def nearest(
    queries: Tensor, gallery: Tensor, k: int, *, query_block: int = QUERY_BLOCK, gallery_block: int = GALLERY_BLOCK
) -> Nearest:
    """The K best of gallery (G, D) for queries (Q, D) on any device; all of them if there are fewer.

    Scores are exact inner products rounded to fp32; equal ones keep the gallery's order. Products in blocks choose
    candidates; only where rounding could have changed order or membership are scores computed again in fp64.
    """
    k = min(k, len(gallery))
    found = [
        _of_block(queries[start : start + query_block], gallery, k, gallery_block)
        for start in range(0, len(queries), query_block)
    ]
    if not found:
        empty = torch.zeros(0, k, device=queries.device)
        return Nearest(empty.long(), empty)
    return Nearest(torch.cat([each.index for each in found]), torch.cat([each.score for each in found]))


def _of_block(queries: Tensor, gallery: Tensor, k: int, gallery_block: int) -> Nearest:
    num_candidates, largest = min(k + SPARES, len(gallery)), torch.zeros((), device=gallery.device)
    score = queries.new_zeros(len(queries), 0)
    index = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(gallery), gallery_block):
        part = gallery[start : start + gallery_block]
        largest = torch.maximum(largest, torch.linalg.vector_norm(part, dim=1).max())
        best = (queries @ part.T).topk(min(num_candidates, len(part)), dim=1)  # (Q, C)
        score, index = torch.cat([score, best.values], dim=1), torch.cat([index, best.indices + start], dim=1)
        if score.shape[1] > num_candidates:
            score, kept = score.topk(num_candidates, dim=1)
            index = index.gather(1, kept)
    margin = 2 * ROUNDING * torch.linalg.vector_norm(queries, dim=1) * largest  # (Q,)
    is_near = (score[:, :-1] - score[:, 1:])[:, :k].le(margin[:, None]).any(dim=1)
    is_open = score[:, k - 1] - score[:, -1] <= margin
    is_open &= num_candidates < len(gallery)
    is_near &= ~is_open
    if is_near.any():
        score[is_near], index[is_near] = _rescored(queries[is_near], gallery, index[is_near])
    score, index = score[:, :k], index[:, :k]
    for rows in is_open.nonzero().flatten().split(ROW_BLOCK):
        score[rows], index[rows] = _against_all(queries[rows], gallery, k, gallery_block)
    return Nearest(index, score)


def _rescored(queries: Tensor, gallery: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Exact scores of candidates (Q, C), best first, equal ones by their place."""
    index = index.sort(dim=1).values
    score = torch.stack([(gallery[row].double() @ query.double()).float() for query, row in zip(queries, index)])
    score, order = score.sort(dim=1, descending=True, stable=True)
    return score, index.gather(1, order)


def _against_all(queries: Tensor, gallery: Tensor, k: int, gallery_block: int) -> tuple[Tensor, Tensor]:
    """The K best of the whole gallery in fp64, for queries that many vectors are equally near to."""
    parts = [gallery[start : start + gallery_block].double() for start in range(0, len(gallery), gallery_block)]
    score = torch.cat([queries.double() @ part.T for part in parts], dim=1).float()  # (Q, G)
    score, order = score.sort(dim=1, descending=True, stable=True)
    return score[:, :k], order[:, :k]
