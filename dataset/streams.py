"""Several training sets in one run: which of them a step takes a batch of, and the exact place in each.

The main stream, `image`, is `data.train`. An iteration is a list of batches, in this order: of every further stream
that is drawn, then of the images or of the stream that takes their place this time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from dataset import DATASETS, MASKERS, TRANSFORMS
from dataset.files import DataError
from dataset.loader import Loader
from dataset.text import SkipgramMasker

MAIN = "image"


@dataclass
class StreamConfig:
    """Further training data beside `data.train`, and what it is for. Batch sizes count all processes."""

    train: Annotated[Any, DATASETS]
    objectives: dict[str, Any] = field(default_factory=dict)
    probability: float = 1.0  # that an iteration takes a batch of it; 0: its files are not even opened
    replaces_image: bool = False  # it is taken instead of the images; the very first iteration takes both
    train_transform: Annotated[Any, TRANSFORMS] | None = None  # none: that of data
    mask: Annotated[Any, MASKERS] = field(default_factory=SkipgramMasker.Config)
    batch_size: int = 128
    max_tokens: int = 40
    max_words: int = 40
    drop_last: bool = False
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("max_tokens", 3), ("max_words", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be in [0, 1], found {self.probability}")
        if self.train.name == "regions" and self.train_transform is not None:
            raise ValueError("train_transform: regions have their own, whose settings stand in train")

    @property
    def has_masks(self) -> bool:
        """Whether words are hidden for a masked language model."""
        return "mlm" in self.objectives

    @property
    def num_records(self) -> int:
        """Records of a batch: pictures where batch_size counts their regions."""
        return self.train.max_images if self.train.name == "regions" else self.batch_size

    @property
    def shared_sizes(self) -> dict[str, int]:
        """What every process needs a part of, by setting."""
        pictures = {"train.max_images": self.train.max_images} if self.train.name == "regions" else {}
        return {"batch_size": self.batch_size, **pictures}

    @property
    def longest_text(self) -> int:
        """Tokens that the text encoder must be able to read at once."""
        is_joined = self.train.name == "parallel_text" and self.train.is_translation_modelling
        return self.max_tokens * (2 if is_joined else 1)


def check_streams(streams: Mapping[str, StreamConfig]) -> None:
    """ValueError if streams cannot be used together."""
    if MAIN in streams:
        raise ValueError(f"streams: '{MAIN}' is the name of data.train; choose another")
    wrong = [name for name in streams if not name or "/" in name]
    if wrong:
        raise ValueError(f"streams: names must not be empty or hold '/', found '{wrong[0]}'")
    sum_of_replacing = sum(stream.probability for stream in streams.values() if stream.replaces_image)
    if sum_of_replacing > 1 + 1e-9:
        raise ValueError(
            f"streams: probabilities of those that replace images are {sum_of_replacing:g} together, allowed at most 1"
        )


def choose_streams(streams: Mapping[str, StreamConfig], seed: int, iteration: int) -> list[str]:
    """The streams of an iteration in their order, from seed and iteration alone, so equal on all ranks."""
    *draws, place = np.random.default_rng([seed, iteration, 0, len(MAIN)]).random(len(streams) + 1).tolist()
    replacing = [name for name, stream in streams.items() if stream.replaces_image and stream.probability]
    beside = [
        name
        for (name, stream), draw in zip(streams.items(), draws, strict=True)
        if not stream.replaces_image and draw < stream.probability
    ]
    if iteration == 0:
        return [*beside, *replacing, MAIN]
    for name in replacing:
        if place < streams[name].probability:
            return [*beside, name]
        place -= streams[name].probability
    return [*beside, MAIN]


class StreamLoader:
    """Lists of batches, one of every stream that an iteration takes; only those are made.

    An epoch has as many iterations as there are batches of images, taken or not.
    """

    def __init__(self, loaders: Mapping[str, Loader], streams: Mapping[str, StreamConfig], seed: int) -> None:
        """loaders: of the images and of every stream with a probability above 0."""
        self.loaders, self.streams, self.seed = dict(loaders), dict(streams), seed
        self.iteration = 0
        self._batches: dict[str, Iterator[Any]] = {}

    def __len__(self) -> int:
        """Iterations of an epoch."""
        return len(self.loaders[MAIN])

    @property
    def batch_size(self) -> float:
        """Records of a batch over all ranks, in the mean over many iterations."""
        replaced = sum(stream.probability for stream in self.streams.values() if stream.replaces_image)
        shares = {MAIN: 1 - replaced, **{name: stream.probability for name, stream in self.streams.items()}}
        sizes = {MAIN: self.loaders[MAIN].batch_size, **{name: s.batch_size for name, s in self.streams.items()}}
        return sum(shares[name] * sizes[name] for name in shares) / sum(shares.values())

    def __iter__(self) -> Iterator[list[Any]]:
        """What is left of the current epoch."""
        while True:
            chosen = choose_streams(self.streams, self.seed, self.iteration)
            batches = [self._next_batch(name) for name in chosen]
            self.iteration += 1  # a state saved from here on goes on behind these batches
            yield batches
            if self.iteration % len(self) == 0:
                return

    def _next_batch(self, name: str) -> Any:
        if name not in self._batches:
            self._batches[name] = _endless(self.loaders[name])
        return dataclasses.replace(next(self._batches[name]), stream=name)

    def state_dict(self) -> dict[str, Any]:
        """The number of iterations done and the place in every stream; equal on all ranks."""
        return {"iteration": self.iteration, "loaders": {k: loader.state_dict() for k, loader in self.loaders.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place, also one saved with another number of ranks or workers."""
        saved = state.get("loaders", {MAIN: state})
        if saved.keys() != self.loaders.keys():
            found = f"{', '.join(saved)}; now there are {', '.join(self.loaders)}"
            raise DataError(f"the state was saved with the streams {found}")
        self.iteration, self._batches = state["iteration"], {}
        for name, loader in self.loaders.items():
            loader.load_state_dict(saved[name])


def _endless(loader: Loader) -> Iterator[Any]:
    while True:
        yield from loader
