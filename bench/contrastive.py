"""A12: exact contrastive loss and gradient over a large batch: in row chunks, and over the whole similarity matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import plain
from bench.common import Options, Result, agree, extra_memory, interleaved, ratio, spread
from objectives.chunked_contrastive import Positives, contrastive_losses

TEMPERATURE = 0.07


def run(options: Options) -> list[Result]:
    """Row A12."""
    batch, width = (256, 32) if options.is_small else (8192, 256)
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(batch, width, generator=generator), dim=1).requires_grad_()
    text = F.normalize(image.detach() + torch.randn(batch, width, generator=generator), dim=1).requires_grad_()
    positives = Positives(torch.arange(batch), torch.arange(batch))
    temperature = torch.tensor(TEMPERATURE, requires_grad=True)

    def chunked() -> Tensor:
        return sum(contrastive_losses(image, text, temperature, positives)) / 2

    def whole() -> Tensor:
        return plain.contrastive_loss(image, text, temperature)

    inputs = (image, text, temperature)
    words = agree(chunked(), whole(), 1e-5, "loss")
    for found, expected in zip(_gradients(chunked, inputs), _gradients(whole, inputs), strict=True):
        scale = expected.abs().max()
        words = f"{words.split(';')[0]}; " + agree(found / scale, expected / scale, 1e-4, "relative gradient")
    ways = {"plain": lambda: _gradients(whole, inputs), "ours": lambda: _gradients(chunked, inputs)}
    seconds = interleaved(ways, options.repeats)
    memory = {name: extra_memory(way) for name, way in ways.items()}
    less_memory = memory["plain"] / max(memory["ours"], 1)
    return [
        Result(
            row="A12",
            what=f"contrastive loss and gradient, batch {batch}, width {width}",
            plain=f"{spread(seconds['plain'])}, {memory['plain'] / 2**20:,.0f} MiB",
            ours=f"{spread(seconds['ours'])}, {memory['ours'] / 2**20:,.0f} MiB",
            ratio=f"{ratio(seconds['plain'], seconds['ours']):.2f}x, {less_memory:.1f}x less memory",
            floor="1.5x, 3x less memory",
            goal="2.2x, 4x less",
            agreement=words,
        )
    ]


def _gradients(loss, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(), inputs)


ROWS = {"A12": run}
