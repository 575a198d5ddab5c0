"""Training on images with captions, and retrieval as its evaluation: pre-training and retrieval fine-tuning of every
system.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dataset.batch import ImageTextBatch
from models.model import Model
from objectives import OBJECTIVES
from objectives.step import Step
from tasks.retrieval import RetrievalEvaluation
from tasks.task import Task


class ImageText(Task):
    """Encodes every image and text of a batch once; all objectives of the config read the same encodings."""

    headline = "r_mean"

    def __init__(self, model: Model, objectives: dict[str, Any], data: Any, evaluation: RetrievalEvaluation) -> None:
        super().__init__()
        self.model = model
        self.objectives = {name: OBJECTIVES.load(name)(config) for name, config in objectives.items()}
        self.data, self.evaluation = data, evaluation
        self.num_steps = 0
        matching = objectives.get("itm")
        self.positive_choice = matching.positive_text if matching is not None else "uniform"

    @classmethod
    def from_config(cls, config: Any) -> ImageText:
        """The task of a whole configuration; reads the data sets that it names."""
        from dataset.data import Data

        image_size = config.model.image_encoder.image_size
        data = Data(config.data, image_size=image_size, seed=config.seed, has_masks="mlm" in config.objectives)
        model = Model(config.model)
        return cls(model, config.objectives, data, RetrievalEvaluation(config.evaluation, data, config.output_dir))

    def forward(self, batch: ImageTextBatch) -> dict[str, Tensor]:
        """Weighted losses by objective."""
        images = self.model.encode_image(batch.images)
        texts = self.model.encode_text(batch.texts.ids, batch.texts.lengths)
        step = Step(self.model, batch, images, texts, self.positive_choice)
        due = {name: each for name, each in self.objectives.items() if each.config.is_due(self.num_steps)}
        return {name: objective(step) * objective.config.weight for name, objective in due.items()}

    def after_step(self) -> None:
        """Count the step: objectives may begin later or take part in some steps only."""
        self.num_steps += 1

    def get_extra_state(self) -> Tensor:
        """The number of steps done, for a resume."""
        return torch.tensor(self.num_steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.num_steps = int(state)

    def train_loader(self, rank: int, world_size: int) -> Any:
        """This rank's batches."""
        return self.data.train_loader(rank, world_size)

    def check_data(self, splits: tuple[str, ...]) -> None:
        """Raise if a file of the splits is missing."""
        self.data.check(splits)

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, Any]:
        """Retrieval in both directions over every set of the split."""
        was_training = self.model.training
        self.model.eval()
        metrics = self.evaluation(self.model, split)
        self.model.train(was_training)
        return metrics

    def fresh_parameters(self) -> set[str]:
        """Cross-attention, projections, match head and temperature: in no public tower."""
        beginnings = ("model.image_projection", "model.text_projection", "model.match_head", "model.temperature")
        return {n for n, _ in self.named_parameters() if n.startswith(beginnings) or ".cross_attention." in n}
