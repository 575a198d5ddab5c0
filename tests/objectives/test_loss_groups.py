"""Pairs that only some neighbouring processes see, smoothing of their targets, and pairs that are ignored."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from objectives.contrastive import PairContrastive
from objectives.step import Step
from tests.ranks import run_on_ranks

NUM_RANKS, SIZE = 4, 3


def embeds() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(F.normalize(torch.randn(NUM_RANKS * SIZE, 8, generator=generator), dim=1) for _ in range(2))


def loss_of(image: torch.Tensor, text: torch.Tensor, ignored: torch.Tensor | None = None, **options) -> torch.Tensor:
    number = torch.arange(len(image))
    model = SimpleNamespace(temperature=lambda: torch.tensor(0.1))
    batch = SimpleNamespace(image_id=number * 0, image_of_text=number)  # one picture: its other texts count as wrong
    sides = (SimpleNamespace(embed=image), SimpleNamespace(embed=text))
    return PairContrastive(PairContrastive.Config(**options))(Step(model, batch, *sides, ignored=ignored))


def dense(image: torch.Tensor, text: torch.Tensor, smoothing: float) -> torch.Tensor:
    logits, target = image @ text.T / 0.1, torch.arange(len(image))
    return sum(F.cross_entropy(side, target, label_smoothing=smoothing) for side in (logits, logits.T)) / 2


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_process_agrees_with_cross_entropy(smoothing):
    image, text = (x.requires_grad_() for x in embeds())
    found, expected = loss_of(image, text, smoothing=smoothing), dense(image, text, smoothing)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for a, b in zip(torch.autograd.grad(found, (image, text)), torch.autograd.grad(expected, (image, text))):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ignored_pairs_ask_for_nothing_and_answer_with_zero(smoothing):
    """ZeroVL's ignore_mask: a key of zeros, a query without a loss, and the mean over all."""
    image, text = (x.requires_grad_() for x in embeds())
    ignored = torch.arange(len(image)) % 4 == 1
    found = loss_of(image, text, ignored=ignored, smoothing=smoothing)
    kept, target = ~ignored[:, None], torch.arange(len(image))
    sides = [
        F.cross_entropy(rows @ (keys * kept).T / 0.1, target, label_smoothing=smoothing, reduction="none")
        for rows, keys in ((image, text), (text, image))
    ]
    expected = (sum(sides) / 2 * ~ignored).mean()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for a, b in zip(torch.autograd.grad(found, (image, text)), torch.autograd.grad(expected, (image, text))):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert not a[ignored].any()


def _check_groups(rank: int, group_size: int, smoothing: float) -> None:
    whole = [x.requires_grad_() for x in embeds()]
    own = slice(rank * SIZE, (rank + 1) * SIZE)
    mine = [x.detach()[own].clone().requires_grad_() for x in whole]
    loss = loss_of(*mine, group_size=group_size, smoothing=smoothing)
    loss.backward()
    width = group_size * SIZE
    groups = [slice(start, start + width) for start in range(0, NUM_RANKS * SIZE, width)]
    expected = sum(dense(*(x[part] for x in whole), smoothing) for part in groups) / len(groups)
    expected.backward()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    torch.testing.assert_close(total / NUM_RANKS, expected.detach(), rtol=1e-6, atol=1e-6)
    for a, b in zip(mine, whole):  # the mean over processes is taken later, by DDP
        torch.testing.assert_close(a.grad / NUM_RANKS, b.grad[own], rtol=1e-5, atol=1e-6)


def test_groups_of_processes_see_their_own_pairs():
    run_on_ranks(_check_groups, NUM_RANKS, 2, 0.1)
