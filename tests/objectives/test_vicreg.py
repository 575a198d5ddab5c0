"""VICReg: its three terms on embeddings for which they are known."""

from types import SimpleNamespace

import pytest
import torch

from objectives.vicreg import VICReg


def step_of(image, text):
    image_of_text = torch.arange(len(image)).repeat_interleave(len(text) // len(image))
    return SimpleNamespace(
        images=SimpleNamespace(embed=image), texts=SimpleNamespace(embed=text),
        batch=SimpleNamespace(image_of_text=image_of_text),
    )  # fmt: skip


def test_equal_embeddings_are_invariant_and_constant_ones_vary_too_little():
    image = torch.ones(3, 2)
    terms = VICReg(VICReg.Config()).statistics(step_of(image, image.repeat_interleave(2, dim=0)))
    assert terms["invariance"] == 0 and terms["covariance"] == 0
    assert terms["variance"].item() == pytest.approx(2 * (1 - 0.01))


def test_every_text_meets_its_own_picture_and_dimensions_that_move_together_cost():
    image = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    objective = VICReg(VICReg.Config(invariance=1, variance=10, covariance=100))
    step = step_of(image, -image)
    terms = {name: value.item() for name, value in objective.statistics(step).items()}
    # deviations of both sides are sqrt(2) > 1; both covariance matrices are [[2, 2], [2, 2]]
    assert terms == pytest.approx({"invariance": 4, "variance": 0, "covariance": 2 * (4 + 4) / 2})
    assert objective(step).item() == pytest.approx(4 + 800)
