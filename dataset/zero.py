"""The human-labelled sets of Zero (R2D2): lines {text, image_path} of ICR and IQR, with a label of ICM and IQM, and
`name#k<TAB>caption` of Flickr30k-CNA, which Flickr30k-CN and COCO-CN share.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dataset.files import BadRecord
from dataset.labelled import Example, LabelledConfig, LabelledTexts
from dataset.retrieval import Entry, ImageTextPairs, PairsConfig
from dataset.sections import field_of, text_of

# The number may be absent before a tab, and what follows a further tab is no caption.
_NUMBERED = re.compile(r"([^#\t]+)(?:#\S*[\t ]+|\t\s*)([^\t]*).*")


def named_picture(value: Any) -> str:
    """The base name of a record's image path: folders in it are those of whoever made the file."""
    name = PurePosixPath(text_of(value, "image_path")).name
    if not name:
        raise BadRecord("missing image_path", f"field 'image_path' names no file, found {value!r}")
    return name


class ZeroLines(ImageTextPairs):
    """Pairs from lines {text, image_path}; all pictures lie in one folder under their base names."""

    @dataclass
    class Config(PairsConfig):
        name: str = "zero_lines"
        image_root: str = ""

        def read(self, record: dict[str, Any]) -> Entry:
            image = named_picture(field_of(record, "image_path"))
            # The released reader tells pictures apart by their names without the last four characters.
            return Entry(image, self.image_root, image[:-4], [field_of(record, "text")], image)


class ZeroLabels(LabelledTexts):
    """Lines {text, image_path, label}: does the text belong to the picture (ICM, IQM)."""

    @dataclass
    class Config(LabelledConfig):
        name: str = "zero_labels"
        image_root: str = ""

        def read(self, record: dict[str, Any], language: str) -> Example:
            label = field_of(record, "label")
            if label not in (0, 1, "0", "1"):
                raise BadRecord("unknown label", f"found {label!r}; allowed: 0, 1")
            image = named_picture(field_of(record, "image_path"))
            return Example(((image, self.image_root),), field_of(record, "text"), int(label))


class NumberedCaptions(ImageTextPairs):
    """Pairs from text lines `name#k<TAB>caption`."""

    @dataclass
    class Config(PairsConfig):
        name: str = "numbered_captions"
        # Where pictures lie; by the beginning of their names where that differs (COCO's train2014 and val2014).
        image_root: str | dict[str, str] = ""
        suffix: str = ".jpg"  # of picture files whose names in the lines have none
        only: str = ""  # file of picture names, one a line: the split; empty takes all

        def __post_init__(self) -> None:
            super().__post_init__()
            self._wanted: set[str] | None = None

        def parse(self, line: bytes) -> dict[str, Any]:
            """A line's picture and caption."""
            try:
                text = line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise BadRecord("not UTF-8", str(error)[:200]) from error
            found = _NUMBERED.fullmatch(text.strip())
            if not found:
                raise BadRecord("not a numbered caption", f"expected name#k<TAB>caption, found {line[:60]!r}")
            return {"name": found[1], "caption": found[2]}

        def read(self, record: dict[str, Any]) -> Entry:
            name = record["name"]
            image = name if name.endswith(self.suffix) else name + self.suffix
            key = image.removesuffix(self.suffix)
            captions = [record["caption"]] if self._is_wanted(key) else []
            return Entry(image, self._root(image), key, captions, image)

        def _is_wanted(self, key: str) -> bool:
            if not self.only:
                return True
            if self._wanted is None:
                lines = Path(self.only).read_text(encoding="utf-8").split()
                self._wanted = {line.removesuffix(self.suffix) for line in lines}
            return key in self._wanted

        def _root(self, image: str) -> str:
            if isinstance(self.image_root, str):
                return self.image_root
            for beginning, root in self.image_root.items():
                if image.startswith(beginning):
                    return root
            raise BadRecord("no folder", f"{image} begins with none of {', '.join(self.image_root)} (image_root)")
