"""The data and evaluation of CCLM's and CCRK's fine-tuning files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compat.original import Circumstances, Original
from utils.config import ConfigError

RETRIEVAL_KEYS = {
    "train_file", "val_file", "test_file", "gmt_test_file", "image_root", "max_words", "max_tokens", "k_test",
    "batch_size_train", "batch_size_test", "batch_size_test_text", "num_workers",
}  # fmt: skip
NUM_WORKERS = 4  # fixed in the originals' fine-tuning programs


def retrieval_settings(original: Original, circumstances: Circumstances) -> dict[str, Any]:
    """Pairs of the three layouts; few-shot files hold `{}` for the language and the number of shots."""
    placeholders = circumstances.placeholders
    train, val, language = original.files("train_file"), original.get("val_file"), placeholders.get("lang", "en")
    train = [fill(name, placeholders, original, "train_file") for name in train]
    if isinstance(val, str):
        val = {language: fill(val, placeholders, original, "val_file")}
    layout = _layout(original)
    is_pairs = layout["name"] == "image_text_pairs"
    # The few-shot files name no test set: the one watched while training is the test set of the language.
    test = original.get("test_file") or val
    splits = {"val": val, "test": test, "translated_test": original.get("gmt_test_file")}
    data = {f"data.{split}": {**layout, "files": files, **_folds(files)} for split, files in splits.items() if files}
    batch_size = original.whole_number("batch_size_train")
    return {
        # The contrastive gradient is the originals', so that their numbers come out.
        "objectives": {"itc": {"gather": "local_slice"}, "itm": {}},
        "data.train": {**layout, "files": _by_language(train, [*(val or {}), *(test or {})], language, is_pairs)},
        **data,
        "data.max_tokens": original.node("max_tokens"),
        "data.max_words": original.node("max_words") or (30 if is_pairs else 80),
        "data.truncate": not is_pairs,
        "data.train_transform": {"name": "augmented_crop", "scale": [0.5, 1.0]},
        "data.num_workers": original.get("num_workers", NUM_WORKERS),
        "data.batch_size": batch_size and batch_size * circumstances.world_size,
        "evaluation.batch_size_image": original.node("batch_size_test"),
        "evaluation.batch_size_text": original.node("batch_size_test_text"),
        "evaluation.num_candidates": original.node("k_test"),
    }


def fill(name: str, placeholders: Mapping[str, str], original: Original, key: str) -> str:
    """A file name with the language, then the number of shots, in its `{}`; ConfigError if one is missing."""
    words = tuple(placeholders.values())
    wanted = name.count("{}")
    if wanted > len(words):
        raise ConfigError(f"{original.place(key)}: '{key}' has {wanted} places to fill; give --fewshot LANGUAGE,SHOTS")
    return name.format(*words)


def _by_language(
    paths: list[str], languages: list[str], only: str, is_pairs: bool
) -> dict[str, str | list[str]] | list[str]:
    """Training files by the language that stands in their names; those of IGLUE are all of one."""
    if not is_pairs:
        return {only: paths[0] if len(paths) == 1 else paths}
    found: dict[str, str] = {}
    for path in paths:
        words = set(re.split(r"[._/-]", path.rpartition("/")[2]))
        found |= {language: path for language in languages if language in words}
    return found if len(found) == len(paths) and set(found.values()) == set(paths) else paths


def _layout(original: Original) -> dict[str, Any]:
    """Which of the three kinds of records the files hold, and where their pictures are."""
    root = original.get("image_root")
    if isinstance(root, dict):
        return {"name": "xflickrco", "flickr_root": root.get("flickr30k"), "coco_root": root.get("coco")}
    return {"name": "image_text_pairs", "image_root": root} if root else {"name": "wit"}


def _folds(files: dict[str, str]) -> dict[str, Any]:
    """CCRK cuts these two files, known by their names, into five galleries of 1000 pictures."""
    folded = {k: 5 for k, path in files.items() if any(f"mscoco/{x}.test.json" in str(path) for x in ("en", "ja"))}
    return {"folds": folded} if folded else {}
