"""`--task search`: the best images of every text and the best texts of every image, from files of embeddings."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.vectors import Vectors, check_format, read_vectors
from tasks.tool import Tool, ToolConfig
from utils import distributed
from utils.nearest import Nearest, nearest

# Approximate search: cells of the gallery that a query looks into, of sqrt(G) * CELLS_PER_ROOT.
CELLS_PER_ROOT, CELLS_SEARCHED = 4, 0.05

log = logging.getLogger(__name__)


class Search(Tool):
    """Writes the original's prediction files; exact, but for galleries above `approximate_above`."""

    @dataclass
    class Config(ToolConfig):
        image_feats: str = ""
        text_feats: str = ""
        output: str = ""  # the images of every text
        output_tr: str = ""  # the texts of every image
        top_k: int = 10
        gallery_block: int = 65536
        # Above so many vectors faiss searches a part of them (about 1 query in 100 misses a neighbour).
        approximate_above: int = 5_000_000

        def __post_init__(self) -> None:
            if not self.image_feats or not self.text_feats:
                raise ValueError("image_feats and text_feats are needed: files that --task extract_features wrote")
            if not self.output and not self.output_tr:
                raise ValueError("name output (images of every text), output_tr (texts of every image), or both")
            if min(self.top_k, self.gallery_block, self.approximate_above) < 1:
                raise ValueError("top_k, gallery_block and approximate_above must be at least 1")
            for path in (self.image_feats, self.text_feats):
                check_format(path)

    def run(self) -> dict[str, Any]:
        """Numbers of queries and seconds; the first process of a group does the work."""
        result: dict[str, Any] = {}
        if distributed.is_main():
            started, config = time.monotonic(), self.config
            images, texts = read_vectors(config.image_feats, "image"), read_vectors(config.text_feats, "text")
            check_widths(images, texts, config.image_feats, config.text_feats)
            result |= {"images": len(images.ids), "texts": len(texts.ids)}
            result["read_seconds"] = round(time.monotonic() - started, 2)
            for queries, gallery, output in ((texts, images, config.output), (images, texts, config.output_tr)):
                if output:
                    self._search(queries, gallery, Path(output))
            result["seconds"] = round(time.monotonic() - started, 2)
        return distributed.broadcast_object(result)

    def summary(self, result: dict[str, Any]) -> str:
        """What was searched, and where the answers are."""
        outputs = " and ".join(filter(None, (self.config.output, self.config.output_tr)))
        return f"{result['texts']:,} texts, {result['images']:,} images, {result['seconds']} s: {outputs}\n"

    def _search(self, queries: Vectors, gallery: Vectors, output: Path) -> None:
        if len(gallery.ids) < self.config.top_k:
            log.warning("only %d %ss: fewer than top_k %d", len(gallery.ids), gallery.kind, self.config.top_k)
        device = distributed.device_for_rank()
        if len(gallery.ids) > self.config.approximate_above:
            found = approximate(queries.values, gallery.values, self.config.top_k)
        else:
            rows, columns = (torch.from_numpy(each.values).to(device) for each in (queries, gallery))
            found = nearest(rows, columns, self.config.top_k, gallery_block=self.config.gallery_block)
        write_predictions(output, queries, gallery, found.index.cpu())


def check_widths(images: Vectors, texts: Vectors, image_path: str, text_path: str) -> None:
    """Raise ValueError where the two files cannot be compared."""
    for vectors, path in ((images, image_path), (texts, text_path)):
        if not len(vectors.ids):
            raise ValueError(f"{path}: holds no vectors")
    if images.values.shape[1] != texts.values.shape[1]:
        raise ValueError(
            f"{image_path} has vectors of {images.values.shape[1]} values, {text_path} of {texts.values.shape[1]}: "
            "they come from different models"
        )


def approximate(queries: np.ndarray, gallery: np.ndarray, k: int) -> Nearest:
    """The K best among the nearest cells of a gallery that faiss has cut into some thousands."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f"a gallery of {len(gallery):,} vectors is searched with faiss, which is not here: pip install faiss-cpu; "
            f"or search exactly with approximate_above={len(gallery)}"
        ) from error
    width, num_cells = gallery.shape[1], max(1, int(CELLS_PER_ROOT * len(gallery) ** 0.5))
    log.info("%d vectors in %d cells, %.0f %% of them searched", len(gallery), num_cells, 100 * CELLS_SEARCHED)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, num_cells, faiss.METRIC_INNER_PRODUCT)
    index.train(gallery)
    index.add(gallery)
    index.nprobe = max(1, round(num_cells * CELLS_SEARCHED))
    score, found = index.search(queries, min(k, len(gallery)))
    return Nearest(torch.from_numpy(found), torch.from_numpy(score))


def write_predictions(output: Path, queries: Vectors, gallery: Vectors, index: Tensor) -> None:
    """A line for each query, {text_id, image_ids} or {image_id, text_ids}; the file appears when it is whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.partial")
    with open(temporary, "w", encoding="utf-8") as file:
        for query, row in zip(queries.ids, index.tolist(), strict=True):
            answers = [gallery.ids[place] for place in row if place >= 0]  # faiss fills up with -1
            file.write(json.dumps({f"{queries.kind}_id": query, f"{gallery.kind}_ids": answers}) + "\n")
    os.replace(temporary, output)
