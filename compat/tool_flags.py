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

    value `[x]` adds x to a list. Without a setting the flag and its word are accepted and not needed.
    """

    setting: str = ""
    value: str | None = None


NOT_NEEDED = Flag()
CHINESE_CLIP_MODEL = {"--model-arch": NOT_NEEDED, "--download-root": NOT_NEEDED}  # the file's shapes say which model

# task -> flags of the program that it stands for.
TOOL_FLAGS: dict[str, dict[str, Flag]] = {
    "export_onnx": {
        **CHINESE_CLIP_MODEL,
        "--pytorch-ckpt-path": Flag("checkpoint"),
        "--pytorch-ckpt": Flag("checkpoint"),
        "--pytorch-precision": NOT_NEEDED,
        "--save-onnx-path": Flag("prefix"),
        "--save-coreml-path": Flag("prefix"),
        "--convert-text": Flag("parts", "[text]"),
        "--convert-vision": Flag("parts", "[image]"),
        "--context-length": Flag("context_length"),
        "--batch-size": Flag("batch_size"),
        "--n": Flag("num_runs"),
        "--warmup": Flag("num_warmup_runs"),
        "--device": Flag("device"),
    },
}


def translate_words(argv: Sequence[str], tables: Mapping[str, Mapping[str, Flag]] = TOOL_FLAGS) -> list[str]:
    """The command with a tool's original flags as key=value words at its end; other commands come back as they are."""
    table = tables.get(_task(argv), {})
    kept, given, lists, words = [], [], {}, list(argv)
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
        elif flag.setting:
            given.append(f"{flag.setting}={_written(flag.value if flag.value is not None else value)}")
    return kept + given + [f"{setting}=[{', '.join(values)}]" for setting, values in lists.items()]


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
