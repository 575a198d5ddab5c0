"""Adding an image encoder, an objective, a data set or a task is one new file and one line in a table."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from configs.schema import Config
from dataset import DATASETS
from models import IMAGE_ENCODERS
from objectives import OBJECTIVES
from tasks import TASKS
from tests.toy_ccrk import toy_settings, write_toy_data
from utils.config import build

NEW_FILES = {
    "colour_tower": """
        from dataclasses import dataclass
        import torch
        from torch import nn
        from models.image_encoder import ImageConfig, ImageEncoder

        class Colours(nn.Module):
            num_features = 6
            def __init__(self):
                super().__init__()
                self.mix = nn.Linear(3, 6)
            def forward_features(self, images):
                return self.mix(images[:, :, ::16, ::16].flatten(2).transpose(1, 2))

        class ColourTower(ImageEncoder):
            @dataclass
            class Config(ImageConfig):
                name: str = "colours"
            def __init__(self, config):
                super().__init__(config, Colours(), "mean")
        """,
    "spread": """
        from dataclasses import dataclass
        from objectives.step import ObjectiveConfig

        class Spread:
            @dataclass
            class Config(ObjectiveConfig):
                name: str = "spread"
            def __init__(self, config):
                self.config = config
            def __call__(self, step):
                return (step.images.embed @ step.images.embed.T).square().mean()
        """,
    "every_second": """
        from dataclasses import dataclass
        from dataset.pretrain import CaptionedImages

        class EverySecond(CaptionedImages):
            @dataclass
            class Config(CaptionedImages.Config):
                name: str = "every_second"
            def __len__(self):
                return super().__len__() // 2
            def sample(self, index, generator):
                return super().sample(2 * index, generator)
        """,
    "loud_task": """
        from tasks.image_text import ImageText

        class Loud(ImageText):
            headline = "img_r1"
        """,
}
LINES = [
    (IMAGE_ENCODERS, "colours", "colour_tower:ColourTower"),
    (OBJECTIVES, "spread", "spread:Spread"),
    (DATASETS, "every_second", "every_second:EverySecond"),
    (TASKS, "loud", "loud_task:Loud"),
]


@pytest.fixture
def extended(tmp_path, monkeypatch) -> Path:
    """The new files on the path and one line each in the tables, taken out again afterwards."""
    for name, source in NEW_FILES.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    for registry, name, target in LINES:
        registry.add(name, target)
    yield tmp_path
    for registry, name, target in LINES:
        del registry._entries[name]
        sys.modules.pop(target.partition(":")[0], None)


def test_one_of_each_is_added_without_touching_anything_else(extended):
    write_toy_data(extended / "data")
    settings = toy_settings(extended / "data")
    settings["task"] = "loud"
    settings["model"]["image_encoder"] = {"name": "colours", "image_size": 32}
    settings["objectives"]["spread"] = {"weight": 0.5}
    settings["data"]["train"]["name"] = "every_second"
    config = build(Config, settings)
    task = TASKS.load(config.task).from_config(config)
    loader = task.train_loader(0, 1)
    assert len(loader) == 3
    losses = task(next(iter(loader)))
    assert set(losses) == {"one_to_k", "itm", "mlm", "spread"}
    sum(losses.values()).backward()
    assert torch.isfinite(task.model.image_encoder.backbone.mix.weight.grad).all()
    metrics = task.evaluate("val")
    assert task.headline_value(metrics) == metrics["mean"]["img_r1"]
