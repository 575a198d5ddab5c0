"""A10: Chinese-CLIP's evaluation after extraction, one query at a time as its scripts go, and ours.

Files of both towers' vectors -> ten predictions per query in both directions -> recall. The plain way reads JSON lines,
ours the .npy that extraction writes as well; MUGE's validation has 5,008 texts and 29,806 images.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.common import Disagreement, Options, Result, interleaved, ratio, spread
from dataset.vectors import write_vectors
from tasks.evaluate_predictions import evaluate, transpose
from tasks.search import Search

NUM_ANSWERS = 10


def run(options: Options) -> list[Result]:
    """Row A10."""
    num_texts, num_images, width = (40, 60, 16) if options.is_small else (5008, 29806, 512)
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(num_images, width, generator=generator), dim=1)
    right = torch.randint(num_images, (num_texts,), generator=generator)
    noise = torch.randn(num_texts, width, generator=generator) / width**0.5
    texts = F.normalize(images[right] + 3 * noise, dim=1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for kind, values in (("image", images), ("text", texts)):
            for suffix in ("jsonl", "npy"):
                write_vectors(folder / f"{kind}.{suffix}", kind, iter([(range(len(values)), values.numpy())]))
        lines = [{"text_id": k, "text": "", "image_ids": [int(image)]} for k, image in enumerate(right)]
        (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        found: dict[str, list[dict[int, float]]] = {}
        ways = {
            "plain": lambda: found.update(plain=plain_way(folder)),
            "ours": lambda: found.update(ours=our_way(folder)),
        }
        seconds = interleaved(ways, options.repeats)
    if found["plain"] != found["ours"]:
        raise Disagreement(f"recalls: plain {found['plain']}, ours {found['ours']}")
    return [
        Result(
            row="A10",
            what=f"search and recall both ways, {num_texts:,} texts and {num_images:,} images of {width}, files read",
            plain=spread(seconds["plain"]),
            ours=spread(seconds["ours"]),
            ratio=f"{ratio(seconds['plain'], seconds['ours']):.1f}x",
            floor="40x",
            goal="80x",
            agreement="equal recalls",
        )
    ]


def our_way(folder: Path) -> list[dict[int, float]]:
    """Recalls of texts and of images by K."""
    outputs = {"output": str(folder / "ours.jsonl"), "output_tr": str(folder / "ours_tr.jsonl")}
    files = {"image_feats": str(folder / "image.npy"), "text_feats": str(folder / "text.npy")}
    Search(Search.Config(**files, **outputs), None).run()
    directions = zip(outputs.values(), ("text_to_image", "image_to_text"), strict=True)
    return [evaluate(folder / "texts.jsonl", Path(path), direction) for path, direction in directions]


def plain_way(folder: Path) -> list[dict[int, float]]:
    """The same with a list of pairs sorted for each query, as the original's scripts do it."""
    reference = {k: [image] for k, image in right_images(folder)}
    recalls = []
    for query, gallery, right in (("text", "image", reference), ("image", "text", transpose(folder / "texts.jsonl"))):
        (query_ids, queries), (gallery_ids, vectors) = (read_plain(folder, kind) for kind in (query, gallery))
        answers = {}
        for key, vector in zip(query_ids, queries, strict=True):
            scores = (vector[None] @ vectors.T).squeeze(0).tolist()
            pairs = sorted(zip(gallery_ids, scores, strict=True), key=lambda pair: pair[1], reverse=True)
            answers[key] = [answer for answer, _ in pairs[:NUM_ANSWERS]]
        hits = {k: sum(any(a in answers[q][:k] for a in ids) for q, ids in right.items()) for k in (1, 5, 10)}
        recalls.append({k: count / len(right) * 100 for k, count in hits.items()})
    return recalls


def right_images(folder: Path) -> list[tuple[int, int]]:
    lines = (json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines())
    return [(line["text_id"], line["image_ids"][0]) for line in lines]


def read_plain(folder: Path, kind: str) -> tuple[list[int], torch.Tensor]:
    """Ids and vectors of a JSON-lines file, line by line."""
    ids, vectors = [], []
    with open(folder / f"{kind}.jsonl", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            ids.append(record[f"{kind}_id"])
            vectors.append(record["feature"])
    return ids, torch.tensor(vectors)


ROWS = {"A10": run}
