from types import SimpleNamespace

import pytest
import torch

from models.heads import Temperature
from objectives.step import Step


def test_the_temperature_learns_although_the_sampling_of_negatives_read_it_first():
    torch.manual_seed(0)
    temperature = Temperature(Temperature.Config())
    model = SimpleNamespace(temperature=temperature)
    images, texts = (SimpleNamespace(embed=torch.randn(3, 4)) for _ in range(2))
    step = Step(model, None, images, texts)
    assert not step.similarity.requires_grad
    (1 / step.temperature).backward()
    assert temperature.value.grad.item() == pytest.approx(-1 / temperature.value.item() ** 2, rel=1e-6)
