"""Masked language modelling over a large vocabulary, without ever holding all logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.step import ObjectiveConfig, Step

CHUNK_ELEMENTS = 32 << 20
IGNORED_TARGET = -100


def vocabulary_loss(
    tokens: Tensor, weight: Tensor, bias: Tensor, target: Tensor, chunk_elements: int = CHUNK_ELEMENTS
) -> Tensor:
    """Mean cross-entropy of tokens (Q, D) against a vocabulary weight (V, D) + bias (V,); target (Q,), IGNORED_TARGET
    not counted.

    The vocabulary is walked in chunks of about chunk_elements logits, so that each row of the weight's gradient is
    written once.
    """
    kind = tokens.device.type
    if torch.is_autocast_enabled(kind):  # backward runs without autocast, so the products' type is chosen here
        tokens = tokens.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        return _VocabularyLoss.apply(tokens, weight, bias, target, chunk_elements)


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens, weight, bias, target, chunk_elements):
        # Neither the logits (Q, C) of a chunk nor its rows of the weight (C, D) grow beyond chunk_elements.
        ctx.size = max(1, chunk_elements // max(1, *tokens.shape))
        is_kept = len(tokens) * len(weight) <= chunk_elements
        highest = tokens.new_full((len(tokens),), torch.finfo(torch.float32).min, dtype=torch.float32)
        total = torch.zeros_like(highest)
        kept = []
        for part in _chunks(len(weight), ctx.size):
            exponentials = _logits(tokens, weight[part], bias[part])  # (Q, C)
            new_highest = torch.maximum(highest, exponentials.amax(dim=1))
            exponentials.sub_(new_highest[:, None]).exp_()
            total = total * (highest - new_highest).exp() + exponentials.sum(dim=1)
            highest = new_highest
            # A vocabulary whose logits fit one chunk keeps them; a larger one computes them again in backward.
            kept += [exponentials, new_highest] if is_kept else []
        normaliser = highest + total.log()
        is_counted = target != IGNORED_TARGET
        known = target.clamp_min(0)
        right = (tokens.float() * weight[known].to(tokens.dtype).float()).sum(dim=1) + bias[known]
        num_counted = is_counted.sum().clamp_min(1)
        ctx.save_for_backward(tokens, weight, bias, known, normaliser, is_counted / num_counted, *kept)
        return ((normaliser - right) * is_counted).sum() / num_counted

    @staticmethod
    def backward(ctx, grad_loss):
        tokens, weight, bias, known, normaliser, share, *kept = ctx.saved_tensors
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
            inside = ((known >= part.start) & (known < part.stop))[:, None]
            place = (known - part.start).clamp(0, probability.shape[1] - 1)[:, None]
            probability.scatter_add_(1, place, -row_scale * inside)
            grad_bias[part] = probability.sum(dim=0)
            probability = probability.to(tokens.dtype)
            grad_tokens += probability @ piece
            if tokens.dtype == weight.dtype:
                torch.mm(probability.T, tokens, out=grad_weight[part])
            else:
                grad_weight[part] = probability.T @ tokens
        return grad_tokens.to(tokens.dtype), grad_weight, grad_bias, None, None


def _logits(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (tokens @ weight.to(tokens.dtype).T).float().add_(bias)


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class MaskedLanguageModelling:
    """Predicts the masked words of each image's drawn caption, the image in sight (CCLM's and CCRK's MLM)."""

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "mlm"

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """Mean cross-entropy over the masked positions ()."""
        chosen, masked = step.positive_text, step.batch.masked
        return masked_language_loss(step, masked.ids[chosen], masked.positions[chosen], masked.targets[chosen], chosen)


def masked_language_loss(step: Step, ids: Tensor, positions: Tensor, targets: Tensor, chosen: Tensor) -> Tensor:
    """ids (M, L) with masks, one text per image; positions and targets (M, P); `chosen` (M,) rows in the step's
    texts.
    """
    tokens, target = step.model.masked_tokens(ids, positions, targets, step.texts.packing, chosen, step.image_keys)
    return vocabulary_loss(tokens, step.model.text_encoder.word.weight, step.model.masked_language_head.bias, target)
