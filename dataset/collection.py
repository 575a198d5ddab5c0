"""A folder of pictures to search, with what is known of each; pictures are asked for by opaque ids, never by path."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dataset.files import MAX_FILE_BYTES, DataError, Files, split_member
from dataset.readers import Records
from utils.remote import is_remote

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".jp2", ".tga")
CAPTION_KEYS = ("captions", "caption", "sentences", "text")
PATH_KEYS = ("image", "img_path", "image_path", "file_name")


@dataclass(frozen=True)
class Picture:
    """A picture's path, the name that people see, its id, a key that changes with its content, and its captions by
    language ("" where none is known).
    """

    path: str
    name: str
    picture_id: str
    key: str
    captions: dict[str, str] = field(default_factory=dict)


class Collection:
    """The pictures below some folders, zips or files, in the order of their names."""

    def __init__(self, roots: Sequence[str], captions: Sequence[str] = ()) -> None:
        self._local = threading.local()
        known = Captions(captions, self.files)
        found: dict[str, Picture] = {}
        for root in roots:
            if not is_remote(root) and not os.path.exists(split_member(root)[0]):
                raise FileNotFoundError(f"{root}: no such folder of pictures")
            for path in _list_pictures(root, self.files):
                name = _name_below(root, path)
                picture_id = hashlib.sha256(f"{root}\n{name}".encode("utf-8", "surrogateescape")).hexdigest()[:20]
                stamp = self.files.stamp(path)
                key = hashlib.sha256(f"{path}|{stamp}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
                shown = name.encode("utf-8", "replace").decode()
                found[path] = Picture(path, shown, picture_id, key, known.of(path))
        if not found:
            raise DataError(f"{', '.join(roots)}: no pictures; looked for files that end in {', '.join(SUFFIXES)}")
        self.pictures = list(found.values())
        self.place = {picture.picture_id: place for place, picture in enumerate(self.pictures)}

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def files(self) -> Files:
        """The reader of this thread: open archives are not shared."""
        if not hasattr(self._local, "files"):
            self._local.files = Files()
        return self._local.files

    def read(self, place: int) -> bytes:
        """A picture as it is stored; OSError if it is no longer there, BadRecord if it is too large."""
        return self.files.read(self.pictures[place].path, MAX_FILE_BYTES)


class Captions:
    """Captions of pictures from JSON lists or JSON lines that name each picture by the end of its path."""

    def __init__(self, paths: Sequence[str], files: Files) -> None:
        self._known: dict[str, dict[str, dict[str, str]]] = {}  # last part of the path -> path -> language -> caption
        for path in paths:
            records = Records([path], files)
            for number in range(len(records)):
                self._add(records.read(number), records.where(number))

    def of(self, path: str) -> dict[str, str]:
        """By language; {} where nothing is known of the picture."""
        candidates = self._known.get(_last_part(path), {})
        ends = [name for name in candidates if f"/{path}".replace("::", "/").endswith(f"/{name}")]
        chosen = max(ends, key=len) if ends else next(iter(candidates)) if len(candidates) == 1 else ""
        return candidates.get(chosen, {})

    def _add(self, record: dict[str, Any], where: str) -> None:
        image = next((record[key] for key in PATH_KEYS if isinstance(record.get(key), str)), None)
        caption = next((record[key] for key in CAPTION_KEYS if key in record), None)
        if image is None or caption is None:
            raise DataError(
                f"{where}: needs one of {', '.join(PATH_KEYS)} and one of {', '.join(CAPTION_KEYS)}; "
                f"found: {', '.join(record)}"
            )
        own = self._known.setdefault(_last_part(image), {}).setdefault(image.lstrip("./"), {})
        own.update(_by_language(caption))


def _list_pictures(root: str, files: Files) -> list[str]:
    paths = files.list_folder(f"{root}::" if root.lower().endswith(".zip") else root)
    return [path for path in paths if path.lower().endswith(SUFFIXES)]


def _name_below(root: str, path: str) -> str:
    """The path from the root on; for a single file its last part."""
    return path.removeprefix(root.rstrip("/")).removeprefix("::").lstrip("/") or _last_part(path)


def _last_part(path: str) -> str:
    return path.replace("::", "/").rpartition("/")[2]


def _by_language(caption: Any) -> dict[str, str]:
    if isinstance(caption, dict):
        return {str(language): text for language, text in caption.items() if isinstance(text, str)}
    texts = caption if isinstance(caption, list) else [caption]
    return {"": "; ".join(text for text in texts if isinstance(text, str))}
