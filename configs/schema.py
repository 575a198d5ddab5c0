"""The whole configuration, composed of the `Config` of every part; each sits beside the class it configures."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dataset.data import DataConfig
from dataset.labelled import LabelledConfig
from dataset.streams import StreamConfig, check_streams
from models.model import Model
from models.momentum import MomentumTowers
from objectives import OBJECTIVES
from optim import OptimConfig
from scheduler import ScheduleConfig
from tasks import EVALUATIONS, TASKS
from tasks.retrieval import RetrievalEvaluation
from trainer import TrainConfig
from utils.config import load_config
from utils.registry import unknown_name_message


@dataclass
class InitConfig:
    """Where weights come from before the first step; everything not named starts fresh."""

    checkpoint: str = ""  # a checkpoint of ours, or a released file of an original system
    # Of a file that an original's trainer wrote also the optimizer's moments, and its epoch and step.
    keeps_optimizer: bool = False
    keeps_position: bool = False
    checkpoint_by_language: str = ""  # evaluation: one for each language, {language} stands for its name
    text: str = ""  # folder of a BERT, RoBERTa or XLM-R model from Hugging Face
    image: str = ""  # file of a Swin or ViT, in the original or the timm layout
    allow_missing: list[str] = field(default_factory=list)  # beginnings of names that a checkpoint may lack
    only: list[str] = field(default_factory=list)  # beginnings of our names that a checkpoint fills; none: all
    rename: dict[str, str] = field(default_factory=dict)  # beginnings of a checkpoint's own names -> what they become


@dataclass
class Stream(StreamConfig):
    """A training stream with objectives of the table."""

    objectives: dict[str, Annotated[Any, OBJECTIVES]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.objectives:
            raise ValueError("objectives is empty; a stream needs at least one")


@dataclass
class Config:
    """Settings of one run; `task` is a row of the task table."""

    task: str
    model: Model.Config
    data: DataConfig
    output_dir: str = "output"
    seed: int = 42
    objectives: dict[str, Annotated[Any, OBJECTIVES]] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)  # training data beside data.train
    teacher: MomentumTowers.Config = field(default_factory=MomentumTowers.Config)  # where an objective needs one
    # `masked`: the model sees texts with words hidden, and the one pass serves all objectives (R2D2's enhanced
    # training); `complete`: masked words get a pass of their own.
    student_text: Literal["complete", "masked"] = "complete"
    evaluation: Annotated[Any, EVALUATIONS] = field(default_factory=RetrievalEvaluation.Config)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init: InitConfig = field(default_factory=InitConfig)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(unknown_name_message("task", self.task, TASKS.names()))
        check_streams(self.streams)
        if self.streams and (self.train.accumulate > 1 or self.train.accumulate_decoupled):
            raise ValueError(
                f"train.accumulate must be 1 and not decoupled with several streams, found {self.train.accumulate}: "
                "every stream has an optimizer step of its own; set the batch sizes instead"
            )
        is_head_idle = self.model.text_fusion is not None and self.model.has_match_head and "itm" not in self.objectives
        if self.streams or is_head_idle or not all(o.is_always_due for o in self.objectives.values()):
            self.train.find_unused_parameters = True
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, found {self.seed}")
        if not self.output_dir:
            raise ValueError("output_dir is empty; name a folder")
        self._check_objectives("objectives", self.objectives)
        for name, stream in self.streams.items():
            self._check_objectives(f"streams.{name}.objectives", stream.objectives)
        if "classify" in self.objectives:
            self._check_labelled_data()
        if self.train.accumulate_decoupled and self.streams:
            raise ValueError("train.accumulate_decoupled joins batches of data.train; streams must be empty")
        if self.train.accumulate_decoupled and not self.data.batches_per_draw:
            self.data.batches_per_draw = self.train.accumulate
        if "match" in self.objectives:
            self._check_pair_data()
        self._check_distillation()
        check_embedding_objectives(self.objectives, self.train.accumulate_decoupled)

    def _check_distillation(self) -> None:
        """Teachers and masked students exist for images with one text each."""
        if self.student_text == "masked" and getattr(self.objectives.get("itm"), "positive_text", "") == "first":
            raise ValueError("student_text 'masked' is for one text per image, not for itm.positive_text 'first'")
        for name, stream in self.streams.items():
            unfit = [each for each, objective in stream.objectives.items() if objective.reads_teacher]
            if unfit:
                raise ValueError(f"streams.{name}.objectives.{unfit[0]} needs the teacher, which sees data.train alone")
        if self.model.projections != "both" and any(each.reads_teacher for each in self.objectives.values()):
            raise ValueError("objectives.tgd and fgd compare embeddings; they need model.projections 'both'")

    def _check_labelled_data(self) -> None:
        """Texts with classes need a model with as many classes that reads as many images."""
        for split in ("train", "val", "test"):
            section = getattr(self.data, split)
            if section is None:
                continue
            if not isinstance(section, LabelledConfig):
                raise ValueError(f"objectives.classify needs labelled texts, but data.{split} is {section.name}")
            wanted = {"text_fusion.num_images": section.num_images, "classifier.num_classes": section.num_classes}
            for name, number in wanted.items():
                part, key = name.split(".")
                found = getattr(getattr(self.model, part), key, None)
                if found != number:
                    raise ValueError(f"data.{split} ({section.name}) needs model.{name}: {number}, found {found}")

    def _check_pair_data(self) -> None:
        """Pairs that match or not need two classes, one image a text, and a head that says so."""
        if self.model.text_fusion is None or not self.model.has_match_head or self.model.classifier is not None:
            raise ValueError("objectives.match needs model.text_fusion and has_match_head, and no classifier")
        for split in ("train", "val", "test"):
            section = getattr(self.data, split)
            if section is not None and not _has_labelled_pairs(section):
                raise ValueError(f"objectives.match needs labelled pairs, but data.{split} is {section.name}")

    def _check_objectives(self, place: str, objectives: dict[str, Any]) -> None:
        for name in ("itm", "ttm", "mlm"):
            if name in objectives and self.model.text_fusion is None:
                raise ValueError(f"{place}.{name} needs model.text_fusion")
        if "mlm" in objectives and not self.model.has_masked_language_head:
            raise ValueError(f"{place}.mlm needs model.has_masked_language_head: true")
        if "bbox" in objectives and not self.model.has_box_head:
            raise ValueError(f"{place}.bbox needs model.has_box_head: true")


def _has_labelled_pairs(section: Any) -> bool:
    return isinstance(section, LabelledConfig) and (section.num_classes, section.num_images) == (2, 1)


def check_embedding_objectives(objectives: dict[str, Any], is_decoupled: bool) -> None:
    """ValueError where mixup or decoupled accumulation meets an objective that they cannot serve."""
    if "mixup" in (objective.name for objective in objectives.values()) and len(objectives) > 1:
        raise ValueError(
            f"objectives.mixup mixes what every objective would see and must stand alone; found {', '.join(objectives)}"
        )
    unfit = [name for name, objective in objectives.items() if not objective.reads_embeddings_only]
    if is_decoupled and unfit:
        raise ValueError(
            "train.accumulate_decoupled needs objectives of embeddings alone (itc, one_to_k, nce, mixup); found "
            + ", ".join(unfit)
        )


def load_settings(path: str | os.PathLike) -> Config:
    """The configuration in one of our files."""
    return load_config(Config, path)
