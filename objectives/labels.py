"""The class of a text with its image, or with its images: cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from objectives.step import ObjectiveConfig, Step


class ClassPrediction:
    """Cross-entropy of the model's `class_logits`; the batch has `labels` (T,) and image_of_text (I, T)."""

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "classify"

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """The mean over texts ()."""
        logits = step.model.class_logits(step.texts, step.image_keys, step.batch.image_of_text)
        return F.cross_entropy(logits, step.batch.labels)
