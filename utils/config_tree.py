"""Settings as they were written: nested nodes that remember their place, read from YAML 1.2, inherited and overridden.

Nothing here knows a schema. `utils/config.py` turns such a tree into dataclasses.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

COMMAND_LINE = "command line"


class ConfigError(ValueError):
    """A setting that cannot be used; the message names its place, what was found and what is allowed."""


@dataclass(frozen=True)
class Node:
    """One value and the place it was written at.

    `value` is a scalar, a list of nodes or a dict from keys to nodes. `raw` keeps the text of a command line value,
    which has no quotes to tell the word 10 from the number 10. `stale` names the keys of a section that were inherited
    from one of another `name`: where the name picks a class, they belong to the other class.
    """

    value: Any
    place: str
    raw: str | None = None
    stale: frozenset[str] = frozenset()


Tree = Any  # plain values, dicts, lists and nodes, nested in any way


def located(tree: Tree, place: str) -> Node:
    """The tree as nodes; what has no place of its own gets `place`."""
    if isinstance(tree, Node):
        return replace(tree, value=located(tree.value, tree.place).value)
    if isinstance(tree, Mapping):
        return Node({str(key): located(value, place) for key, value in tree.items()}, place)
    if isinstance(tree, (list, tuple)):
        return Node([located(value, place) for value in tree], place)
    if isinstance(tree, os.PathLike):
        return Node(os.fspath(tree), place)
    return Node(tree, place)


def plain(tree: Tree) -> Any:
    """The tree without places: dicts, lists and scalars."""
    value = tree.value if isinstance(tree, Node) else tree
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def merge(base: Node, child: Node) -> Node:
    """The child's settings over the inherited ones, section by section.

    What a section inherits from one of another `name` is marked stale. A bare string over a section with a name is
    short for that name, and the other way round.
    """
    if isinstance(base.value, dict) and "name" in base.value and isinstance(child.value, str):
        child = Node({"name": child}, child.place)
    if isinstance(base.value, str) and isinstance(child.value, dict) and child.value:
        base = Node({"name": base}, base.place)
    if not isinstance(base.value, dict) or not isinstance(child.value, dict):
        return child
    names = [section.value["name"].value for section in (base, child) if "name" in section.value]
    is_another = len(names) == 2 and names[0] != names[1]
    merged = dict(base.value)
    for key, node in child.value.items():
        merged[key] = merge(merged[key], node) if key in merged and not is_another and key not in base.stale else node
    inherited = frozenset(base.value) if is_another else base.stale
    place = child.place if base.value or base.place == COMMAND_LINE else base.place
    return Node(merged, place, stale=(inherited - frozenset(child.value)) | child.stale)


def fill_placeholders(tree: Node, values: Mapping[str, str]) -> Node:
    """The tree with `{key}` in every key and string replaced; strings without a known key stay as they are."""
    value = tree.value
    if isinstance(value, dict):
        value = {_fill(key, values): fill_placeholders(node, values) for key, node in value.items()}
    elif isinstance(value, list):
        value = [fill_placeholders(node, values) for node in value]
    elif isinstance(value, str):
        value = _fill(value, values)
    return replace(tree, value=value)


def read_tree(path: str | os.PathLike) -> Node:
    """The tree of a YAML file over the trees of its `base:` files."""
    return _read_with_bases(Path(path), place="", above=())


def read_file(path: str | os.PathLike) -> Node:
    """The tree of one YAML file as it stands, `base:` included as an ordinary key."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a YAML file in UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{path}: {_why_unreadable(path, error)}") from error
    try:
        parsed = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if parsed is None:
        return Node({}, str(path))
    if not isinstance(parsed, Mapping):
        raise ConfigError(f"{path}: expected 'key: value' settings, found {type_name(_scalar(parsed))}")
    return _from_ruamel(parsed, path, line=1)


def parse_override(text: str) -> Node:
    """The tree of one `a.b=value`; the value is read as YAML."""
    dotted, equals, raw = text.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{COMMAND_LINE}: expected 'section.key=value', found '{text}'")
    try:
        value = YAML(typ="safe", pure=True).load(raw) if raw.strip() else ""
    except YAMLError as error:
        raise ConfigError(f"{COMMAND_LINE}: the value in '{text}' is not valid YAML: {_first_line(error)}") from error
    place = f"{COMMAND_LINE} ({dotted.strip()}=...)"
    node = located(value, place)
    node = Node(node.value, place, raw)
    for key in reversed(keys):
        node = Node({key: node}, COMMAND_LINE)
    return node


def join(base: Node, overrides: Mapping | Iterable[str | Mapping | Node] | None) -> Node:
    """The tree with overrides laid over it in order: `a.b=c` strings, nested dicts or nodes."""
    if overrides is None:
        return base
    if isinstance(overrides, (Mapping, Node, str)):
        overrides = [overrides]
    for override in overrides:
        tree = parse_override(override) if isinstance(override, str) else located(override, COMMAND_LINE)
        base = merge(base, tree)
    return base


def type_name(value: Any) -> str:
    """What a reader calls a value found in a file: `the string 'abc'`, `the number 3`, `a list`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the string '{value}'"
    return "a section" if isinstance(value, Mapping) else "a list" if isinstance(value, Sequence) else repr(value)


def _fill(text: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        text = text.replace("{" + key + "}", value)
    return text


def _read_with_bases(path: Path, place: str, above: tuple[Path, ...]) -> Node:
    if place and not path.is_file():
        raise ConfigError(f"{place}: base file {path} does not exist{_nearest_file(path)}")
    if path.resolve() in above:
        chain = " -> ".join(str(p) for p in (*above, path.resolve()))
        raise ConfigError(f"{place}: a file cannot inherit from itself: {chain}")
    tree = read_file(path)
    base = tree.value.get("base")
    own = Node({key: node for key, node in tree.value.items() if key != "base"}, tree.place)
    if base is None:
        return own
    inherited = Node({}, str(path))
    for item in base.value if isinstance(base.value, list) else [base]:
        if not isinstance(item.value, str):
            raise ConfigError(f"{item.place}: 'base' must be a path or a list of paths, found {type_name(item.value)}")
        found = _read_with_bases(path.parent / item.value, item.place, (*above, path.resolve()))
        inherited = merge(inherited, found)
    return merge(inherited, own)


def _from_ruamel(value: Any, path: Path, line: int) -> Node:
    place = f"{path}:{line}"
    if isinstance(value, Mapping):
        positions = value.lc.data or {}
        children = {}
        for key, item in value.items():
            key_line = positions[key][0] + 1 if key in positions else line
            children[str(key)] = _from_ruamel(item, path, key_line)
        return Node(children, place)
    if isinstance(value, list):
        positions = value.lc.data or {}
        items = [_from_ruamel(v, path, positions[i][0] + 1 if i in positions else line) for i, v in enumerate(value)]
        return Node(items, place)
    return Node(_scalar(value), place)


def _scalar(value: Any) -> Any:
    # The round-trip loader returns subclasses that carry their spelling; only the value is wanted.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if type(value).__name__ == "ScalarBoolean":
        return bool(value)
    return value if value is None or isinstance(value, (Mapping, list)) else str(value)


def _first_line(error: YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _why_unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"no such file{_nearest_file(path)}"
    return "is a folder, not a YAML file" if path.is_dir() else (error.strerror or str(error))


def _nearest_file(path: Path) -> str:
    siblings = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    return f"; did you mean '{path.parent / close[0]}'?" if close else ""
