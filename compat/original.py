"""Reading an original system's YAML: values with their places, and what was never read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config import ConfigError
from utils.config_tree import Node, plain, type_name
from utils.registry import nearest


@dataclass
class Circumstances:
    """What a translation knows beside the file: processes of the run, words of --fewshot; and what it has to say."""

    world_size: int
    placeholders: Mapping[str, str]
    notices: list[str] = field(default_factory=list)


class Original:
    """An original's file: values by key with their places, and what was never read."""

    def __init__(self, tree: Node) -> None:
        self.tree = tree
        self.unread = set(tree.value)

    def node(self, key: str) -> Node | None:
        """The value at a key, noted as read."""
        self.unread.discard(key)
        return self.tree.value.get(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The plain value at a key."""
        node = self.node(key)
        return default if node is None else plain(node)

    def files(self, key: str) -> list[str]:
        """The names at a key that holds one name or a list of them."""
        value = self.get(key)
        names = [value] if isinstance(value, str) else value or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{self.place(key)}: '{key}' must be a list of files, found {type_name(value)}")
        return names

    def whole_number(self, key: str) -> int | None:
        """The number at a key."""
        value = self.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ConfigError(f"{self.place(key)}: '{key}' must be a whole number, found {type_name(value)}")
        return value

    def section(self, key: str, known: Collection[str]) -> dict[str, Any]:
        """A section's plain values; an unknown key in it is an error."""
        node = self.node(key)
        if node is None:
            return {}
        if not isinstance(node.value, dict):
            raise ConfigError(f"{node.place}: '{key}' must be a section of settings, found {type_name(node.value)}")
        for name, item in node.value.items():
            if name not in known:
                raise unknown_key(item.place, f"{key}.{name}", name, known)
        return plain(node)

    def place(self, key: str) -> str:
        """Where a key stands; the file where it does not."""
        return self.tree.value[key].place if key in self.tree.value else self.tree.place

    def check_all_read(self, without_effect: Collection[str], known: Collection[str]) -> None:
        """ConfigError names a key that nothing has read."""
        for key in sorted(self.unread - set(without_effect)):
            raise unknown_key(self.place(key), key, key, known)

    def json_file(self, key: str, path: Path, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The object that a key names: beside the working folder, beside the YAML file or above it, or well known."""
        name = Path(str(self.get(key)))
        for folder in (Path(), *path.resolve().parents):
            if (folder / name).is_file():
                return read_json(folder / name)
        if name.name in known:
            return dict(known[name.name])
        raise ConfigError(f"{self.place(key)}: {name} does not exist; known without the file: {', '.join(known)}")


def unknown_key(place: str, dotted: str, name: str, known: Collection[str]) -> ConfigError:
    """The error for a key that no original has."""
    close = nearest(name, known)
    hint = f"did you mean '{close}'?" if close else f"allowed: {', '.join(sorted(known))}"
    return ConfigError(f"{place}: unknown key '{dotted}'; {hint}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of sizes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object of sizes, found {type_name(content)}")
    return content
