"""Training on images with captions, and retrieval as its evaluation: pre-training and retrieval fine-tuning of every
system.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dataset.batch import ImageTextBatch
from dataset.data import Data
from models.model import Model
from models.text_encoder import TextEncoder
from objectives import OBJECTIVES
from objectives.step import Step
from tasks.retrieval import RetrievalEvaluation
from tasks.task import Task


class ImageText(Task):
    """Encodes every image and text of a batch once; all objectives of the config read the same encodings."""

    headline = "r_mean"

    def __init__(self, model: Model, objectives: dict[str, Any], data: Data, evaluation: RetrievalEvaluation) -> None:
        super().__init__()
        self.model = model
        self.objectives = {name: OBJECTIVES.load(name)(config) for name, config in objectives.items()}
        self.data, self.evaluation = data, evaluation
        self.num_steps = 0
        matching = objectives.get("itm")
        self.positive_choice = matching.positive_text if matching is not None else "uniform"

    @classmethod
    def from_config(cls, config: Any, splits: tuple[str, ...] = ("train", "val", "test")) -> ImageText:
        """The task of a whole configuration; wrong data of these splits is told before a model exists."""
        image_size = config.model.image_encoder.image_size
        data = Data(config.data, image_size=image_size, seed=config.seed, has_masks="mlm" in config.objectives)
        data.check(splits)
        check_tokenizer(data, config.model.text_encoder)
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


def check_tokenizer(data: Data, text: TextEncoder.Config) -> None:
    """ValueError if the text encoder has no embedding for something that the tokenizer writes."""
    tokenizer, longest = data.tokenizer, text.max_positions - text.position_offset
    if tokenizer.vocab_size > text.vocab_size:
        found = f"model.text_encoder.vocab_size {text.vocab_size} is too small for {data.config.tokenizer}"
        raise ValueError(f"{found}, which has {tokenizer.vocab_size} pieces")
    if tokenizer.pad_id != text.pad_id:
        raise ValueError(
            f"model.text_encoder.pad_id is {text.pad_id}, {data.config.tokenizer} pads with {tokenizer.pad_id}"
        )
    if data.config.max_tokens > longest:
        raise ValueError(f"data.max_tokens {data.config.max_tokens} is more than the encoder's {longest} positions")
