"""Configuration: dataclasses from YAML files and `key=value` settings, with the place of every mistake.

A schema is a dataclass whose fields are int, float, bool, str, Path, X | None, list, tuple, dict, Literal, other
dataclasses, or `Annotated[Any, REGISTRY]`: a section whose `name` picks a class from a table, read as its inner
dataclass `Config`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
import tempfile
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from utils.config_tree import ConfigError, Node, join, located, plain, read_tree, type_name
from utils.registry import Registry, nearest

__all__ = ["ConfigError", "build", "dump_yaml", "load_config", "read_yaml", "to_tree", "to_yaml"]

Schema = TypeVar("Schema")


def load_config(
    schema: type[Schema],
    path: str | os.PathLike | None,
    overrides: Mapping | Iterable[str | Mapping | Node] | None = None,
) -> Schema:
    """The configuration of a file (with what it inherits) under overrides, checked against the schema."""
    base = read_tree(path) if path else Node({}, "command line")
    return build(schema, join(base, overrides))


def build(schema: type[Schema], tree: Mapping | Node) -> Schema:
    """An instance of the schema from a nested dict or a tree with places."""
    if not dataclasses.is_dataclass(schema):
        raise TypeError(f"{schema!r} is not a dataclass")
    return _build(schema, located(tree, "settings"), "")


def to_tree(instance: Any) -> Any:
    """Nested dicts, lists and scalars; `build` turns them back into an equal instance."""
    if dataclasses.is_dataclass(instance):
        names = [field.name for field in dataclasses.fields(instance) if field.init]
        if "name" in vars(instance):
            names = ["name", *(name for name in names if name != "name")]
        return {name: to_tree(getattr(instance, name)) for name in names}
    if isinstance(instance, Mapping):
        return {str(key): to_tree(value) for key, value in instance.items()}
    if isinstance(instance, (list, tuple)):
        return [to_tree(value) for value in instance]
    return os.fspath(instance) if isinstance(instance, Path) else instance


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """A YAML file with what it inherits, as plain dicts and lists."""
    return plain(read_tree(path))


def to_yaml(config: Any) -> str:
    """A configuration or a tree as a file that `load_config` reads."""
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 4096
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(to_tree(plain(config)), text)
    return text.getvalue()


def dump_yaml(config: Any, path: str | os.PathLike) -> None:
    """Write a configuration or a tree; a reader sees the old file or the whole new one."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(to_yaml(config))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _build(kind: Any, node: Node, key: str) -> Any:
    """The value of a node as the type `kind`; `key` is its dotted name."""
    origin = get_origin(kind)
    if kind is Any:
        return plain(node)
    if origin is Annotated:
        return _build_choice(kind, node, key)
    if origin in (Union, types.UnionType):
        return _build_union(get_args(kind), node, key)
    if origin is Literal:
        return _build_literal(get_args(kind), node, key)
    if origin in (list, tuple) or kind in (list, tuple):
        return _build_sequence(kind, node, key)
    if origin is dict or kind is dict:
        return _build_mapping(kind, node, key)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, node, key)
    return _build_scalar(kind, node, key)


def _build_scalar(kind: type, node: Node, key: str) -> Any:
    value = node.value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and number and math.isfinite(value) and value == int(value):
        return int(value)
    if kind is float and not isinstance(value, (bool, list, dict)) and value is not None:
        try:
            if not math.isnan(float(value)):
                return float(value)
        except ValueError:
            pass
    if kind in (str, Path):
        if not isinstance(value, str) and node.raw is not None and not isinstance(value, (list, dict)):
            value = node.raw
        if isinstance(value, str):
            return kind(value)
    raise _wrong_type(kind, node, key)


def _build_literal(allowed: tuple, node: Node, key: str) -> Any:
    for value in (node.value, node.raw):
        for choice in allowed:
            if value == choice and type(value) is type(choice):
                return choice
    close = nearest(str(node.value), [str(choice) for choice in allowed])
    hint = f"did you mean '{close}'? " if close else ""
    choices = ", ".join(str(choice) for choice in allowed)
    raise ConfigError(f"{node.place}: '{key}' cannot be {type_name(node.value)}; {hint}allowed: {choices}")


def _build_union(arms: tuple, node: Node, key: str) -> Any:
    if node.value is None and type(None) in arms:
        return None
    arms = tuple(arm for arm in arms if arm is not type(None))
    # An exact match goes first: 'int | str' given 3 is the number, 'float | str' given 'a' is the word.
    for arm in sorted(arms, key=lambda arm: arm is not type(node.value)):
        try:
            return _build(arm, node, key)
        except ConfigError:
            if len(arms) == 1:
                raise
    raise _wrong_type(arms, node, key)


def _build_sequence(kind: Any, node: Node, key: str) -> Any:
    if node.raw is not None and isinstance(node.value, (str, int, float)):
        node = Node([_parse_word(word, node) for word in node.raw.split(",") if word.strip()], node.place)
    if not isinstance(node.value, list):
        raise _wrong_type(kind, node, key)
    origin, arms = get_origin(kind) or kind, get_args(kind)
    if origin is tuple and arms and arms[-1] is not Ellipsis:
        if len(arms) != len(node.value):
            raise ConfigError(f"{node.place}: '{key}' must have {len(arms)} entries, found {len(node.value)}")
        return tuple(_build(arm, item, f"{key}[{i}]") for i, (arm, item) in enumerate(zip(arms, node.value)))
    arm = arms[0] if arms else Any
    return origin(_build(arm, item, f"{key}[{i}]") for i, item in enumerate(node.value))


def _parse_word(word: str, node: Node) -> Node:
    try:
        value = YAML(typ="safe", pure=True).load(word)
    except YAMLError:
        value = word.strip()
    return Node(located(value, node.place).value, node.place, word.strip())


def _build_mapping(kind: Any, node: Node, key: str) -> dict[str, Any]:
    if not isinstance(node.value, dict):
        raise _wrong_type(kind, node, key)
    arm = (get_args(kind) or (str, Any))[1]
    is_choice = get_origin(arm) is Annotated
    built = {}
    for name, item in node.value.items():
        if item.value is None and arm is not Any and type(None) not in get_args(arm):
            continue  # `key:` with nothing takes an inherited entry away
        if is_choice and isinstance(item.value, dict) and "name" not in item.value:
            item = Node({"name": Node(name, item.place), **item.value}, item.place, stale=item.stale)
        built[name] = _build(arm, item, _join_key(key, name))
    return built


def _build_choice(kind: Any, node: Node, key: str) -> Any:
    """The `Config` of the class that the section's `name` picks from the registry."""
    arm, *notes = get_args(kind)
    registry = next((note for note in notes if isinstance(note, Registry)), None)
    if registry is None:
        return _build(arm, node, key)
    if isinstance(node.value, str):
        node = Node({"name": Node(node.value, node.place)}, node.place)
    if not isinstance(node.value, dict):
        raise ConfigError(
            f"{node.place}: '{key}' must be a section with a name, found {type_name(node.value)}; "
            f"allowed names: {', '.join(registry.names())}"
        )
    name = node.value.get("name")
    if name is None:
        raise ConfigError(f"{node.place}: '{key}' has no 'name'; allowed names: {', '.join(registry.names())}")
    if not isinstance(name.value, str) or name.value not in registry:
        try:
            registry.target(name.value)
        except ValueError as error:
            raise ConfigError(f"{name.place}: '{key}': {error}") from error
    schema = registry.load(name.value).Config
    fields = {field.name for field in dataclasses.fields(schema)}
    given = {k: v for k, v in node.value.items() if k not in node.stale and (k != "name" or "name" in fields)}
    built = _build_dataclass(schema, Node(given, node.place), key)
    if "name" not in fields:
        object.__setattr__(built, "name", name.value)  # so that to_tree can write the choice down
    return built


def _build_dataclass(schema: type, node: Node, key: str) -> Any:
    if not isinstance(node.value, dict):
        raise ConfigError(f"{node.place}: '{key}' must be a section of settings, found {type_name(node.value)}")
    hints = _type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema) if field.init}
    for name, item in node.value.items():
        if name not in fields:
            raise ConfigError(_unknown_key(item.place, key, name, fields))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in node.value:
            raise ConfigError(f"{node.place}: '{_join_key(key, name)}' is missing; it has no default")
    given = {name: _with_default_name(fields[name], hints[name], item) for name, item in node.value.items()}
    values = {name: _build(hints[name], item, _join_key(key, name)) for name, item in given.items()}
    try:
        return schema(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{node.place}: {key + ': ' if key else ''}{error}") from error


def _with_default_name(field: dataclasses.Field, kind: Any, node: Node) -> Node:
    """A section without a name means the choice that the schema makes by default."""
    is_nameless = isinstance(node.value, dict) and "name" not in node.value
    if not is_nameless or get_origin(kind) is not Annotated or field.default_factory is dataclasses.MISSING:
        return node
    name = Node(field.default_factory().name, node.place)
    return dataclasses.replace(node, value={"name": name, **node.value})


@functools.cache
def _type_hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)


def _join_key(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _unknown_key(place: str, key: str, name: str, fields: Iterable[str]) -> str:
    close = nearest(name, fields)
    hint = f"did you mean '{close}'?" if close else f"allowed: {', '.join(fields) or 'none'}"
    return f"{place}: unknown key '{_join_key(key, name)}'; {hint}"


def _wrong_type(kind: Any, node: Node, key: str) -> ConfigError:
    return ConfigError(f"{node.place}: '{key}' must be {_describe(kind)}, found {type_name(node.value)}")


def _describe(kind: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", Path: "a path"}
    if kind in words:
        return words[kind]
    origin, arms = get_origin(kind), get_args(kind)
    if isinstance(kind, tuple):
        return " or ".join(_describe(arm) for arm in kind)
    if origin is Literal:
        return "one of " + ", ".join(str(arm) for arm in arms)
    if (origin or kind) in (list, tuple):
        return f"a list ({_describe(arms[0])} each)" if arms else "a list"
    return "a section of settings" if (origin or kind) is dict or dataclasses.is_dataclass(kind) else "a value"
