"""The data and evaluation of CCLM's files for GQA and xGQA."""

from __future__ import annotations

from typing import Any

from compat.cclm_finetuning import NUM_WORKERS, fill
from compat.cclm_labels import one_or_all
from compat.original import Circumstances, Original

QUESTION_KEYS = {
    "train_file", "valid_file", "test_file", "answer_list", "vqa_root", "num_dec_layers", "max_tokens", "k_test",
    "batch_size_train", "batch_size_test", "num_workers",
}  # fmt: skip
# Fixed in the original's program; questions of an evaluation may be longer.
MAX_WORDS, MAX_WORDS_EVALUATED = 30, 50


def question_settings(original: Original, circumstances: Circumstances) -> dict[str, Any]:
    """Questions by language and the list of answers that are ranked."""
    placeholders = circumstances.placeholders
    language = placeholders.get("lang", "en")
    paths = {key: [fill(x, placeholders, original, key) for x in original.files(key)] for key in SPLITS}
    files: dict[str, Any] = {SPLITS[key]: {language: one_or_all(found)} for key, found in paths.items() if found}
    # A test names the questions, then the answers, which are those of answer_list.
    test = {
        name: pair if isinstance(pair, str) else pair[0] for name, pair in (original.get("test_file") or {}).items()
    }
    if test or "val" in files:
        files["test"] = test or files["val"]  # the few-shot files watch the test set of the language
    root = original.get("vqa_root")
    layout = {"name": "questions"} | ({"image_root": root.rstrip("/")} if root else {})
    longer = {"train": {}, "val": {"max_words": MAX_WORDS_EVALUATED}, "test": {"max_words": MAX_WORDS_EVALUATED}}
    batch_size = original.whole_number("batch_size_train")
    return {
        "objectives": {"answers": {}},
        "evaluation.name": "answers",
        "evaluation.answers": original.node("answer_list"),
        "evaluation.num_candidates": original.node("k_test"),
        "evaluation.batch_size": original.node("batch_size_test"),
        **{f"data.{split}": {**layout, **longer[split], "files": found} for split, found in files.items()},
        "data.max_tokens": original.node("max_tokens"),
        "data.max_words": MAX_WORDS,
        "data.truncate_evaluation": False,
        "data.train_transform": {"name": "augmented_crop", "scale": [0.5, 1.0]},
        "data.num_workers": original.get("num_workers", NUM_WORKERS),
        "data.batch_size": batch_size and batch_size * circumstances.world_size,
    }


SPLITS = {"train_file": "train", "valid_file": "val"}
