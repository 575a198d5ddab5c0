"""The data and evaluation of CCLM's files for XVNLI and NLVR2 / MaRVL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from compat.cclm_finetuning import NUM_WORKERS, fill
from compat.original import Circumstances, Original

LABEL_KEYS = {
    "train_file", "val_file", "test_file", "gmt_test_file", "image_root", "max_words", "max_tokens", "num_labels",
    "batch_size", "num_workers",
}  # fmt: skip
# What the original's launch wrote data/marvl/<name>.json from; read where it lies.
MARVL = "iglue/datasets/marvl/{}_shot/annotations/{}.jsonl"


def label_settings(original: Original, circumstances: Circumstances) -> dict[str, Any]:
    """Statements with one picture (`num_labels` is given) or with two, by language."""
    is_entailment = "num_labels" in original.tree.value
    placeholders, notices = circumstances.placeholders, circumstances.notices
    language = placeholders.get("lang", "en")
    paths = {key: [fill(x, placeholders, original, key) for x in original.files(key)] for key in SPLITS}
    splits: dict[str, Any] = {key: {language: one_or_all(found)} for key, found in paths.items() if found}
    # The few-shot files name no test set: the one watched while training is the test set of the language.
    splits["test_file"] = original.get("test_file") or splits.get("val_file")
    splits["gmt_test_file"] = original.get("gmt_test_file")
    root = original.get("image_root")
    layout = {"name": "xvnli" if is_entailment else "nlvr"} | ({"image_root": root.rstrip("/")} if root else {})
    data = {
        f"data.{ours}": {**layout, "files": {name: _unconverted(path, notices) for name, path in files.items()}}
        for theirs, ours in {**SPLITS, "test_file": "test", "gmt_test_file": "translated_test"}.items()
        if (files := splits.get(theirs))
    }
    batch_size = original.whole_number("batch_size")
    return {
        "objectives": {"classify": {}},
        "evaluation": {"name": "labels"},
        **data,
        "data.max_tokens": original.node("max_tokens"),
        "data.max_words": original.node("max_words") or (80 if is_entailment else 30),
        "data.truncate": is_entailment,
        "data.truncate_evaluation": False,
        "data.train_transform": {"name": "augmented_crop", "scale": [0.5, 1.0]},
        "data.num_workers": original.get("num_workers", NUM_WORKERS),
        "data.batch_size": batch_size and batch_size * circumstances.world_size,
    }


SPLITS = {"train_file": "train", "val_file": "val"}


def one_or_all(paths: list[str]) -> str | list[str]:
    """The only path, or the list."""
    return paths[0] if len(paths) == 1 else paths


def _unconverted(path: str | list[str], notices: list[str]) -> str | list[str]:
    """IGLUE's file for one of data/marvl/ that is absent."""
    if not isinstance(path, str):
        return [_unconverted(each, notices) for each in path]
    found = re.fullmatch(r"data/marvl/(marvl-\w+?(?:_train\w+)?)\.json", path)
    if found is None or Path(path).is_file():
        return path
    source = MARVL.format("few" if "_train" in found[1] else "zero", found[1])
    notice = "data/marvl has no converted files; IGLUE's files of MaRVL are read where they lie"
    notices += [] if notice in notices else [notice]
    return source
