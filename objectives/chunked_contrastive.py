"""Contrastive cross-entropy between two sets of vectors in row chunks: no matrix of similarities outlives its chunk.

The rows and the columns of one similarity matrix give two losses. Forward keeps only the log-normalisers of rows and
columns; backward recomputes the similarities chunk by chunk. Letters: M rows, T columns, E embedding, C rows of a
chunk, K kinds of ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

# A chunk that a CPU's cache holds is faster than a larger one; an accelerator wants fewer, larger kernels.
CHUNK_ELEMENTS, ACCELERATOR_FACTOR, SMALL_CHUNK = 1 << 18, 4, 1 << 16


@dataclass(frozen=True)
class Positives:
    """What counts as right: equal ids. In a row positives weigh 1 each, or share a weight of 1 (`is_mean`); in a
    column they share.

    row_id (M,) and column_id (T,); with several `shares` (M, K) and (T, K): the loss is then the sum over k of share k
    times the loss of the ids in column k, at the cost of one. With `is_exclusive` each positive of a row is compared
    with the negatives alone; otherwise the positives of a row compete. `smoothing` is the part of the target that all
    columns (of a row) and all rows (of a column) get evenly. Rows and columns that do not ask, row_asks (M,) and
    column_asks (T,) bool, may be an answer but have none; what has no answer adds nothing to its loss.
    """

    row_id: Tensor
    column_id: Tensor
    is_mean: bool = True
    is_exclusive: bool = False
    smoothing: float = 0.0
    shares: tuple[float, ...] = (1.0,)
    row_asks: Tensor | None = None
    column_asks: Tensor | None = None

    def matrices(self, part: slice, k: int = 0) -> tuple[Tensor, Tensor]:
        """Which columns are right for the rows of `part`, as the ids in column k say, and which of these rows are right
        for the columns: both (C, T) bool.
        """
        row_id, column_id = (ids if ids.dim() == 1 else ids[:, k] for ids in (self.row_id, self.column_id))
        of_rows = of_columns = row_id[part, None] == column_id[None, :]
        if self.row_asks is not None:
            of_rows = of_rows & self.row_asks[part, None]
        return of_rows, of_columns if self.column_asks is None else of_columns & self.column_asks

    def row_weight(self, right: Tensor) -> Tensor:
        """Weight of every positive of a row: (C, 1)."""
        count = right.sum(dim=1, keepdim=True)
        return 1 / count.clamp_min(1) if self.is_mean else torch.ones_like(count, dtype=torch.float32)


def contrastive_losses(
    rows: Tensor,
    columns: Tensor,
    temperature: Tensor,
    positives: Positives,
    *,
    is_sharded: bool = False,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Row loss (every row seeks its columns) and column loss (every column seeks its rows), both ().

    rows (M, E) and columns (T, E) are unit vectors, temperature () divides their products: s = rows columns^T /
    temperature. Row loss = mean over rows of sum over positives j of w (log sum_k exp s_ik - s_ij); the column loss
    is the same for s^T.

    is_sharded: every rank (of the group) holds other rows and all columns. Losses and gradients are then this rank's
    share times the number of ranks, so that their mean over ranks is the loss, and the gradient, of the whole matrix.
    """
    with torch.autocast(rows.device.type, enabled=False):
        if not is_sharded:
            return _Contrastive.apply(rows.float(), columns.float(), temperature.float(), positives, None)
        ranks = dist.group.WORLD if group is None else group
        return _Contrastive.apply(rows.float(), columns.float(), temperature.float(), positives, ranks)


class _Contrastive(torch.autograd.Function):
    """One pass of matrix products forward (similarities), three backward (similarities, both gradients)."""

    @staticmethod
    def forward(ctx, rows, columns, temperature, positives, ranks):
        shares, smoothing = positives.shares, positives.smoothing
        num_normalisers = len(shares) if positives.is_exclusive else 1  # else all ids have the same competitors
        row_normaliser, row_loss = rows.new_empty(num_normalisers, len(rows)), rows.new_zeros(())
        largest = columns.new_full((len(columns),), torch.finfo(columns.dtype).min)
        exponentials, score_sum = (torch.zeros_like(largest) for _ in range(2))
        positive_score, positive_count = (columns.new_zeros(len(shares), len(columns)) for _ in range(2))
        for part in _chunks(rows, columns):
            scores = _scores(rows[part], columns, temperature)
            highest = torch.maximum(largest, scores.amax(dim=0))
            exponentials = exponentials * (largest - highest).exp() + (scores - highest).exp_().sum(dim=0)
            largest = highest
            for k, share in enumerate(shares):
                right, of_columns = positives.matrices(part, k)
                positive_count[k] += of_columns.sum(dim=0)
                positive_score[k] += (scores * of_columns).sum(dim=0)
                if k < num_normalisers:
                    competing = scores.masked_fill(right, -torch.inf) if positives.is_exclusive else scores
                    row_normaliser[k, part] = competing.logsumexp(dim=1)
                below = row_normaliser[min(k, num_normalisers - 1), part, None] - scores
                below = F.softplus(below) if positives.is_exclusive else below
                row_loss += share * (below * right * positives.row_weight(right)).sum() * (1 - smoothing)
                if smoothing:
                    even = row_normaliser[min(k, num_normalisers - 1), part] - scores.mean(dim=1)
                    row_loss += share * smoothing * (even * right.any(dim=1)).sum()
            if smoothing:
                score_sum += scores.sum(dim=0)
        sums = torch.cat([positive_score, positive_count, score_sum[None]])  # (2 K + 1, T)
        sums, column_normaliser = _finish_columns(sums, exponentials, largest, ranks)
        positive_score, positive_count, score_sum = sums[: len(shares)], sums[len(shares) : -1], sums[-1]
        num_rows = _total(rows.new_tensor(float(len(rows))), ranks)
        # Every rank holds the whole column loss; its mean over ranks is itself.
        column_loss = rows.new_zeros(())
        for share, score, count in zip(shares, positive_score, positive_count, strict=True):
            target = (1 - smoothing) * score / count.clamp_min(1) + smoothing * score_sum / num_rows
            column_loss = column_loss + share * ((column_normaliser - target) * (count > 0)).mean()
        ctx.save_for_backward(rows, columns, temperature, row_normaliser, column_normaliser, positive_count, num_rows)
        num_ranks = 1 if ranks is None else dist.get_world_size(ranks)
        ctx.positives, ctx.row_scale, ctx.column_scale = positives, num_ranks / num_rows, num_ranks / len(columns)
        return row_loss * ctx.row_scale, column_loss

    @staticmethod
    def backward(ctx, grad_row_loss, grad_column_loss):
        rows, columns, temperature, row_normaliser, column_normaliser, positive_count, num_rows = ctx.saved_tensors
        smoothing, shares = ctx.positives.smoothing, ctx.positives.shares
        smooth_row, smooth_column = grad_row_loss * ctx.row_scale, grad_column_loss * ctx.column_scale
        row_scale, column_scale = smooth_row * (1 - smoothing), smooth_column * (1 - smoothing)
        share = columns.new_tensor(shares)[:, None]  # (K, 1)
        right_share = (share * (positive_count > 0)).sum(dim=0)  # (T,)
        column_total = column_scale * right_share
        column_weight = column_scale * share / positive_count.clamp_min(1)  # (K, T)
        grad_rows, grad_columns = torch.empty_like(rows), torch.zeros_like(columns)
        grad_temperature = torch.zeros_like(temperature)
        for part in _chunks(rows, columns):
            scores = _scores(rows[part], columns, temperature)
            gradient = (scores - column_normaliser).exp_().mul_(column_total)
            for k, weight in enumerate(shares):
                right, of_columns = ctx.positives.matrices(part, k)
                row_weight = ctx.positives.row_weight(right) * row_scale * weight  # (C, 1)
                normaliser = row_normaliser[min(k, len(row_normaliser) - 1), part, None]
                gradient += _row_gradient(scores, right, row_weight, normaliser, ctx.positives.is_exclusive)
                gradient -= of_columns * column_weight[k]
                if smoothing:
                    even = ((scores - normaliser).exp_() - 1 / len(columns)) * right.any(dim=1, keepdim=True)
                    gradient += smoothing * smooth_row * weight * even
            if smoothing:
                even = (scores - column_normaliser).exp_() - 1 / num_rows
                gradient += smoothing * smooth_column * right_share * even
            grad_temperature -= (gradient * scores).sum() / temperature
            grad_rows[part] = (gradient @ columns).div_(temperature)
            grad_columns.addmm_(gradient.T, rows[part])
        return grad_rows, grad_columns.div_(temperature), grad_temperature, None, None


def _row_gradient(scores: Tensor, right: Tensor, weight: Tensor, normaliser: Tensor, is_exclusive: bool) -> Tensor:
    """d row loss / d scores: (C, T)."""
    if not is_exclusive:
        probability = (scores - normaliser).exp_()
        return probability.mul_(weight * right.sum(dim=1, keepdim=True)).sub_(right * weight)
    pull = torch.sigmoid(normaliser - scores) * right * weight
    negatives = (scores - normaliser).masked_fill(right, -torch.inf).exp_()
    # A row without negatives has the normaliser -inf: nothing pulls it, and exp(inf) must not turn 0 into nan.
    return negatives.nan_to_num_(0.0, 0.0, 0.0).mul_(pull.sum(dim=1, keepdim=True)).sub_(pull)


def _finish_columns(
    sums: Tensor, exponentials: Tensor, largest: Tensor, ranks: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Over the rows of all ranks: the sums (S, T) and the log-normaliser (T,)."""
    if ranks is not None:
        highest = largest.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=ranks)
        exponentials, largest = exponentials * (largest - highest).exp(), highest
        sums, exponentials = _total(torch.cat([sums, exponentials[None]]), ranks).split([len(sums), 1])
        exponentials = exponentials[0]
    return sums, largest + exponentials.log()


def _chunks(rows: Tensor, columns: Tensor) -> list[slice]:
    """Parts of the rows; what a part needs (some 8 matrices) stays within about twice the vectors themselves."""
    elements = CHUNK_ELEMENTS * (1 if rows.device.type == "cpu" else ACCELERATOR_FACTOR)
    elements = min(elements, max(SMALL_CHUNK, (rows.numel() + columns.numel()) // 4))
    size = max(1, elements // len(columns))
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _scores(rows: Tensor, columns: Tensor, temperature: Tensor) -> Tensor:
    return (rows @ columns.T).div_(temperature)  # (C, T)


def _total(x: Tensor, ranks: dist.ProcessGroup | None) -> Tensor:
    if ranks is not None:
        dist.all_reduce(x, group=ranks)
    return x
