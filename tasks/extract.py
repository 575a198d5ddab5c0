"""`--task extract_features`: embeddings of pictures and texts under any model, in files that --task search reads.

Letters: M images, T texts, E embedding.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dataset.extraction import ImageSource, TextSource, open_image_source
from dataset.files import DataError
from dataset.vectors import Kind, check_format, write_vectors
from tasks.encode_files import AnyPrecision, encode_pictures, encode_tokens
from tasks.tool import Tool, ToolConfig
from utils import distributed
from utils.digest import digest_of_weights
from utils.progress import Progress

TEXTS_END, LINES_END = "_texts.jsonl", ".jsonl"


class ExtractFeatures(Tool):
    """Writes unit vectors in the order of the data; ranks share the work, and a stopped command goes on."""

    @dataclass
    class Config(ToolConfig):
        image_data: str = ""  # *.tsv, an LMDB folder, a folder or zip of pictures
        text_data: str = ""  # *.jsonl with text_id and text
        parts: list[Literal["image", "text"]] = field(default_factory=list)  # none: what data is given for
        image_output: str = ""  # *.jsonl, *.npy (ids beside it) or *.parquet; empty: beside the texts
        text_output: str = ""
        model_config: str = ""  # the YAML that describes the model; empty: the checkpoint's own
        image_batch_size: int = 64
        text_batch_size: int = 64
        context_length: int = 0  # tokens of a text; 0: as many as the model was trained with
        precision: AnyPrecision = "fp32"
        num_workers: int = 0
        part_size: int = 4096  # vectors between two stored parts

        def __post_init__(self) -> None:
            data = {"image": self.image_data, "text": self.text_data}
            self.parts = self.parts or [kind for kind, path in data.items() if path]
            absent = [f"{kind}_data" for kind in self.parts if not data[kind]]
            if absent or not self.parts:
                raise ValueError(f"{' and '.join(absent) or 'image_data or text_data'} must be given")
            if not self.checkpoint:
                raise ValueError("--checkpoint is needed: a run of ours or a file of an original system")
            for name, least in (("image_batch_size", 1), ("text_batch_size", 1), ("part_size", 1), ("num_workers", 0)):
                if getattr(self, name) < least:
                    raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")
            if self.context_length and self.context_length < 3:
                raise ValueError(f"context_length must be at least 3 (0: the model's own), found {self.context_length}")
            for kind in self.parts:
                check_format(self.output_of(kind))

        def output_of(self, kind: Kind) -> Path:
            """The file to write; the original's names where none is given."""
            if given := self.image_output if kind == "image" else self.text_output:
                return Path(given)
            if not self.text_data.endswith(LINES_END):
                raise ValueError(
                    f"{kind}_output must be given: only beside text_data (*.jsonl) has it a name of its own"
                )
            if kind == "text":
                return Path(self.text_data.removesuffix(LINES_END) + ".txt_feat.jsonl")
            return Path(self.text_data.replace(TEXTS_END, "_imgs").removesuffix(LINES_END) + ".img_feat.jsonl")

    def run(self) -> dict[str, Any]:
        """Numbers of vectors and seconds by kind."""
        config = self.config
        device = distributed.device_for_rank()
        sources = {"image": open_image_source, "text": TextSource}
        opened = {kind: sources[kind](getattr(config, f"{kind}_data")) for kind in config.parts}
        loaded = self.load(config.checkpoint, config.model_config or None, device=str(device))
        if not loaded.model.has_common_space:
            raise ValueError(
                f"{config.checkpoint}: this model has no embeddings (model.projections), so none to extract"
            )
        self.weights = digest_of_weights(loaded.model.state_dict())
        result = {}
        for kind, source in opened.items():
            started = time.monotonic()
            encode = self._encode_images if kind == "image" else self._encode_texts
            count = self._extract(kind, source, lambda places, e=encode, s=source: e(loaded, s, places, device))
            seconds = time.monotonic() - started
            result[kind] = {"count": count, "seconds": round(seconds, 2), "file": str(config.output_of(kind))}
        return result

    def summary(self, result: dict[str, Any]) -> str:
        """A line for each file."""
        return "".join(
            f"{each['count']:,} {kind}s in {each['seconds']} s: {each['file']}\n" for kind, each in result.items()
        )

    def _extract(self, kind: Kind, source: Any, encode: Callable[[list[list[int]]], Iterator[Tensor]]) -> int:
        """Encode what no part holds yet, and make one file of the parts."""
        total, size, output = len(source.ids), self.config.part_size, self.config.output_of(kind)
        if not total:
            raise DataError(f"{getattr(self.config, f'{kind}_data')}: holds no {kind}s")
        store = PartStore(output, self._fingerprint(kind, source))
        if distributed.is_main():
            store.prepare()
        distributed.barrier()
        parts = [range(start, min(start + size, total)) for start in range(0, total, size)]
        own = list(range(distributed.rank(), len(parts), distributed.world_size()))
        missing = [number for number in own if not store.has(number)]
        done = sum(len(parts[number]) for number in own) - sum(len(parts[number]) for number in missing)
        with Progress(
            sum(len(parts[number]) for number in own), f"{kind}s", is_shown=distributed.is_main(), done=done
        ) as progress:
            for number, vectors in zip(missing, encode([list(parts[number]) for number in missing]), strict=True):
                store.write(number, vectors.cpu().numpy())
                progress.advance(len(vectors))
        distributed.barrier()
        if distributed.is_main():
            write_vectors(
                output, kind, (([source.ids[k] for k in part], store.read(n)) for n, part in enumerate(parts))
            )
            store.remove()
        distributed.barrier()
        return total

    def _fingerprint(self, kind: Kind, source: Any) -> str:
        """What parts of another run must share to be gone on with."""
        config = self.config
        settings = [kind, config.context_length, config.precision, config.part_size, self.weights]
        return hashlib.sha256(json.dumps([*settings, *source.stamps()]).encode("utf-8", "surrogateescape")).hexdigest()

    def _encode_images(
        self, loaded: Any, source: ImageSource, parts: list[list[int]], device: torch.device
    ) -> Iterator[Tensor]:
        """Vectors (M, E) of one part after the other."""
        config = self.config
        return encode_pictures(
            loaded,
            source,
            parts,
            device,
            config.precision,
            batch_size=config.image_batch_size,
            workers=config.num_workers,
        )

    def _encode_texts(
        self, loaded: Any, source: TextSource, parts: list[list[int]], device: torch.device
    ) -> Iterator[Tensor]:
        """Vectors (T, E) of one part after the other."""
        config = self.config
        max_tokens = config.context_length or loaded.inputs.config.max_tokens
        for part in parts:
            tokens = source.encode(part, loaded.inputs, max_tokens)
            yield encode_tokens(loaded, tokens, device, config.precision, batch_size=config.text_batch_size)


class PartStore:
    """The vectors of a stopped extraction beside its output; parts of other weights, data or settings are dropped."""

    def __init__(self, output: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = output.with_name(f".{output.name}.parts"), fingerprint

    def prepare(self) -> None:
        """Make the folder, empty unless its parts fit."""
        mark = self.folder / "made_from"
        if self.folder.is_dir() and (not mark.is_file() or mark.read_text() != self.fingerprint):
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(self.fingerprint)

    def has(self, number: int) -> bool:
        return self._path(number).is_file()

    def write(self, number: int, vectors: np.ndarray) -> None:
        """Keep a part; it is there when it is whole."""
        temporary = self.folder / f"{number}.partial"
        with open(temporary, "wb") as file:
            np.save(file, vectors)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path(number))

    def read(self, number: int) -> np.ndarray:
        return np.load(self._path(number), allow_pickle=False)

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.npy"
