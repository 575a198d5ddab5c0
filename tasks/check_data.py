"""`--task check_data`: reads every record of a run's data without a model, and tells what is wrong with it."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.check import Checker, Count, LanguageCount, count_chunks, cut_chunks
from dataset.check_pairs import Split, find_leaks, find_repeats
from dataset.data import Data, prepare_files
from dataset.files import DataError
from dataset.loader import too_few_records
from dataset.samples import DescribedDataset
from tasks.check_report import check_page, check_table
from tasks.tool import RunToolConfig, Tool
from utils import distributed
from utils.progress import Progress

EVALUATED = ("val", "test", "translated_test")
STREAM = "streams."
CONTRASTIVE = ("itc", "one_to_k", "nce", "ttc")  # objectives to which equal samples of a batch are wrong answers

log = logging.getLogger(__name__)


class CheckData(Tool):
    """Counts the records of every configured split, in parallel and over the ranks, and judges what they come to."""

    reads_run_config = True

    @dataclass
    class Config(RunToolConfig):
        limit: int = 0  # look at so many records of each split, evenly spread; 0: at all of them
        num_workers: int = -1  # processes that read, for each process of the group; -1: all cores

        def __post_init__(self) -> None:
            if self.limit < 0 or self.num_workers < -1:
                raise ValueError(
                    f"limit must be at least 0 and num_workers at least -1; found {self.limit} and {self.num_workers}"
                )

    def run(self) -> dict[str, Any]:
        """The counts of every set, leaks between them, and whether a run could use them; also as report.html."""
        started, run = time.monotonic(), self.config.run
        names = set_names(run)
        result: dict[str, Any] = {"splits": {}, "leaks": {}, "limit": self.config.limit}
        result["max_bad_share"] = run.data.max_bad_share
        datasets, errors = self._open(names)
        counts = self._count(datasets, run.model.image_encoder.image_size)
        if distributed.is_main():
            arrays = {name: Split.of(count) for name, count in counts.items()}
            for name in names:
                if name in errors:
                    result["splits"][name] = {"error": errors[name], "usable": False}
                    continue
                judged = judge(counts[name], run.data.max_bad_share)
                stream = run.streams[name.removeprefix(STREAM)] if name.startswith(STREAM) else None
                batch_size = stream.num_records if stream else run.data.batch_size
                judged["repeats"] = find_repeats(arrays[name], batch_size, datasets[name].where_record)
                objectives = stream.objectives if stream else run.objectives if name == "train" else {}
                judged["is_contrasted"] = any(each in objectives for each in CONTRASTIVE)
                if name == "train":
                    self._judge_size(judged, len(datasets[name]))
                result["splits"][name] = judged
            for name, trained in ((a, b) for a in EVALUATED for b in names if b not in EVALUATED):
                if name in arrays and trained in arrays:
                    places = datasets[trained].where_record, datasets[name].where_record
                    result["leaks"][f"{name} in {trained}"] = find_leaks(arrays[trained], arrays[name], *places)
            result["usable"] = all(split["usable"] for split in result["splits"].values())
            result["seconds"] = round(time.monotonic() - started, 1)
            self._write_page(result)
        return distributed.broadcast_object(result)

    def summary(self, result: dict[str, Any]) -> str:
        """The table that ends the run, and where the page is."""
        return check_table(result) + f"\nDetails: {Path(self.config.output_dir) / 'report.html'}\n"

    def succeeded(self, result: dict[str, Any]) -> bool:
        """Whether training and evaluation would not stop because of bad records."""
        return result["usable"]

    def _open(self, names: list[str]) -> tuple[dict[str, DescribedDataset], dict[str, str]]:
        """The data sets by name, and what is wrong with those that cannot be opened."""
        run = self.config.run
        encoder = run.model.image_encoder
        data = Data(run.data, image_size=encoder.image_size, seed=run.seed, streams=run.streams, grid=encoder.grid)
        made = distributed.broadcast_object(self._make_files(names) if distributed.is_main() else {})
        datasets, errors = {}, dict(made)
        for name in (name for name in names if name not in errors):
            try:
                datasets[name] = open_described(data, name)
            except (DataError, FileNotFoundError) as error:
                errors[name] = str(error)
        return datasets, errors

    def _make_files(self, names: list[str]) -> dict[str, str]:
        """Let data sets make the files that they make for themselves, as a run would; what went wrong by name."""
        errors = {}
        for name in names:
            try:
                prepare_files(self.config.run.data, () if name.startswith(STREAM) else (name,), log.info)
            except (ValueError, OSError) as error:
                errors[name] = str(error)
        return errors

    def _count(self, datasets: dict[str, DescribedDataset], image_size: int) -> dict[str, Count]:
        """The count of every split over all ranks, on the first one."""
        rank, world_size = distributed.rank(), distributed.world_size()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        num_workers = self.config.num_workers if self.config.num_workers >= 0 else max(cores // local, 1)
        chunks = {
            split: cut_chunks(dataset.num_records, self.config.limit, rank, world_size)
            for split, dataset in datasets.items()
        }
        total = sum(len(chunk) for each in chunks.values() for chunk in each)
        counts = {split: Count() for split in datasets}
        with Progress(total, "records", is_shown=distributed.is_main()) as progress:
            for split, dataset in datasets.items():
                for count in count_chunks(Checker(dataset, chunks[split], image_size), num_workers):
                    counts[split].add(count)
                    progress.advance(count.records)
        gathered: dict[str, Count] = {}
        for split, own in counts.items():
            for count in distributed.gather_objects_on_main(own):
                gathered.setdefault(split, Count()).add(count)
        return gathered

    def _judge_size(self, judged: dict[str, Any], num_records: int) -> None:
        """Enter that a run could not make a batch of the training data."""
        data = self.config.run.data
        if fault := too_few_records(num_records, data.batch_size, drop_last=data.drop_last):
            judged["usable"] = False
            judged["problems"]["fewer records than a batch"] = {"count": 1, "examples": [fault]}

    def _write_page(self, result: dict[str, Any]) -> None:
        folder = Path(self.config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "report.html.partial"
        partial.write_text(check_page(result, str(folder)), encoding="utf-8")
        partial.replace(folder / "report.html")


def set_names(run: Any) -> list[str]:
    """The sets of a run by name: data.train, the streams that are drawn, and what is evaluated."""
    streams = [STREAM + name for name, stream in run.streams.items() if stream.probability]
    return [name for name in ("train", *streams, *EVALUATED) if name in streams or getattr(run.data, name) is not None]


def open_described(data: Data, name: str) -> DescribedDataset:
    """The data set of a split or stream; DataError where its kind cannot tell what its records hold."""
    dataset = data.stream_dataset(name.removeprefix(STREAM)) if name.startswith(STREAM) else data.dataset(name)
    if not hasattr(dataset, "describe"):
        kind = type(dataset).__name__
        raise DataError(f"data.{name}: {kind} has no 'describe' (dataset/samples.py), so it cannot be checked")
    return dataset


def judge(count: Count, max_bad_share: float) -> dict[str, Any]:
    """A count as numbers for people, with the verdict that a run would give: a single bad record never stops one."""
    return {
        "records": count.records,
        "samples": count.units,
        "bad": count.bad,
        "bad_share": count.bad / count.units if count.units else 0.0,
        "usable": count.units > 0 and count.bad <= max(max_bad_share * count.units, 1),
        "problems": {
            reason: {"count": number, "examples": [text for _, text in count.examples[reason]]}
            for reason, number in count.reasons.most_common()
        },
        "languages": {name: describe_language(language) for name, language in sorted(count.languages.items())},
        "images": {
            "count": count.images,
            "readable": int(count.sides.sum()),
            "mean_bytes": count.image_bytes / max(int(count.sides.sum()), 1),
            "smaller_than_input": count.small,
            "shorter_side": quantiles(count.sides, (0.05, 0.5, 0.95)),
        },
        "lengths": sum((language.lengths for language in count.languages.values()), np.zeros(1, np.int64)).tolist(),
    }


def describe_language(language: LanguageCount) -> dict[str, Any]:
    """Captions of a language, their lengths in tokens, what is cut off, and the share of unknown pieces."""
    longest = np.flatnonzero(language.lengths)
    return {
        "captions": language.captions,
        "missing": language.missing,
        "empty": language.empty,
        "tokens": quantiles(language.lengths, (0.5, 0.95)) | {"max": int(longest[-1]) if len(longest) else 0},
        "over_max_words": language.cut_words,
        "over_max_tokens": language.cut_tokens,
        "cut": language.cut,
        "unknown_share": language.unknown / language.pieces if language.pieces else 0.0,
    }


def quantiles(histogram: np.ndarray, shares: tuple[float, ...]) -> dict[str, int]:
    """{p50: the value that half of the counted things do not exceed, ...} from counts by value."""
    total, sums = int(histogram.sum()), np.cumsum(histogram)
    return {f"p{round(100 * s)}": int(np.searchsorted(sums, s * total)) if total else 0 for s in shares}
