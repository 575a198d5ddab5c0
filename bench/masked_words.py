"""A8: peak extra memory of the masked-word loss over the full vocabulary: in chunks, and with all logits."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import plain
from bench.common import Options, Result, agree, extra_memory, interleaved, ratio, spread
from objectives.masked_lm import IGNORED_TARGET, vocabulary_loss

# CCLM gives every caption 12 slots for masks; at a mean caption of 18 tokens about 5 of them are used.
SLOTS, MEAN_USED = 12, 5


def run(options: Options) -> list[Result]:
    """Row A8."""
    texts, width, vocabulary = (4, 16, 500) if options.is_small else (128, 1024, 250_002)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(texts * SLOTS, width, generator=generator)
    weight = (torch.randn(vocabulary, width, generator=generator) * 0.02).requires_grad_()
    bias = torch.zeros(vocabulary, requires_grad=True)
    target = torch.randint(0, vocabulary, (texts * SLOTS,), generator=generator)
    is_used = torch.rand(texts * SLOTS, generator=generator) < MEAN_USED / SLOTS
    target[~is_used] = IGNORED_TARGET
    all_tokens, real_tokens = tokens.clone().requires_grad_(), tokens[is_used].requires_grad_()
    real_target = target[is_used]

    def whole() -> tuple[Tensor, ...]:
        loss = plain.full_vocabulary_loss(all_tokens, weight, bias, target)
        return loss.detach(), *torch.autograd.grad(loss, (all_tokens, weight, bias))

    def chunked() -> tuple[Tensor, ...]:
        loss = vocabulary_loss(real_tokens, weight, bias, real_target)
        return loss.detach(), *torch.autograd.grad(loss, (real_tokens, weight, bias))

    words = _check(chunked(), whole(), is_used)
    ways = {"plain": whole, "ours": chunked}
    gradient = weight.numel() * 4  # both hold it, and it is not the loss's own
    memory = {name: max(extra_memory(way) - gradient, 1) for name, way in ways.items()}
    seconds = interleaved(ways, options.repeats)
    return [
        Result(
            row="A8",
            what=f"masked-word loss, {texts} captions, {vocabulary:,} words, memory beyond the weight's gradient",
            plain=f"{memory['plain'] / 2**20:,.0f} MiB, {spread(seconds['plain'])}",
            ours=f"{memory['ours'] / 2**20:,.0f} MiB, {spread(seconds['ours'])}",
            ratio=f"{memory['plain'] / memory['ours']:.1f}x less, {ratio(seconds['plain'], seconds['ours']):.2f}x time",
            floor="5x less",
            goal="15x less",
            agreement=words,
            notes=[f"A8: {int(is_used.sum())} of {texts * SLOTS} mask slots are used"],
        )
    ]


def _check(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], is_used: Tensor) -> str:
    loss, tokens, weight, bias = expected
    words = agree(found[0], loss, 1e-4, "loss")
    for ours, theirs in zip(found[1:], (tokens[is_used], weight, bias), strict=True):
        agree(ours / theirs.abs().max(), theirs / theirs.abs().max(), 1e-4, "relative gradient")
    return f"{words}; gradients within 1e-04"


ROWS = {"A8": run}
