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
from dataset.data import Data
from dataset.files import DataError
from dataset.samples import DescribedDataset
from tasks.check_report import check_page, check_table
from tasks.tool import RunToolConfig, Tool
from utils import distributed
from utils.progress import Progress

SPLITS = ("train", "val", "test", "translated_test")

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
        """The counts of every split, leaks between them, and whether a run could use them; also as report.html."""
        started, run = time.monotonic(), self.config.run
        data = Data(run.data, image_size=run.model.image_encoder.image_size, seed=run.seed)
        result: dict[str, Any] = {"splits": {}, "leaks": {}, "limit": self.config.limit}
        result["max_bad_share"] = run.data.max_bad_share
        datasets, arrays = {}, {}
        for split in (name for name in SPLITS if getattr(run.data, name) is not None):
            try:
                datasets[split] = open_described(data, split)
            except (DataError, FileNotFoundError) as error:
                result["splits"][split] = {"error": str(error), "usable": False}
        counts = self._count(datasets, data.image_size)
        if distributed.is_main():
            for split, count in counts.items():
                arrays[split] = Split.of(count)
                result["splits"][split] = judge(count, run.data.max_bad_share)
                repeats = find_repeats(arrays[split], run.data.batch_size, datasets[split].where_record)
                result["splits"][split]["repeats"] = repeats
            for split in arrays.keys() - {"train"} if "train" in arrays else ():
                places = datasets["train"].where_record, datasets[split].where_record
                result["leaks"][split] = find_leaks(arrays["train"], arrays[split], *places)
            result["splits"] = {name: result["splits"][name] for name in SPLITS if name in result["splits"]}
            result["leaks"] = {name: result["leaks"][name] for name in SPLITS if name in result["leaks"]}
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

    def _write_page(self, result: dict[str, Any]) -> None:
        folder = Path(self.config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "report.html.partial"
        partial.write_text(check_page(result, str(folder)), encoding="utf-8")
        partial.replace(folder / "report.html")


def open_described(data: Data, split: str) -> DescribedDataset:
    """The data set of a split; DataError where its kind cannot tell what its records hold."""
    dataset = data.dataset(split)
    if not hasattr(dataset, "describe"):
        kind = type(dataset).__name__
        raise DataError(f"data.{split}: {kind} has no 'describe' (dataset/samples.py), so it cannot be checked")
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
