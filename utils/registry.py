"""Tables of names: what a configuration may name, and where its class lives."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The entry of `allowed` that `word` was most likely meant to be, or None."""
    close = difflib.get_close_matches(str(word), list(allowed), n=1, cutoff=0.6)
    return close[0] if close else None


def unknown_name_message(what: str, found: str, allowed: Iterable[str]) -> str:
    """One line: what was found, the nearest entry, and everything that is allowed."""
    allowed = list(allowed)
    close = nearest(found, allowed)
    hint = f"did you mean '{close}'? " if close else ""
    return f"unknown {what} '{found}'; {hint}allowed: {', '.join(allowed) or 'none'}"


class Registry:
    """A table from names to classes; a class is imported when it is first asked for.

    `entries` maps a name to "module:Class", so that a table can be read without importing what it lists.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries: dict[str, str] = {}
        for name, target in entries.items():
            self.add(name, target)

    def names(self) -> list[str]:
        """Every name, in the order of the table."""
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def target(self, name: str) -> str:
        """The "module:Class" behind a name."""
        if name not in self._entries:
            raise ValueError(unknown_name_message(self.kind, name, self._entries))
        return self._entries[name]

    def load(self, name: str) -> type:
        """The class behind a name."""
        module, _, attribute = self.target(name).partition(":")
        loaded = importlib.import_module(module)
        if not hasattr(loaded, attribute):
            raise ImportError(f"{self.kind} '{name}': module {module} has no '{attribute}'")
        return getattr(loaded, attribute)

    def add(self, name: str, target: str) -> None:
        """Enter a name; the same name twice is a mistake."""
        module, _, attribute = target.partition(":")
        if not module or not attribute.isidentifier():
            raise ValueError(f"{self.kind} '{name}': target '{target}' is not of the form 'module:Class'")
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is in the table already: {self._entries[name]}")
        self._entries[name] = target
