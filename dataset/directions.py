"""Words that a mirror image turns wrong, such as left and right, in many languages.

A list is a JSON object {language: [word, ...]}. `left` stands for that word alone, `left*` for all words that begin so,
`*left*` for these letters anywhere, as languages without blanks need it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

DIRECTION_WORDS = Path(__file__).with_name("direction_words.json")


class Directions:
    """Tells whether a caption speaks of left or right."""

    def __init__(self, path: str | Path = DIRECTION_WORDS) -> None:
        path = Path(path)
        try:
            words = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not a list of direction words; {error}") from error
        if not isinstance(words, dict) or not all(isinstance(found, list) and found for found in words.values()):
            raise ValueError(f"{path}: not a list of direction words; allowed: {{language: [word, ...]}}")
        self.patterns = {language: _pattern(found) for language, found in words.items()}
        self.any_language = _pattern([word for found in words.values() for word in found])

    def are_in(self, text: str, language: str) -> bool:
        """Whether the text holds such a word; in a language without a list those of all languages count."""
        return self.patterns.get(language, self.any_language).search(text.casefold()) is not None


def _pattern(words: list[str]) -> re.Pattern[str]:
    parts = []
    for word in words:
        begin, end = ("" if word.startswith("*") else r"\b"), ("" if word.endswith("*") else r"\b")
        parts.append(begin + re.escape(word.strip("*").casefold()) + end)
    return re.compile("|".join(parts))
