"""The originals' command line flags as settings of ours: pure functions from words to overrides."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from utils.config import ConfigError
from utils.config_tree import Node, located
from utils.registry import unknown_name_message

SWITCH = None  # a flag without a value


@dataclass
class Translation:
    """What flags come to: settings by dotted key, lines for the user to read, and things to do instead of training."""

    settings: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    actions: set[str] = field(default_factory=set)

    def tree(self, place: str) -> Node:
        """The settings as a tree whose values were all written at `place`."""
        return nested(self.settings, place)


def nested(settings: Mapping[str, Any], place: str) -> Node:
    """`{"a.b": 1}` -> the tree a: {b: 1}; later keys are laid over earlier ones."""
    root: dict[str, Any] = {}
    for dotted, value in settings.items():
        *path, last = dotted.split(".")
        section = root
        for key in path:
            section = section.setdefault(key, Node({}, place)).value
        section[last] = located(value, place)
    return Node(root, place)


def parse_flag_string(text: str, known: Mapping[str, type | None], option: str) -> dict[str, Any]:
    """The flags inside the one string of --pret_para or --ft_para; `known` maps a name to the type of its value."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"command line: {option} cannot be split into words: {error}; found '{text}'") from error
    given: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise ConfigError(f"command line: {option}: expected a flag, found '{word}'; allowed: {_flag_list(known)}")
        if name not in known:
            raise ConfigError(f"command line: {option}: {unknown_name_message('flag', name, known)}")
        kind = known[name]
        if kind is SWITCH:
            if equals:
                raise ConfigError(f"command line: {option}: --{name} takes no value, found '{value}'")
            given[name] = True
            continue
        if not equals:
            if not words:
                raise ConfigError(f"command line: {option}: --{name} needs a value")
            value = words.pop(0)
        given[name] = _convert(value, kind, f"{option}: --{name}")
    return given


def split_fewshot(text: str) -> dict[str, str]:
    """`de,100` -> {lang: de, shots: 100}; `id` -> {lang: id}."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not all(parts) or (len(parts) == 2 and not parts[1].isdecimal()):
        raise ConfigError(f"command line: --fewshot expects LANGUAGE or LANGUAGE,SHOTS as de,100; found '{text}'")
    return dict(zip(("lang", "shots"), parts))


def translate_run_flags(
    *,
    task: str | None,
    output_dir: str | None,
    checkpoint: str | None,
    bs: int | None,
    epoch: int | None,
    lr: float | None,
    seed: int | None,
) -> Translation:
    """The flags of run.py that are settings. As ever, -1 for --bs and --epoch and 0 for --lr keep the file's value."""
    given = {
        "task": task,
        "output_dir": output_dir,
        "init.checkpoint": checkpoint or None,
        "data.batch_size": None if bs == -1 else bs,
        "train.epochs": None if epoch == -1 else epoch,
        "optim.lr": None if lr == 0 else lr,
        "seed": seed,
    }
    for flag, value in (
        ("--bs", given["data.batch_size"]),
        ("--epoch", given["train.epochs"]),
        ("--lr", given["optim.lr"]),
    ):
        if value is not None and value <= 0:
            raise ConfigError(f"command line: {flag} must be above 0, found {value}")
    return Translation({key: value for key, value in given.items() if value is not None})


def _convert(value: str, kind: type, what: str) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        words = {int: "a whole number", float: "a number"}
        raise ConfigError(f"command line: {what} must be {words[kind]}, found '{value}'") from error


def _flag_list(known: Mapping[str, type | None]) -> str:
    return ", ".join(f"--{name}" for name in known)
