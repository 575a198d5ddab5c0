"""The embeddings of a collection: made once, kept on disk, and continued where it was stopped.

Letters: M images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.collection import Collection
from dataset.files import BadRecord
from tasks.encode_files import unit_vectors
from utils.config import to_tree
from utils.digest import digest_of_weights
from utils.progress import Progress

PART_IMAGES = 1024  # images between two stored parts
MAX_NAMED = 5
WHOLE = "index.npz"

log = logging.getLogger(__name__)


class IndexStore:
    """Vectors by picture key in one folder; every file in it appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> dict[str, np.ndarray]:
        """All stored vectors; a file that cannot be read counts as absent, and its pictures are encoded again."""
        found: dict[str, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as stored:
                    found.update(zip(stored["key"].tolist(), stored["embed"], strict=True))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                log.warning("%s: not a readable part of an index, made again (%s)", path, error)
        return found

    def add(self, vectors: dict[str, np.ndarray]) -> None:
        """One more part."""
        if vectors:
            name = hashlib.sha256("".join(vectors).encode()).hexdigest()[:16]
            self._write(f"part-{name}.npz", vectors)

    def settle(self, vectors: dict[str, np.ndarray]) -> None:
        """These vectors and no others, in one file."""
        self._write(WHOLE, vectors)
        for path in self.folder.glob("part-*.npz"):
            path.unlink(missing_ok=True)

    def _write(self, name: str, vectors: dict[str, np.ndarray]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        with temporary.open("wb") as file:
            np.savez(file, key=np.array(list(vectors)), embed=np.stack(list(vectors.values())))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / name)


def index_folder(base: str, loaded: Any, roots: Sequence[str]) -> Path:
    """Where the vectors of these pictures under these weights and this preparation of images are kept."""
    digest = hashlib.sha256(digest_of_weights(loaded.model.state_dict()).encode())
    trees = [to_tree(loaded.config.model), to_tree(loaded.config.data.test_transform)]
    digest.update(json.dumps([*trees, *roots], sort_keys=True, default=str).encode("utf-8", "surrogateescape"))
    return Path(base).expanduser() / digest.hexdigest()[:24]


class PixelReader:
    """Pictures of a collection as the model wants them, decoded by a few threads."""

    def __init__(self, collection: Collection, loaded: Any, num_threads: int) -> None:
        self.collection, self.inputs = collection, loaded.inputs
        self.pool = ThreadPoolExecutor(max(num_threads, 1), thread_name_prefix="decode")

    def read(self, places: Sequence[int]) -> list[Tensor | str]:
        """(3, S, S) uint8 each, or what is wrong with a picture."""
        return list(self.pool.map(self._read_one, places))

    def blocks(self, places: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], list[Tensor | str]]]:
        """Blocks of pictures; the next one is decoded while the caller works on this one."""
        chunks = [places[start : start + size] for start in range(0, len(places), size)]
        waiting = [self.pool.submit(self._read_one, place) for place in chunks[0]] if chunks else []
        for number, chunk in enumerate(chunks):
            following = chunks[number + 1] if number + 1 < len(chunks) else []
            ready, waiting = waiting, [self.pool.submit(self._read_one, place) for place in following]
            yield chunk, [future.result() for future in ready]

    def _read_one(self, place: int) -> Tensor | str:
        try:
            return self.inputs.images([self.collection.read(place)])[0]
        except (
            OSError,
            ValueError,
        ) as error:  # a picture that is gone or broken is left out; BadRecord is a ValueError
            return str(error.detail if isinstance(error, BadRecord) and error.detail else error)


def build_index(
    collection: Collection,
    loaded: Any,
    reader: PixelReader,
    store: IndexStore,
    *,
    batch_size: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[list[int], Tensor]:
    """Places of the pictures that could be read and their vectors (M, E); only what the store lacks is encoded.

    check is called between blocks, and may raise to leave.
    """
    pictures = collection.pictures
    known = store.read()
    missing = [place for place, picture in enumerate(pictures) if picture.key not in known]
    device, part, bad = next(loaded.model.parameters()).device, {}, {}
    if missing:
        log.info("%d of %d pictures are to be encoded", len(missing), len(pictures))
    with Progress(len(pictures), "pictures", is_shown=True, done=len(pictures) - len(missing)) as progress:
        for places, pixels in reader.blocks(missing, batch_size):
            check()
            good = [place for place, image in zip(places, pixels, strict=True) if isinstance(image, Tensor)]
            bad |= {place: image for place, image in zip(places, pixels, strict=True) if isinstance(image, str)}
            if good:
                with torch.inference_mode():
                    stacked = torch.stack([image for image in pixels if isinstance(image, Tensor)])
                    embed = unit_vectors(loaded.model, stacked.to(device)).float().cpu().numpy()
                part |= {pictures[place].key: vector for place, vector in zip(good, embed, strict=True)}
            if len(part) >= PART_IMAGES:
                store.add(part)
                known |= part
                part = {}
            progress.advance(len(places))
    known |= part
    kept = [place for place, picture in enumerate(pictures) if picture.key in known]
    _tell_bad(collection, bad)
    if not kept:
        raise ValueError(f"none of the {len(pictures)} pictures can be read, as {next(iter(bad.values()), '')}")
    vectors = {pictures[place].key: known[pictures[place].key] for place in kept}
    if missing or len(known) != len(vectors):
        store.settle(vectors)
    return kept, torch.from_numpy(np.stack([known[pictures[place].key] for place in kept]))


def _tell_bad(collection: Collection, bad: dict[int, str]) -> None:
    for place, problem in list(bad.items())[:MAX_NAMED]:
        log.warning("%s: left out; %s", collection.pictures[place].path, problem)
    if len(bad) > MAX_NAMED:
        log.warning("%d pictures could not be read and are left out", len(bad))
