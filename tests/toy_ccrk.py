"""A toy pre-training set on disk, line-JSON and retrieval files in CCRK's layouts, and the settings that read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "grey": (128, 128, 128)}
GERMAN = {"red": "rot", "green": "gruen", "blue": "blau", "grey": "grau"}
SHAPES = {"left": "links", "right": "rechts", "top": "oben", "bottom": "unten"}
TOKENIZER = ROOT / "assets" / "emoji" / "tokenizer.json"


def write_toy_data(folder: Path, num_images: int = 24) -> None:
    """Pictures of coloured half planes; captions in English and German."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(num_images):
        colour, place = list(COLOURS)[number % 4], list(SHAPES)[number // 4 % 4]
        pixels = np.full((40, 40, 3), 255 - number, np.uint8)
        half = {"left": np.s_[:, :20], "right": np.s_[:, 20:], "top": np.s_[:20], "bottom": np.s_[20:]}[place]
        pixels[half] = COLOURS[colour]
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        english = f"{colour} colour {place} side number {number}"
        german = f"{GERMAN[colour]} farbe {SHAPES[place]} nummer {number}"
        records.append({"image": f"{number}.png", "image_id": number, "caption": {"en": english, "de": german}})
    for part, chosen in enumerate((records[: num_images // 2], records[num_images // 2 :])):
        lines = [json.dumps({"caption": r["caption"], "image_path": r["image"]}) for r in chosen]
        path = folder / "pretrain" / f"part_{part}.data"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for language in ("en", "de"):
        train = [{"caption": r["caption"][language], "image": r["image"], "image_id": r["image_id"]} for r in records]
        test = [{**entry, "caption": [entry["caption"]]} for entry in train[:8]]
        for split, content in (("train", train), ("val", test), ("test", test)):
            (folder / f"{split}.{language}.json").write_text(json.dumps(content), encoding="utf-8")


def toy_settings(folder: Path, **train: Any) -> dict[str, Any]:
    """A tiny CCRK on the toy set: 1-to-K, matching and masked words."""
    files = {split: {name: str(folder / f"{split}.{name}.json") for name in ("en", "de")} for split in ("val", "test")}
    pairs = {s: {"name": "image_text_pairs", "image_root": str(folder / "images"), "files": files[s]} for s in files}
    text = {"name": "bert", "vocab_size": 4000, "width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32}
    return {
        "task": "pretrain",
        "seed": 7,
        "model": {
            "image_encoder": {
                "name": "vit",
                "image_size": 32,
                "width": 16,
                "num_layers": 1,
                "num_heads": 2,
                "drop_path": 0.1,
            },
            "text_encoder": {**text, "max_positions": 50},
            "text_fusion": {"num_layers": 1},
            "embed_dim": 8,
            "has_masked_language_head": True,
        },
        "objectives": {"one_to_k": {}, "itm": {}, "mlm": {}},
        "data": {
            "tokenizer": str(TOKENIZER),
            "train": {
                "name": "captioned_images",
                "files": [str(folder / "pretrain")],
                "image_root": str(folder / "images"),
                "languages": ["en", "de"],
            },
            **pairs,
            "batch_size": 4,
            "max_tokens": 20,
            "cache_dir": "",
        },
        "evaluation": {"num_candidates": 4},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 3, "log_every_steps": 1, "save_every_steps": 2, "clip_norm": 1.0} | train,
    }
