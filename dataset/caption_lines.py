"""Lines of JSON whose captions gain languages: what is there stays as it is, byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dataset.files import BadRecord, json_fault

BLANK = re.compile(r"[ \t\r\n\ufeff]*")
DECODER = json.JSONDecoder()


class Span(NamedTuple):
    """A part of a line."""

    start: int
    end: int


@dataclass
class CaptionSet:
    """One object of captions by language, and where its parts stand in the line."""

    captions: dict[str, Any]
    places: dict[str, Span]
    brace: int  # the closing one

    @property
    def last(self) -> int | None:
        """Where the last caption ends."""
        return max((place.end for place in self.places.values()), default=None)


@dataclass
class CaptionLine:
    """A line with its caption sets, mostly one."""

    text: str
    sets: list[CaptionSet]

    def with_captions(self, added: Sequence[Mapping[str, str]]) -> str:
        """The line with captions put in, one mapping per set: new languages at the end, those there replaced."""
        edits = []
        for each, captions in zip(self.sets, added, strict=True):
            new = []
            for language, caption in captions.items():
                value = json.dumps(caption, ensure_ascii=False)
                if language in each.places:
                    edits.append((each.places[language], value))
                else:
                    new.append(f"{json.dumps(language, ensure_ascii=False)}: {value}")
            if new:
                place = each.brace if each.last is None else each.last
                edits.append((Span(place, place), ("" if each.last is None else ", ") + ", ".join(new)))
        text = self.text
        for place, value in sorted(edits, reverse=True):
            text = text[: place.start] + value + text[place.end :]
        return text


def parse_caption_line(text: str, key: str) -> CaptionLine:
    """The caption sets under a field of a line; BadRecord if it has none."""
    try:
        start = _skip(text, 0)
        members = list(_walk(text, start, "{}"))
        end = _skip(text, _closing(text, start, [place for _, _, place in members]) + 1)
        if end != len(text):
            raise ValueError(f"extra data at character {end}")
    except (ValueError, IndexError, RecursionError) as error:
        raise BadRecord("broken JSON", json_fault(error)) from error
    fields = {name: (value, place) for name, value, place in members}
    if key not in fields:
        raise BadRecord("missing caption", f"field '{key}' is missing; found: {', '.join(fields) or 'none'}")
    value, place = fields[key]
    found = list(_walk(text, place.start, "[]")) if isinstance(value, list) else [("", value, place)]
    wrong = [type(each).__name__ for _, each, _ in found if not isinstance(each, dict)]
    if wrong or not found:
        words = wrong[0] if wrong else "an empty list"
        raise BadRecord("missing caption", f"field '{key}' must hold objects of languages; found {words}")
    return CaptionLine(text, [_caption_set(text, each, span.start) for _, each, span in found])


def _caption_set(text: str, captions: dict[str, Any], start: int) -> CaptionSet:
    members = list(_walk(text, start, "{}"))
    brace = _closing(text, start, [place for _, _, place in members])
    return CaptionSet(captions, {name: place for name, _, place in members}, brace)


def _walk(text: str, start: int, marks: str) -> Iterator[tuple[str, Any, Span]]:
    """Names, values and the values' places in the object or list at `start`; names in a list are empty."""
    if text[start] != marks[0]:
        raise ValueError(f"expected {marks[0]} at character {start}, found {text[start]!r}")
    at = _skip(text, start + 1)
    if text[at] == marks[1]:
        return
    while True:
        name = ""
        if marks == "{}":
            name, at = DECODER.raw_decode(text, at)
            at = _skip(text, at)
            if not isinstance(name, str) or text[at] != ":":
                raise ValueError(f"expected a name and a colon before character {at}")
            at = _skip(text, at + 1)
        value, end = DECODER.raw_decode(text, at)
        yield name, value, Span(at, end)
        at = _skip(text, end)
        if text[at] == marks[1]:
            return
        if text[at] != ",":
            raise ValueError(f"expected , or {marks[1]} at character {at}, found {text[at]!r}")
        at = _skip(text, at + 1)


def _closing(text: str, start: int, places: list[Span]) -> int:
    """Where the mark stands that closes the object at `start` with these values."""
    return _skip(text, places[-1].end if places else start + 1)


def _skip(text: str, at: int) -> int:
    """The next position that is not blank."""
    return BLANK.match(text, at).end()
