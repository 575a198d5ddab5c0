"""The data section of a configuration, and the loader and galleries that it describes."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from PIL import Image

from dataset import DATASETS, MASKERS, TRANSFORMS
from dataset.bad_records import BadRecords
from dataset.files import BadRecord, DataError
from dataset.gallery import Gallery, ImageReader
from dataset.labelled import LabelledSet
from dataset.loader import Loader
from dataset.readers import list_files
from dataset.samples import Masker, Preprocessing, stable_id
from dataset.streams import MAIN, StreamConfig, StreamLoader
from dataset.text import SkipgramMasker, load_tokenizer
from dataset.transforms import AugmentedCrop, Resize

THUMBNAIL_SIZE = 96
SPLITS = ("train", "val", "test")

log = logging.getLogger(__name__)
Found = TypeVar("Found")


@runtime_checkable
class PreparesFiles(Protocol):
    """A data section that can make its files out of what was downloaded."""

    @classmethod
    def prepare(cls, sections: Sequence[Any], notify: Callable[[str], None]) -> None:
        """Make what sections of this class lack; FileNotFoundError says what that would need."""


@dataclass
class DataConfig:
    """What is read, how words and pictures become numbers, and in which amounts. Batch sizes count all processes."""

    tokenizer: str  # Hugging Face folder, tokenizer.json[.gz], vocab.txt or *.model
    train: Annotated[Any, DATASETS] | None = None
    val: Annotated[Any, DATASETS] | None = None
    test: Annotated[Any, DATASETS] | None = None
    translated_test: Annotated[Any, DATASETS] | None = None  # the test captions in English, for --gmt
    languages: list[str] = field(default_factory=list)  # evaluate only these; none: all that the files have
    train_transform: Annotated[Any, TRANSFORMS] = field(default_factory=AugmentedCrop.Config)
    test_transform: Annotated[Any, TRANSFORMS] = field(default_factory=Resize.Config)
    mask: Annotated[Any, MASKERS] = field(default_factory=SkipgramMasker.Config)
    batch_size: int = 128
    # A debiased mixture stays with a set for so many batches; 0: for the batches that train.accumulate_decoupled joins.
    batches_per_draw: int = 0
    max_tokens: int = 40
    max_words: int = 40  # 0: captions stay as they were written
    truncate: bool = True  # False keeps training captions whole, as Multi30K and MSCOCO fine-tuning do
    truncate_evaluation: bool = True
    drop_last: bool = True
    num_workers: int = 0
    max_bad_share: float = 0.01
    cache_dir: str = "~/.cache/rosetta-vl/index"  # line indices; empty keeps them in memory

    def __post_init__(self) -> None:
        for name, least in (
            ("batch_size", 1),
            ("batches_per_draw", 0),
            ("max_tokens", 3),
            ("max_words", 0),
            ("num_workers", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")
        files = getattr(self.test, "files", None)
        absent = [name for name in self.languages if isinstance(files, dict) and name not in files]
        if absent:
            raise ValueError(f"languages: test has no {', '.join(absent)}; found: {', '.join(files)}")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share must be in [0, 1], found {self.max_bad_share}")


def prepare_files(config: DataConfig, splits: Sequence[str], notify: Callable[[str], None]) -> None:
    """Make the files of these splits that a data set makes for itself; nothing to do where all are there."""
    sections = [getattr(config, split) for split in splits]
    for kind in dict.fromkeys(type(section) for section in sections if isinstance(section, PreparesFiles)):
        kind.prepare([section for section in sections if isinstance(section, kind)], notify)


class Data:
    """The parts of a data section, built when they are asked for; a wrong tokenizer or file name shows at once."""

    def __init__(
        self,
        config: DataConfig,
        *,
        image_size: int,
        seed: int,
        has_masks: bool = False,
        streams: Mapping[str, StreamConfig] | None = None,
        grid: int = 0,
    ) -> None:
        """grid: the image encoder's tokens form grid x grid patches, which regions are marked on; 0: not known."""
        self.config, self.image_size, self.seed, self.has_masks = config, image_size, seed, has_masks
        self.streams, self.grid = dict(streams or {}), grid
        self.tokenizer = load_tokenizer(config.tokenizer)
        self._galleries: dict[str, dict[str, list[Gallery]]] = {}
        self._labelled: dict[str, dict[str, LabelledSet]] = {}
        self._places: dict[str, tuple[ImageReader, int]] = {}

    def check(self, splits: tuple[str, ...] = SPLITS) -> None:
        """Raise if a file that these splits name does not exist and cannot be made."""
        prepare_files(self.config, splits, log.info)
        files = Preprocessing(self.tokenizer, None).files
        sections = [getattr(self.config, split) for split in splits]
        if "train" in splits:
            sections += [stream.train for stream in self.streams.values() if stream.probability]
        for section in filter(None, sections):
            by_language = section.files if isinstance(section.files, dict) else {"": section.files}
            for paths in by_language.values():
                list_files([paths] if isinstance(paths, str) else paths, files)

    def train_loader(self, rank: int = 0, world_size: int = 1, *, pin_memory: bool = False) -> Loader | StreamLoader:
        """This rank's batches of the training set; with several streams a list of batches for every iteration."""
        common = {"rank": rank, "world_size": world_size, "pin_memory": pin_memory}
        config = self.config
        loader = self._loader(self.dataset("train"), config, self.seed, config.batch_size, **common)
        if not self.streams:
            return loader
        loaders = {MAIN: loader}
        for name, stream in self.streams.items():
            if stream.probability:
                first, last = (stream.batch_size * r // world_size for r in (rank, rank + 1))
                dataset, seed = self.stream_dataset(name, num_rows=last - first), stable_id(f"{self.seed}/{name}")
                loaders[name] = self._loader(dataset, stream, seed, stream.num_records, **common)
        return StreamLoader(loaders, self.streams, self.seed)

    def _loader(
        self, dataset: Any, settings: DataConfig | StreamConfig, seed: int, batch_size: int, **common: Any
    ) -> Loader:
        loader = Loader(
            dataset,
            batch_size=batch_size,
            seed=seed,
            num_workers=settings.num_workers,
            drop_last=settings.drop_last,
            max_bad_share=self.config.max_bad_share,
            batches_per_draw=max(self.config.batches_per_draw, 1),
            **common,
        )
        self._count(dataset, loader.bad_records)
        return loader

    def galleries(self, split: str) -> dict[str, list[Gallery]]:
        """The folds (mostly one) of every language of a split; {} if the split is not configured."""
        if getattr(self.config, split) is None:
            return {}
        if split not in self._galleries:
            dataset, bad_records = self._open(split)
            self._galleries[split] = self._chosen(split, dataset.galleries(bad_records, self.config.num_workers))
        for gallery in (fold for folds in self._galleries[split].values() for fold in folds):
            self._places.update({p: (gallery.reader, r) for p, r in zip(gallery.image_paths, gallery.records)})
        return self._galleries[split]

    def labelled_sets(self, split: str) -> dict[str, LabelledSet]:
        """The labelled texts of every language of a split; {} if the split is not configured."""
        if getattr(self.config, split) is None:
            return {}
        if split not in self._labelled:
            dataset, bad_records = self._open(split)
            self._labelled[split] = self._chosen(split, dataset.labelled_sets(bad_records, self.config.num_workers))
        return self._labelled[split]

    def _open(self, split: str) -> tuple[Any, BadRecords]:
        """The data set of a split for evaluation, and the account of what it leaves out."""
        dataset, bad_records = self.dataset(split), BadRecords(self.config.max_bad_share)
        self._count(dataset, bad_records)
        return dataset, bad_records

    def _chosen(self, split: str, found: dict[str, Found]) -> dict[str, Found]:
        """The wanted ones of what a split has by language."""
        wanted = [language for language in self.config.languages if language in found]
        if self.config.languages and not wanted:
            raise DataError(f"data.{split} has none of the wanted languages; found: {', '.join(found)}")
        return {name: found[name] for name in wanted or found}

    def thumbnail(self, path: str) -> str:
        """A picture of the galleries read last as a small data URI; empty if it cannot be read."""
        reader, record = self._places[path]
        small = Resize(Resize.Config(), THUMBNAIL_SIZE)
        try:
            pixels = small(reader.read(record))
        except BadRecord:
            return ""
        packed = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(packed, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()

    def _count(self, dataset: Any, bad_records: BadRecords) -> None:
        """Enter what reading the files has left out; raises if that is too much already."""
        if dataset.skipped:
            bad_records.add(len(dataset) + len(dataset.skipped), dataset.skipped)
            bad_records.end_epoch()
            bad_records.start_epoch()

    def dataset(self, split: str) -> Any:
        """The data set of a split, its files listed and indexed."""
        section = getattr(self.config, split)
        if section is None:
            raise ValueError(f"data.{split} is missing; it names the data set")
        is_training = split == "train"
        transform = self.config.train_transform if is_training else self.config.test_transform
        preprocessing = Preprocessing(
            tokenizer=self.tokenizer,
            transform=TRANSFORMS.load(transform.name)(transform, self.image_size),
            max_tokens=self.config.max_tokens,
            max_words=self.config.max_words,
            truncate=self.config.truncate if is_training else self.config.truncate_evaluation,
            masker=self._masker(self.config.mask) if is_training and self.has_masks else None,
            cache_dir=self._cache_dir,
            grid=self.grid,
        )
        return DATASETS.load(section.name)(section, preprocessing)

    def stream_dataset(self, name: str, num_rows: int = 0) -> Any:
        """The data set of a further stream; num_rows: texts of this process in a batch."""
        stream = self.streams[name]
        transform = stream.train_transform or self.config.train_transform
        preprocessing = Preprocessing(
            tokenizer=self.tokenizer,
            transform=TRANSFORMS.load(transform.name)(transform, self.image_size),
            max_tokens=stream.max_tokens,
            max_words=stream.max_words,
            masker=self._masker(stream.mask) if stream.has_masks else None,
            cache_dir=self._cache_dir,
            grid=self.grid,
            num_rows=num_rows,
        )
        return DATASETS.load(stream.train.name)(stream.train, preprocessing)

    def _masker(self, config: Any) -> Masker:
        return MASKERS.load(config.name).of(config, self.tokenizer)

    @property
    def _cache_dir(self) -> str | None:
        return str(Path(self.config.cache_dir).expanduser()) if self.config.cache_dir else None
