"""Several data sets as one, in three orders: all shuffled together, one after the other, or each batch from one set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import numpy as np

from dataset import DATASETS
from dataset.bad_records import BadRecords
from dataset.batch import ImageTextBatch, Skipped
from dataset.files import DataError
from dataset.gallery import Gallery
from dataset.samples import Contents, Preprocessing, Sample
from dataset.sections import locate

Order = Literal["shuffle", "sequential", "debias"]


class Plan(Protocol):
    """The records of every epoch, in order."""

    num_records: int

    def order(self, seed: int, epoch: int) -> np.ndarray: ...


def count_draws(size: int, draw_size: int, world_size: int) -> int:
    """Whole draws until a set is through; one whose rows do not divide by the ranks is filled up, as the original's
    sampler does.
    """
    if draw_size % world_size:
        return size // draw_size
    return -(-size // world_size) // (draw_size // world_size)


@dataclass(frozen=True)
class SequentialPlan:
    """Whole batches of the first set, then of the second, ...; each set in another order every epoch."""

    sizes: tuple[int, ...]
    batch_size: int
    world_size: int

    @property
    def num_records(self) -> int:
        """Records of an epoch; the rest of a set that fills no batch is left out."""
        return sum(self._records_of_sets)

    @property
    def _records_of_sets(self) -> list[int]:
        return [count_draws(size, self.batch_size, self.world_size) * self.batch_size for size in self.sizes]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Record numbers of all sets together, (num_records,)."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        parts = []
        for k, (size, num_records) in enumerate(zip(self.sizes, self._records_of_sets, strict=True)):
            permutation = np.random.default_rng([seed, epoch, k]).permutation(size)
            parts.append(np.resize(permutation, num_records) + starts[k])
        return np.concatenate(parts)


@dataclass(frozen=True)
class DebiasedPlan:
    """Every draw takes `draw_size` records of one set, chosen with the probability of its share of all records.

    A contrastive batch then holds no negatives that are easy because they come from elsewhere (ZeroVL, arXiv
    2112.09331, section 3.2). A set that is through starts again in another order. Draws and orders are functions of
    seed and epoch, so all ranks have the same. An epoch has as many draws as the sets have together.
    """

    sizes: tuple[int, ...]
    draw_size: int
    world_size: int

    @property
    def draws_of_sets(self) -> list[int]:
        """Draws until a set is through."""
        return [count_draws(size, self.draw_size, self.world_size) for size in self.sizes]

    @property
    def num_draws(self) -> int:
        return sum(self.draws_of_sets)

    @property
    def num_records(self) -> int:
        return self.num_draws * self.draw_size

    def sets(self, seed: int, epoch: int) -> np.ndarray:
        """The set of every draw, (num_draws,)."""
        shares = np.array(self.sizes) / sum(self.sizes)
        return np.random.default_rng([seed, epoch]).choice(len(self.sizes), size=self.num_draws, p=shares)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Record numbers of all sets together, (num_records,)."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        order, sets = np.empty((self.num_draws, self.draw_size), np.int64), self.sets(seed, epoch)
        for k, (size, num_draws) in enumerate(zip(self.sizes, self.draws_of_sets, strict=True)):
            places = np.flatnonzero(sets == k)
            for number, first in enumerate(range(0, len(places), num_draws)):
                permutation = np.random.default_rng([seed, epoch, k, number]).permutation(size)
                through = np.resize(permutation, num_draws * self.draw_size).reshape(num_draws, self.draw_size)
                own = places[first : first + num_draws]
                order[own] = through[: len(own)] + starts[k]
        return order.ravel()


class Mixture:
    """The samples of all sets under one running number; `plan` says in which order an epoch takes them."""

    @dataclass
    class Config:
        sets: dict[str, Annotated[Any, DATASETS]] = field(default_factory=dict)
        order: Order = "debias"
        name: str = "mixture"

        def __post_init__(self) -> None:
            if not self.sets:
                raise ValueError("sets is empty; name data sets, such as {sbu: {name: csv_pairs, ...}}")
            nested = [name for name, section in self.sets.items() if section.name == self.name]
            if nested:
                raise ValueError(f"sets.{nested[0]} is a mixture itself; name its sets here")

        @property
        def files(self) -> dict[str, list[str]]:
            """The files of all sets."""
            found: dict[str, list[str]] = {}
            for name, section in self.sets.items():
                groups = section.files.values() if isinstance(section.files, dict) else [section.files]
                found[name] = [path for group in groups for path in ([group] if isinstance(group, str) else group)]
            return found

    def __init__(self, config: Config, preprocessing: Preprocessing) -> None:
        self.config, self.preprocessing = config, preprocessing
        self.sets = {name: DATASETS.load(section.name)(section, preprocessing) for name, section in config.sets.items()}
        self.languages = list(dict.fromkeys(language for part in self.sets.values() for language in part.languages))
        self.ends = np.cumsum([len(part) for part in self.sets.values()])

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def skipped(self) -> list[Skipped]:
        return [record for part in self.sets.values() for record in part.skipped]

    def plan(self, batch_size: int, world_size: int, batches_per_draw: int) -> Plan | None:
        """The order of every epoch; None: all shuffled. DataError if a set is smaller than what is drawn of it."""
        sizes = tuple(len(part) for part in self.sets.values())
        if self.config.order == "shuffle":
            total = sum(sizes)
            is_filled_up = count_draws(total, batch_size, world_size) * batch_size > total >= batch_size
            return SequentialPlan((total,), batch_size, world_size) if is_filled_up else None
        draw_size = batch_size * (batches_per_draw if self.config.order == "debias" else 1)
        for name, size in zip(self.sets, sizes, strict=True):
            if size < draw_size:
                raise DataError(
                    f"data.train: set '{name}' has {size} records, but every batch is of one set; needed: at least "
                    f"{draw_size}; a smaller batch or order: shuffle would do"
                )
        if self.config.order == "sequential":
            return SequentialPlan(sizes, batch_size, world_size)
        return DebiasedPlan(sizes, draw_size, world_size)

    def sample(self, index: int, generator: np.random.Generator) -> Sample:
        """The sample of a set, its languages counted as the mixture does."""
        part, number = self._locate(index)
        sample = part.sample(number, generator)
        sample.languages = [self.languages.index(part.languages[language]) for language in sample.languages]
        return sample

    def where(self, index: int) -> str:
        part, number = self._locate(index)
        return part.where(number)

    def collate(self, samples: list[Sample], skipped: list[Skipped]) -> ImageTextBatch:
        return next(iter(self.sets.values())).collate(samples, skipped)

    def galleries(self, bad_records: BadRecords, num_threads: int = 1) -> dict[str, list[Gallery]]:
        """The galleries of every set under its name, with the language where it has several."""
        found = {}
        for name, part in self.sets.items():
            galleries = part.galleries(bad_records, num_threads)
            found |= {name if len(galleries) == 1 else f"{name}_{key}": folds for key, folds in galleries.items()}
        return found

    @property
    def num_records(self) -> int:
        return sum(part.num_records for part in self.sets.values())

    def where_record(self, number: int) -> str:
        part, number = self._locate_record(number)
        return part.where_record(number)

    def describe(self, number: int) -> Contents:
        """What the record of a set holds."""
        part, number = self._locate_record(number)
        return part.describe(number)

    def _locate_record(self, number: int) -> tuple[Any, int]:
        ends = np.cumsum([part.num_records for part in self.sets.values()])
        k, number = locate(ends, number)
        return list(self.sets.values())[k], number

    def _locate(self, index: int) -> tuple[Any, int]:
        k, number = locate(self.ends, index)
        return list(self.sets.values())[k], number
