"""Zero's labelled sets and Flickr30k-CNA in the documented layout, a few records each, and a tiny R2D2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from compat.weights import to_original
from configs.schema import load_settings
from models.model import Model
from utils.config import build, dump_yaml, to_tree

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = Path(__file__).parent / "parity" / "fixtures" / "r2d2" / "tokenizer"
NAMES = [f"{number:04x}" for number in range(12)]
# Chinese captions in the words of the toy vocabulary.
CAPTIONS = [e["text"] for e in json.loads((TOKENIZER / "tokens.json").read_text(encoding="utf-8"))["tiny"][:6]]
IMAGE = {"image_size": 32, "patch_size": 16, "width": 16, "num_layers": 1, "num_heads": 2}
TEXT = {"vocab_size": 88, "width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32, "max_positions": 70}
# What makes a released configuration tiny.
SIZES = [
    *(f"model.image_encoder.{key}={value}" for key, value in IMAGE.items()),
    *(f"model.text_encoder.{key}={value}" for key, value in TEXT.items()),
    "model.embed_dim=8",
    "data.tokenizer=vocab.txt",
    "data.num_workers=0",
    "data.cache_dir=",
    "train.log_every_steps=1",
]
STACKS = ["model.text_fusion.num_layers=2", "model.image_fusion.num_layers=2"]


def write_world(folder: Path) -> None:
    """Everything that the commands read, below `folder`."""
    (folder / "vocab.txt").write_bytes((TOKENIZER / "vocab.txt").read_bytes())
    for place, names in (("data/zero/IQR_IQM_ICR_ICM_images", NAMES), ("data/flickr30k_cna/Flickr30k-images", NAMES)):
        (folder / place).mkdir(parents=True)
        for number, name in enumerate(names):
            pixels = np.full((20, 24, 3), 20 * number, np.uint8)
            pixels[:10] = 255 - 20 * number
            Image.fromarray(pixels).save(folder / place / f"{name}.jpg")
    for name, kind in (("IQR", "short"), ("ICR", "long")):
        for split in ("train", "val"):
            write_lines(folder / f"data/zero/{name}/{split}/{kind}_itr_{split}.json", pairs())
    for name, kind in (("IQM", "short"), ("ICM", "long")):
        for split in ("train", "val"):
            labelled = [record | {"label": number % 2} for number, record in enumerate(pairs())]
            write_lines(folder / f"data/zero/{name}/{split}/{kind}_itm_{split}.json", labelled)
    for split in ("train", "val", "test"):
        path = folder / f"data/flickr30k_cna/{split}/flickr30k_cna_{split}.txt"
        path.parent.mkdir(parents=True)
        lines = [f"{name}#0\t{CAPTIONS[k % len(CAPTIONS)]}" for k, name in enumerate(NAMES)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pairs() -> list[dict[str, str]]:
    return [
        {"text": CAPTIONS[k % len(CAPTIONS)], "image_path": f"any/where/{name}.jpg"} for k, name in enumerate(NAMES)
    ]


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def tiny_model(name: str) -> Model:
    """The model of a released configuration with tiny sizes."""
    tree = to_tree(load_settings(ROOT / "configs" / "r2d2" / f"{name}.yaml").model)
    tree["image_encoder"] |= IMAGE
    tree["text_encoder"] |= TEXT
    for stack in ("text_fusion", "image_fusion"):
        tree[stack] = tree[stack] and {"num_layers": 2}
    torch.manual_seed(0)
    return Model(build(Model.Config, tree | {"embed_dim": 8}))


def write_checkpoint(path: Path, name: str = "flickr_cna_base", layout: str = "r2d2") -> None:
    """A file as released: the state dict under `model`, in the original's names."""
    model = tiny_model(name)
    torch.save({"model": to_original(model.state_dict(), to_tree(model.config), layout), "epoch": 3}, path)


def write_config(path: Path, name: str) -> None:
    """The configuration of `write_checkpoint`'s model, as a file."""
    config = load_settings(ROOT / "configs" / "r2d2" / f"{name}.yaml")
    config.model = tiny_model(name).config
    config.data.tokenizer, config.data.train, config.data.val, config.data.test = "vocab.txt", None, None, None
    dump_yaml(config, path)
