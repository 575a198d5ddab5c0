from types import SimpleNamespace

import pytest
import torch

from models.heads import Temperature
from objectives.step import Step


@pytest.mark.parametrize("choice", ["uniform", "probability", "similarity"])
def test_broken_numbers_still_draw_a_caption_so_that_the_step_can_be_skipped(choice):
    embed = torch.full((4, 2), torch.nan)
    batch = SimpleNamespace(image_of_text=torch.tensor([0, 0, 1, 1]), image_id=torch.arange(2))
    step = Step(
        SimpleNamespace(temperature=lambda: torch.tensor(0.1)),
        batch,
        SimpleNamespace(embed=embed[:2]),
        SimpleNamespace(embed=embed),
        positive_choice=choice,
    )
    assert step.positive_text.shape == (2,)


def test_the_temperature_learns_although_the_sampling_of_negatives_read_it_first():
    torch.manual_seed(0)
    temperature = Temperature(Temperature.Config())
    model = SimpleNamespace(temperature=temperature)
    images, texts = (SimpleNamespace(embed=torch.randn(3, 4)) for _ in range(2))
    step = Step(model, None, images, texts)
    assert not step.similarity.requires_grad
    (1 / step.temperature).backward()
    assert temperature.value.grad.item() == pytest.approx(-1 / temperature.value.item() ** 2, rel=1e-6)
