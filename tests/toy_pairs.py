"""A data set in Chinese-CLIP's layout: `<split>_imgs.tsv` and `<split>_texts.jsonl`."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from configs.schema import Config
from models.model import Model
from tests.toy_ccrk import toy_settings, write_toy_data
from utils.config import build, dump_yaml

COLOURS = {11: (200, 30, 30), 7: (30, 200, 30), 105: (30, 30, 200), 23: (200, 200, 30)}
TEXTS = [
    {"text_id": 1, "text": "\u201cRED\u201d colour", "image_ids": [11]},
    {"text_id": 2, "text": "green or blue", "image_ids": [7, 105]},
    {"text_id": 3, "text": "blue", "image_ids": [105]},
]


def png(colour: tuple[int, int, int], size: tuple[int, int] = (20, 16)) -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", size, colour).save(packed, "PNG")
    return packed.getvalue()


def image_lines() -> list[str]:
    return [f"{key}\t{base64.b64encode(png(colour)).decode()}" for key, colour in COLOURS.items()]


def write_split(folder: Path, split: str = "valid", images: list[str] | None = None, texts: list | None = None) -> str:
    """The path of the texts' file; image 23 has no text."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = image_lines() if images is None else images
    (folder / f"{split}_imgs.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    records = TEXTS if texts is None else texts
    path = folder / f"{split}_texts.jsonl"
    words = [text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in records]
    path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return str(path)


def write_run(folder: Path) -> Path:
    """An output folder with fresh weights of a tiny model."""
    write_toy_data(folder / "data", num_images=4)
    settings = build(Config, toy_settings(folder / "data"))
    torch.manual_seed(0)
    place = folder / "run" / "checkpoints/last"
    place.mkdir(parents=True)
    save_file({f"model.{n}": v for n, v in Model(settings.model).state_dict().items()}, place / "model.safetensors")
    dump_yaml(settings, folder / "run" / "config.yaml")
    return folder / "run"
