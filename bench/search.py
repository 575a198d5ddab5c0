"""A10: Chinese-CLIP's evaluation after extraction, one query at a time as its scripts go, and ours.

Files of both towers' vectors -> ten predictions per query in both directions -> recall. The plain way reads JSON lines,
ours the .npy that extraction writes as well; MUGE's validation has 5,008 texts and 29,806 images. The plain way reads
all files, but answers every SHARE-th query only, and the seconds of its loop over queries count SHARE times.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bench.common import Options, Result, agree, interleaved, ratio, spread
from dataset.vectors import write_vectors
from tasks.evaluate_predictions import evaluate, transpose
from tasks.search import Search

NUM_ANSWERS = 10
SHARE = 50
TOLERANCE = 1e-6  # of a product; answers so near to each other may change places
DIRECTIONS = (("text", "image"), ("image", "text"))  # queries, gallery


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
        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        ways: dict[str, Callable[[], object]] = {
            "plain": lambda: seconds["plain"].append(plain_way(folder)),
            "ours": lambda: seconds["ours"].append(our_way(folder)),
        }
        interleaved(ways, options.repeats)
        words = compare(folder)
    plain, ours = (each[1:] for each in seconds.values())  # the first run of each warms up
    return [
        Result(
            row="A10",
            what=f"search and recall both ways, {num_texts:,} texts and {num_images:,} images of {width}, files read",
            plain=spread(plain),
            ours=spread(ours),
            ratio=f"{ratio(plain, ours):.1f}x",
            floor="40x",
            goal="80x",
            agreement=words,
            notes=[f"A10: the plain way answers every {SHARE}th query, and its loop's seconds count {SHARE} times"],
        )
    ]


def our_way(folder: Path) -> float:
    """Seconds."""
    start = time.perf_counter()
    outputs = {"output": str(folder / "ours_text.jsonl"), "output_tr": str(folder / "ours_image.jsonl")}
    files = {"image_feats": str(folder / "image.npy"), "text_feats": str(folder / "text.npy")}
    Search(Search.Config(**files, **outputs), None).run()
    for path, direction in zip(outputs.values(), ("text_to_image", "image_to_text"), strict=True):
        evaluate(folder / "texts.jsonl", Path(path), direction)
    return time.perf_counter() - start


def plain_way(folder: Path) -> float:
    """Seconds of the original's loops: a list of pairs filled and sorted for each query."""
    seconds = 0.0
    right = {"text": {k: [image] for k, image in right_images(folder)}, "image": transpose(folder / "texts.jsonl")}
    for query, gallery in DIRECTIONS:
        start = time.perf_counter()
        gallery_ids, vectors = read_plain(folder, gallery)
        spent = 0.0
        with open(folder / f"plain_{query}.jsonl", "w") as file, open(folder / f"{query}.jsonl") as queries:
            for number, line in enumerate(queries):
                record = json.loads(line)
                if number % SHARE:
                    continue
                begun = time.perf_counter()
                scores = torch.tensor([record["feature"]]) @ vectors.T
                pairs = []
                for key, score in zip(gallery_ids, scores.squeeze(0).tolist(), strict=True):
                    pairs.append((key, score))  # one by one, as the original fills it
                best = sorted(pairs, key=lambda pair: pair[1], reverse=True)[:NUM_ANSWERS]
                answers = {f"{query}_id": record[f"{query}_id"], f"{gallery}_ids": [key for key, _ in best]}
                file.write(json.dumps(answers) + "\n")
                spent += time.perf_counter() - begun
        found = read_answers(folder / f"plain_{query}.jsonl", query, gallery)
        for k in (1, 5, 10):
            sum(any(key in found[asked][:k] for key in ids) for asked, ids in right[query].items() if asked in found)
        seconds += time.perf_counter() - start + (SHARE - 1) * spent
    return seconds


def compare(folder: Path) -> str:
    """Raise Disagreement unless both ways give the plain way's queries answers of equal scores."""
    vectors = {kind: torch.from_numpy(np.load(folder / f"{kind}.npy")).double() for kind in ("image", "text")}
    for query, gallery in DIRECTIONS:
        plain, ours = (read_answers(folder / f"{way}_{query}.jsonl", query, gallery) for way in ("plain", "ours"))
        for asked, answers in plain.items():
            scores = (vectors[gallery][rows] @ vectors[query][asked] for rows in (ours[asked], answers))
            agree(*scores, TOLERANCE, f"answers to {query} {asked}")
    return "answers of equal scores"


def read_answers(path: Path, query: str, gallery: str) -> dict[int, list[int]]:
    """The answers of every query in a file of predictions."""
    records = (json.loads(line) for line in path.read_text().splitlines())
    return {record[f"{query}_id"]: record[f"{gallery}_ids"] for record in records}


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
