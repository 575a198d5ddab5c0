"""ZeroVL's rules on parameter names as rules on ours, matching the same parameters."""

from __future__ import annotations

import re
from typing import Any

from compat.zerovl_weights import entries, is_foreign
from utils.config import ConfigError

_THEIR_TOWER = re.compile(r"(image|text)_encoder(\\?\.model){2}")


def group_rules(rules: dict[str, Any], model: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """`optim.rules` for `optim.param_group_rules`; model: our tree of the model, which says which names there are."""
    return [{"match": our_match(rule["regex"], model, place), **rule.get("param", {})} for rule in rules.values()]


def our_match(regex: str, model: dict[str, Any], place: str) -> str:
    """An expression that finds our names of the parameters whose original names `regex` finds.

    Names of the image tower, and of a text tower that is the library's, end alike in both; of everything else the
    names are known and listed.
    """
    named = []
    for entry in entries(model):
        found = [bool(re.search(regex, name)) for name in entry.theirs]
        if any(found) != all(found):
            parts = ", ".join(name.split(".")[-2] for name in entry.theirs)
            raise ConfigError(f"{place}: optim.param_group_rules: '{regex}' parts {parts}, which are one matrix here")
        if all(found):
            named.append(entry.ours)
    anchored = r"(?<=^model\.)" + regex[1:] if regex.startswith("^") else regex
    of_tower = _THEIR_TOWER.sub(r"\1_encoder\\.backbone", anchored)
    sides = "(?:image|text)" if is_foreign(model) else "image"
    tower = rf"^(?=model\.{sides}_encoder\.)(?=.*(?:{of_tower}))"
    return tower + (rf"|^model\.(?:{'|'.join(_joined(named, model))})$" if named else "")


def _joined(names: list[str], model: dict[str, Any]) -> list[str]:
    """Expressions for the names, one for all layers where each of them has the name."""
    places: dict[str, list[str]] = {}
    for name in names:
        places.setdefault(re.sub(r"\.layers\.\d+\.", ".layers.N.", name), []).append(name)
    found = []
    for general, own in places.items():
        is_everywhere = ".layers.N." in general and len(own) == model["text_encoder"]["num_layers"]
        found += [re.escape(general).replace(r"\.N\.", r"\.\d+\.")] if is_everywhere else map(re.escape, own)
    return found
