"""Masked language modelling over a large vocabulary, without ever holding all logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.step import ObjectiveConfig, Step
from utils.distributed import all_reduce_sum, world_size

CHUNK_ELEMENTS = 32 << 20
IGNORED_TARGET = -100


def vocabulary_loss(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    chunk_elements: int = CHUNK_ELEMENTS,
    *,
    row_weight: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of tokens (Q, D) against a vocabulary weight (V, D) + bias (V,); target (Q,), IGNORED_TARGET
    not counted. With row_weight (Q,) or () the sum of the weighted rows instead of the mean.

    The vocabulary is walked in chunks of about chunk_elements logits, so that each row of the weight's gradient is
    written once.
    """
    tokens = _as_autocast(tokens)
    is_counted = target != IGNORED_TARGET
    share = is_counted / is_counted.sum().clamp_min(1) if row_weight is None else is_counted * row_weight
    with torch.autocast(tokens.device.type, enabled=False):
        return _VocabularyLoss.apply(tokens, weight, bias, target.clamp_min(0), share, chunk_elements)


@torch.no_grad()
def log_normaliser(tokens: Tensor, weight: Tensor, bias: Tensor, chunk_elements: int = CHUNK_ELEMENTS) -> Tensor:
    """Logarithm of the sum of the exponentials of all logits of tokens (Q, D): (Q,); a logit minus it is a log
    probability.
    """
    tokens = _as_autocast(tokens)
    with torch.autocast(tokens.device.type, enabled=False):
        return _log_normaliser(tokens, weight, bias, _chunk_size(tokens, chunk_elements), None)


def _as_autocast(tokens: Tensor) -> Tensor:
    """Tokens of the products' type: backward runs without autocast, so it is chosen beforehand."""
    kind = tokens.device.type
    return tokens.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tokens


def _chunk_size(tokens: Tensor, chunk_elements: int) -> int:
    """Words of a chunk: neither its logits (Q, C) nor its rows of the weight (C, D) grow beyond chunk_elements."""
    return max(1, chunk_elements // max(1, *tokens.shape))


def _log_normaliser(tokens: Tensor, weight: Tensor, bias: Tensor, size: int, kept: list[Tensor] | None) -> Tensor:
    """(Q,), chunk by chunk; `kept` gets every chunk's exponentials and what they are relative to, unless it is None."""
    highest = tokens.new_full((len(tokens),), torch.finfo(torch.float32).min, dtype=torch.float32)
    total = torch.zeros_like(highest)
    for part in _chunks(len(weight), size):
        exponentials = _logits(tokens, weight[part], bias[part])  # (Q, C)
        new_highest = torch.maximum(highest, exponentials.amax(dim=1))
        exponentials.sub_(new_highest[:, None]).exp_()
        total = total * (highest - new_highest).exp() + exponentials.sum(dim=1)
        highest = new_highest
        if kept is not None:
            kept += [exponentials, new_highest]
    return highest + total.log()


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens, weight, bias, target, share, chunk_elements):
        ctx.size = _chunk_size(tokens, chunk_elements)
        kept = []
        # A vocabulary whose logits fit one chunk keeps them; a larger one computes them again in backward.
        is_kept = len(tokens) * len(weight) <= chunk_elements
        normaliser = _log_normaliser(tokens, weight, bias, ctx.size, kept if is_kept else None)
        right = target_logits(tokens, weight, bias, target)
        ctx.save_for_backward(tokens, weight, bias, target, normaliser, share, *kept)
        return ((normaliser - right) * share).sum()

    @staticmethod
    def backward(ctx, grad_loss):
        tokens, weight, bias, target, normaliser, share, *kept = ctx.saved_tensors
        row_scale = (grad_loss * share)[:, None]  # (Q, 1)
        grad_tokens = torch.zeros(tokens.shape, dtype=torch.float32, device=tokens.device)
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
        for number, part in enumerate(_chunks(len(weight), ctx.size)):
            piece = weight[part].to(tokens.dtype)
            if kept:
                exponentials, highest = kept[2 * number : 2 * number + 2]
                probability = exponentials * ((highest - normaliser).exp()[:, None] * row_scale)
            else:
                probability = _logits(tokens, piece, bias[part]).sub_(normaliser[:, None]).exp_().mul_(row_scale)
            inside = ((target >= part.start) & (target < part.stop))[:, None]
            place = (target - part.start).clamp(0, probability.shape[1] - 1)[:, None]
            probability.scatter_add_(1, place, -row_scale * inside)
            grad_bias[part] = probability.sum(dim=0)
            probability = probability.to(tokens.dtype)
            grad_tokens += probability @ piece
            if tokens.dtype == weight.dtype:
                torch.mm(probability.T, tokens, out=grad_weight[part])
            else:
                grad_weight[part] = probability.T @ tokens
        return grad_tokens.to(tokens.dtype), grad_weight, grad_bias, None, None, None


def target_logits(tokens: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """The one logit of every row of tokens (Q, D) that target (Q,) names: (Q,)."""
    return (tokens.float() * weight[target].to(tokens.dtype).float()).sum(dim=1) + bias[target]


def _logits(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (tokens @ weight.to(tokens.dtype).T).float().add_(bias)


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class MaskedLanguageModelling:
    """Predicts the masked words of each image's drawn caption, the image in sight (CCLM's and CCRK's MLM).

    Of parallel texts it masks the first, the second in sight, or the pair as one text (see TextPairStep).
    """

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "mlm"

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """Mean cross-entropy over the masked positions ()."""
        if step.reads_masked:
            return fused_language_loss(step)
        chosen, masked = step.positive_text, step.masked
        return masked_language_loss(step, masked.ids[chosen], masked.positions[chosen], masked.targets[chosen], chosen)


def fused_language_loss(step: Step) -> Tensor:
    """The masked words of the one pass that serves all objectives; mean over those of all ranks, some of which may have
    none: this rank's share of it times the number of ranks ().
    """
    fused, head = step.fused_positives(), step.model.masked_language_head
    total = all_reduce_sum((fused.target != IGNORED_TARGET).sum())
    weight = world_size() / total.clamp_min(1)
    return vocabulary_loss(
        fused.tokens, step.model.text_encoder.word.weight, head.bias, fused.target, row_weight=weight
    )


def masked_language_loss(step: Step, ids: Tensor, positions: Tensor, targets: Tensor, chosen: Tensor) -> Tensor:
    """ids (M, L) with masks, one text per image; positions and targets (M, P); `chosen` (M,) rows in the step's
    texts.
    """
    texts = step.masked_texts(ids, chosen)
    tokens, target = step.model.masked_tokens(texts, positions, targets, step.masked_keys)
    return vocabulary_loss(tokens, step.model.text_encoder.word.weight, step.model.masked_language_head.bias, target)
