"""Training on images with texts: pre-training, retrieval and classification of every system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.batch import ImageTextBatch, LabelledBatch, TextPairBatch
from dataset.data import Data
from dataset.streams import MAIN, StreamConfig
from models.model import Model
from models.momentum import MomentumTowers, Teacher
from models.text_encoder import TextEncoder
from objectives import OBJECTIVES
from objectives.mixup import CoinFlipMixup
from objectives.step import Mix, PositiveChoice, ReportsStatistics, StatefulObjective, Step
from tasks import EVALUATIONS
from tasks.encode import Embedded, encode_step
from tasks.task import Task


class ImageText(Task):
    """Encodes every image and text of a batch once; all objectives of the config read the same encodings."""

    def __init__(
        self,
        model: Model,
        objectives: dict[str, Any],
        data: Data,
        evaluation: Any,
        streams: Mapping[str, StreamConfig] | None = None,
        *,
        teacher: MomentumTowers.Config | None = None,
        reads_masked: bool = False,
    ) -> None:
        """teacher: of the averaged copy that some objectives compare with; reads_masked: texts are encoded with their
        masks.
        """
        super().__init__()
        self.model = model
        self.objectives = build_objectives(objectives)
        stateful = {name: each for name, each in self.objectives.items() if isinstance(each, StatefulObjective)}
        for each in stateful.values():
            each.prepare(model)
        self.objective_state = nn.ModuleDict(stateful)
        has_teacher = any(each.reads_teacher for each in objectives.values())
        self.teacher = MomentumTowers(teacher or MomentumTowers.Config(), model) if has_teacher else None
        self.reads_masked = reads_masked
        further = streams or {}
        self.stream_objectives = {name: build_objectives(stream.objectives) for name, stream in further.items()}
        self.data, self.evaluation = data, evaluation
        if evaluation is not None:  # a benchmark trains without data and evaluation
            self.headline = self.headline or evaluation.headline
        self.num_steps = 0
        self.mixup = next((each for each in self.objectives.values() if isinstance(each, CoinFlipMixup)), None)
        self.outside_teacher: Teacher | None = None  # a model of another run, where images are distilled
        self._statistics: dict[str, Tensor] = {}
        self.positive_choice = positive_choice(objectives)
        self.stream_choices = {name: positive_choice(stream.objectives) for name, stream in further.items()}

    @classmethod
    def from_config(cls, config: Any, splits: tuple[str, ...] = ("train", "val", "test")) -> ImageText:
        """The task of a whole configuration; wrong data of these splits is told before a model exists."""
        image_size = config.model.image_encoder.image_size
        data = Data(
            config.data,
            image_size=image_size,
            seed=config.seed,
            has_masks="mlm" in config.objectives or config.student_text == "masked",
            streams=config.streams,
            grid=config.model.image_encoder.grid,
        )
        data.check(splits)
        check_tokenizer(data, config.model.text_encoder)
        model = Model(config.model)
        evaluation = EVALUATIONS.load(config.evaluation.name)(config.evaluation, data, config.output_dir)
        return cls(
            *(model, config.objectives, data, evaluation, config.streams),
            teacher=config.teacher,
            reads_masked=config.student_text == "masked",
        )

    def forward(self, batch: ImageTextBatch | LabelledBatch | TextPairBatch) -> dict[str, Tensor]:
        """Weighted losses of the batch's stream by objective; those of further streams as `stream/objective`."""
        return self.losses(self.encode(batch), batch.stream)

    def encode(self, batch: ImageTextBatch | LabelledBatch | TextPairBatch) -> Step:
        """A batch after the towers, mixed where the step mixes."""
        is_main, due = batch.stream == MAIN, self.due_objectives(batch.stream)
        reads_tokens = self.teacher is not None or not all(each.config.reads_embeddings_only for each in due.values())
        step = encode_step(
            self.model,
            batch,
            self.stream_choices.get(batch.stream, self.positive_choice),
            self.draw_mix() if is_main else None,
            reads_masked=self.reads_masked and is_main,
            joins_masked="mlm" in due,
            reads_tokens=reads_tokens,
        )
        if self.teacher is not None and is_main:
            is_shared = self.model.image_encoder.config.is_frozen
            step.teacher = self.teacher(
                step.images.tokens if is_shared else batch.images, batch.texts.ids, step.texts.packing
            )
        if self.outside_teacher is not None and is_main:
            step.teacher_embed = self.teach(batch.images)
        return step

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """The teacher's embeddings (M, E') of images (M, 3, H, W), brought to its own size."""
        teacher = self.outside_teacher["model"]
        size = teacher.image_encoder.config.image_size
        if images.shape[-1] != size:
            images = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True)
            images = images.round().clamp(0, 255).to(torch.uint8)
        return teacher.embed_image(images)

    def draw_mix(self) -> Mix | None:
        """What the coming step mixes."""
        is_due = self.training and self.mixup is not None and self.mixup.config.is_due(self.num_steps)
        return self.mixup.draw(self.num_steps) if is_due else None

    def due_objectives(self, stream: str) -> dict[str, Any]:
        """A stream's objectives whose turn it is."""
        objectives = self.objectives if stream == MAIN else self.stream_objectives[stream]
        return {name: each for name, each in objectives.items() if each.config.is_due(self.num_steps)}

    def losses(self, step: Step, stream: str = MAIN) -> dict[str, Tensor]:
        """Weighted losses of a stream's objectives whose turn it is."""
        prefix, due = "" if stream == MAIN else f"{stream}/", self.due_objectives(stream)
        found = {
            prefix + name: objective(step) * objective.config.weight
            for name, objective in due.items()
            if objective.config.weight or not isinstance(objective, ReportsStatistics)  # else it is for the log alone
        }
        self._statistics = {
            f"{prefix}{name}/{key}": value
            for name, objective in due.items()
            if isinstance(objective, ReportsStatistics)
            for key, value in objective.statistics(step).items()
        }
        return found

    def embed(self, batch: ImageTextBatch) -> dict[str, Tensor]:
        """Embeddings of images (M, E) and texts (T, E), and the teacher's where no gradient is asked for."""
        if torch.is_grad_enabled():
            step = encode_step(self.model, batch, self.positive_choice, self.draw_mix(), reads_tokens=False)
        else:
            step = self.encode(batch)
        embeds = {"image": step.images.embed, "text": step.texts.embed, "teacher": step.teacher_embed}
        return {name: embed for name, embed in embeds.items() if embed is not None}

    def joint_losses(self, batches: Sequence[ImageTextBatch], embeds: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted losses by objective of all micro-batches as one batch."""
        joint = join_batches(batches, embeds["image"].device)
        images, texts = (Embedded(embeds[side]) for side in ("image", "text"))
        options = {"mix": self.draw_mix(), "teacher_embed": embeds.get("teacher")}
        return self.losses(Step(self.model, joint, images, texts, self.positive_choice, **options))

    def statistics(self) -> dict[str, Tensor]:
        """What the last losses have to say besides."""
        return self._statistics

    def before_training(self, steps_per_epoch: float) -> None:
        """The teacher starts as the student does."""
        for objective in self.objective_state.values():
            objective.before_training(steps_per_epoch)
        if self.teacher is not None:
            self.teacher.reset()

    def after_step(self) -> None:
        """Count the step: objectives may begin later or take part in some steps only. The teacher follows the student,
        and so before its next batch.
        """
        self.num_steps += 1
        if self.model.temperature is not None:
            self.model.temperature.after_step()
        for objective in self.objective_state.values():
            objective.after_step()
        if self.teacher is not None:
            self.teacher.update()

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
        """The config's evaluation over every set of the split."""
        was_training = self.model.training
        self.model.eval()
        metrics = self.evaluation(self.model, split)
        self.model.train(was_training)
        return metrics

    def fresh_parameters(self) -> set[str]:
        """Cross-attention, projections, heads and temperature: in no public tower."""
        parts = ("image_projection", "text_projection", "match_head", "box_head", "classifier", "temperature")
        beginnings = tuple(f"model.{part}." for part in parts)
        return {n for n, _ in self.named_parameters() if n.startswith(beginnings) or ".cross_attention." in n}


@dataclass
class JointBatch:
    """What contrastive losses need to know of micro-batches as one batch (see ImageTextBatch); part_sizes: images and
    texts of each.
    """

    image_id: Tensor
    image_of_text: Tensor
    part_sizes: list[tuple[int, int]]


def join_batches(batches: Sequence[ImageTextBatch], device: torch.device) -> JointBatch:
    """The ids of all micro-batches, one after the other, on the device."""
    sizes = [(batch.num_images, batch.num_texts) for batch in batches]
    starts = torch.tensor([0] + [images for images, _ in sizes[:-1]]).cumsum(0).tolist()
    of_text = torch.cat([batch.image_of_text + start for batch, start in zip(batches, starts, strict=True)])
    return JointBatch(torch.cat([batch.image_id for batch in batches]).to(device), of_text.to(device), sizes)


def build_objectives(configs: dict[str, Any]) -> dict[str, Any]:
    """The objectives of a section by name."""
    return {name: OBJECTIVES.load(name)(config) for name, config in configs.items()}


def positive_choice(objectives: dict[str, Any]) -> PositiveChoice:
    """How a stream draws the caption that matching and masked words see."""
    return objectives["itm"].positive_text if "itm" in objectives else "uniform"


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
    lengths = {"data.max_tokens": data.config.max_tokens}
    lengths |= {f"streams.{name}.max_tokens comes to": stream.longest_text for name, stream in data.streams.items()}
    for place, length in lengths.items():
        if length > longest:
            raise ValueError(f"{place} {length} is more than the encoder's {longest} positions")
