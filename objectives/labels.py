"""The class of a text with its image, or with its images: cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


class PairMatching:
    """Labelled pairs through the match heads: R2D2's fine-tuning on ICM and IQM.

    p is the mean over the stacks of the softmax probabilities. The released program takes p as logits (`softmax`: a
    second softmax, whose loss never falls below 0.3133); `log` takes the logarithm of p, the usual cross-entropy.
    """

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "match"
        form: Literal["softmax", "log"] = "softmax"

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """The mean over texts ()."""
        logits = step.model.label_logits(step.image_side, step.text_side, step.batch.image_of_text)  # (T, 2)
        return F.cross_entropy(logits.exp() if self.config.form == "softmax" else logits, step.batch.labels)
