"""Flags of the original systems' small programs as settings of our tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Flag:
    """What a flag stands for: a setting, to which it gives the word behind it or, where it has none, `value`.

    value `[x]` adds x to a list; split makes a list of words between commas. Without a setting the flag and its word
    are accepted and not needed.
    """

    setting: str = ""
    value: str | None = None
    split: bool = False


NOT_NEEDED = Flag()
CHINESE_CLIP_MODEL = {"--model-arch": NOT_NEEDED, "--download-root": NOT_NEEDED}  # the file's shapes say which model

CHINESE_CLIP_TOWERS = {"--vision-model": NOT_NEEDED, "--text-model": NOT_NEEDED}
CHINESE_CLIP_SEARCH = {
    "--image-feats": Flag("image_feats"),
    "--text-feats": Flag("text_feats"),
    "--top-k": Flag("top_k"),
    "--eval-batch-size": Flag("gallery_block"),
}

# task -> flags of the program that it stands for.
TOOL_FLAGS: dict[str, dict[str, Flag]] = {
    "export_onnx": {
        **CHINESE_CLIP_MODEL,
        "--pytorch-ckpt-path": Flag("checkpoint"),
        "--save-onnx-path": Flag("prefix"),
        "--save-coreml-path": Flag("prefix"),
        "--convert-text": Flag("parts", "[text]"),
        "--convert-vision": Flag("parts", "[image]"),
        "--context-length": Flag("context_length"),
    },
    "serve": {"--host": Flag("host"), "--port": Flag("port")},
    "speed_benchmark": {
        **CHINESE_CLIP_MODEL,
        "--pytorch-ckpt": Flag("checkpoint"),
        "--pytorch-precision": Flag("torch_precision"),
        "--onnx-image-model": Flag("onnx_image"),
        "--onnx-text-model": Flag("onnx_text"),
        "--context-length": Flag("context_length"),
        "--batch-size": Flag("batch_size"),
        "--n": Flag("num_runs"),
        "--warmup": Flag("num_warmup_runs"),
        "--device": Flag("device"),
    },
    "build_lmdb": {
        "--data_dir": Flag("data_dir"),
        "--splits": Flag("splits", split=True),
        "--lmdb_dir": Flag("lmdb_dir"),
    },
    "extract_features": {
        "--extract-image-feats": Flag("parts", "[image]"),
        "--extract-text-feats": Flag("parts", "[text]"),
        "--image-data": Flag("image_data"),
        "--text-data": Flag("text_data"),
        "--image-feat-output-path": Flag("image_output"),
        "--text-feat-output-path": Flag("text_output"),
        "--img-batch-size": Flag("image_batch_size"),
        "--text-batch-size": Flag("text_batch_size"),
        "--context-length": Flag("context_length"),
        "--resume": Flag("checkpoint"),
        "--precision": Flag("precision"),
        **CHINESE_CLIP_TOWERS,
    },
    "search": {**CHINESE_CLIP_SEARCH, "--output": Flag("output")},
    "search_tr": {**CHINESE_CLIP_SEARCH, "--output": Flag("output_tr")},
    "transpose_annotations": {"--input": Flag("input")},
    "zero_shot": {
        "--label-file": Flag("label_file"),
        "--datapath": Flag("data"),
        "--dataset": Flag("dataset"),
        "--index": Flag("index"),
        "--save-dir": Flag("save_dir"),
        "--img-batch-size": Flag("batch_size"),
        "--context-length": Flag("context_length"),
        "--resume": Flag("checkpoint"),
        "--precision": Flag("precision"),
        "--num-workers": Flag("num_workers"),
        **CHINESE_CLIP_TOWERS,
    },
}
# Names of the originals' programs that are one of our tools with a setting, and what their words without a flag mean.
TOOL_OF = {
    "search_tr": ("search", []),
    "evaluate_predictions_tr": ("evaluate_predictions", ["direction=image_to_text"]),
}
POSITIONAL = {
    "evaluate_predictions": ("reference", "predictions", "output"),
    "evaluate_predictions_tr": ("reference", "predictions", "output"),
}


def translate_words(argv: Sequence[str], tables: Mapping[str, Mapping[str, Flag]] = TOOL_FLAGS) -> list[str]:
    """The command with a tool's original flags as key=value words at its end; other commands come back as they are."""
    task = _task(argv)
    table = tables.get(task, {})
    kept, given, lists, words = [], [], {}, _name_positional(argv, POSITIONAL.get(task, ()))
    if task in TOOL_OF:
        ours, given[:] = TOOL_OF[task]
        words = [word.removesuffix(task) + ours if word in (task, f"--task={task}") else word for word in words]
    while words:
        word = words.pop(0)
        name, has_value, value = word.partition("=")
        flag = table.get(name)
        if flag is None:
            kept.append(word)
            continue
        if flag.value is None and not has_value:
            if not words or words[0] in table:
                raise ValueError(f"{name} needs a value behind it")
            value = words.pop(0)
        if flag.value is not None and flag.value.startswith("["):
            lists.setdefault(flag.setting, []).append(flag.value.strip("[]"))
        elif flag.split:
            given.append(f"{flag.setting}=[{', '.join(_written(each) for each in value.split(',') if each)}]")
        elif flag.setting:
            given.append(f"{flag.setting}={_written(flag.value if flag.value is not None else value)}")
    return kept + given + [f"{setting}=[{', '.join(values)}]" for setting, values in lists.items()]


def _name_positional(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words without a flag or a setting, after --task, as values of these settings."""
    words, left = list(argv), list(names)
    for place, word in enumerate(words):
        is_value = place > 0 and words[place - 1].startswith("--") and "=" not in words[place - 1]
        if left and not is_value and not word.startswith("-") and "=" not in word:
            words[place] = f"{left.pop(0)}={json.dumps(word)}"
    return words


def _task(argv: Sequence[str]) -> str:
    for place, word in enumerate(argv):
        if word == "--task" and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith("--task="):
            return word.partition("=")[2]
    return ""


def _written(value: str) -> str:
    """A value as key=value reads it: numbers and yes or no as they are, anything else as a text."""
    return value if NUMBER.fullmatch(value) or value in ("true", "false") else json.dumps(value)
