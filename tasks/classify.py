"""Evaluation of classification: every text of every language once, whatever the number of processes.

Letters: T texts of all sets, I images of a text, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Literal

import torch
from torch import Tensor

from dataset.batch import pad_texts
from dataset.gallery import end_reading
from dataset.labelled import LabelledSet
from models.model import Model
from models.text_encoder import TextState
from utils.distributed import all_reduce_sum, rank, world_size
from utils.label_metrics import METRICS, chance
from utils.metrics import mean_metrics, mean_without_english
from utils.precision import DTYPES, Precision

Place = tuple[str, int]  # language, number of the item in its set


class LabelEvaluation:
    """Scores the labelled sets of a split."""

    @dataclass
    class Config:
        name: str = "labels"
        metric: Literal["accuracy", "auc"] = "accuracy"
        batch_size: int = 64  # texts at once on each process
        precision: Precision = "fp32"

        def __post_init__(self) -> None:
            if self.batch_size < 1:
                raise ValueError(f"batch_size must be at least 1, found {self.batch_size}")

    def __init__(self, config: Config, data: Any, output_dir: str) -> None:
        self.config, self.data = config, data
        self.headline = config.metric
        # Called with the name of a set before it is scored, where every set has weights of its own (few-shot models).
        self.before_set: Callable[[str], None] | None = None

    def __call__(self, model: Model, split: str) -> dict[str, Any]:
        """The metric of every set of a split, their means with and without English (IGLUE's average), and what
        guessing reaches; {} without data.
        """
        sets = self.data.labelled_sets(split)
        if not sets:
            return {}
        logits: dict[str, Tensor] = {}
        for group in groups_with_one_model(sets, self.before_set):
            logits |= self.score(model, group)
        metrics, metric = {}, self.config.metric
        for name, labelled in sets.items():
            label = torch.tensor([item.label for item in labelled.items])
            metrics[name] = {metric: METRICS[metric](logits[name], label)}
        metrics = with_means(metrics)
        metrics["chance"] = {metric: chance(metric, next(iter(sets.values())).num_classes)}
        return metrics

    def score(self, model: Model, sets: dict[str, LabelledSet]) -> dict[str, Tensor]:
        """Logits (T, C) of every set, the same on all processes; texts with the same pictures are scored together."""
        device, precision = next(model.parameters()).device, self.config.precision
        sizes = [len(labelled.items) for labelled in sets.values()]
        starts = dict(zip(sets, [0, *accumulate(sizes)]))
        logits = torch.zeros(sum(sizes), next(iter(sets.values())).num_classes, device=device)
        for batch in own_places(sets, self.config.batch_size):
            with torch.autocast(device.type, DTYPES.get(precision), enabled=precision != "fp32"):
                texts, tokens, image_of_text = encode_places(model, sets, batch, device)
                found = model.label_logits(model.image_side(tokens), model.text_side(texts), image_of_text)
            logits[[starts[name] + k for name, k in batch]] = found.float()
        # Rows of other processes are zero here, so the sum puts all of them together.
        parts = all_reduce_sum(logits).cpu().split(sizes)
        end_reading(sets.values())
        return dict(zip(sets, parts, strict=True))


def groups_with_one_model(
    sets: dict[str, LabelledSet], before_set: Callable[[str], None] | None
) -> Iterator[dict[str, LabelledSet]]:
    """All sets together, or one by one where before_set loads other weights for each."""
    if before_set is None:
        yield sets
        return
    for name, labelled in sets.items():
        before_set(name)
        yield {name: labelled}


def with_means(metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The metrics by language with their means, over all and (IGLUE's average) over all but English."""
    others = mean_without_english(metrics)
    means = {"mean": mean_metrics(list(metrics.values()))}
    return metrics | means | ({"mean_without_en": others} if others else {})


def own_places(sets: dict[str, LabelledSet], batch_size: int) -> Iterator[list[Place]]:
    """This process's share of all texts, those with the same pictures side by side, whatever their languages."""
    by_pictures: dict[tuple[str, ...], list[Place]] = {}
    for name, labelled in sets.items():
        for k, item in enumerate(labelled.items):
            by_pictures.setdefault(item.image_keys, []).append((name, k))
    own = [place for group in list(by_pictures.values())[rank() :: world_size()] for place in group]
    for start in range(0, len(own), batch_size):
        yield own[start : start + batch_size]


def encode_places(
    model: Model, sets: dict[str, LabelledSet], batch: list[Place], device: torch.device
) -> tuple[TextState, Tensor, Tensor]:
    """Some texts, the tokens (M, N, V) of their pictures, and which of these each text sees (I, n); a picture that
    several of them show is read and encoded once.
    """
    items = [sets[name].items[k] for name, k in batch]
    origin: dict[str, tuple[str, int, int]] = {}  # picture -> language, item, which of its pictures
    for (name, k), item in zip(batch, items, strict=True):
        for side, key in enumerate(item.image_keys):
            origin.setdefault(key, (name, k, side))
    pictures = sorted(origin, key=lambda key: origin[key][0])  # those of one set are read together
    row = {key: number for number, key in enumerate(pictures)}
    images = []
    for name, group in groupby((origin[key] for key in pictures), key=lambda place: place[0]):
        images.append(sets[name].read_images([place[1:] for place in group]))
    tokens = model.encode_image(torch.cat(images).to(device)).tokens
    texts = pad_texts([item.ids for item in items], model.text_encoder.config.pad_id)
    state = model.encode_text(texts.ids.to(device), texts.lengths)
    image_of_text = torch.tensor([[row[key] for key in item.image_keys] for item in items]).T  # (I, n)
    return state, tokens, image_of_text
