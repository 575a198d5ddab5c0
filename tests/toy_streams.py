"""A toy CCLM pre-training beside the toy set: regions with boxes, parallel texts, pictures with plain captions."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tests.toy_ccrk import SHAPES, toy_settings, write_toy_data

HALVES = {"left": [0, 0, 20, 40], "right": [20, 0, 20, 40], "top": [0, 0, 40, 20], "bottom": [0, 20, 40, 20]}
NUM_IMAGES, NUM_PAIRS = 24, 20


def write_stream_data(folder: Path) -> None:
    """The toy pictures again: with one box each for its coloured half and the rest, with German text, and pairs."""
    write_toy_data(folder, NUM_IMAGES)
    captions = [json.loads(line) for part in (0, 1) for line in open(folder / f"pretrain/part_{part}.data")]
    regions, mono = [], []
    for number, record in enumerate(captions):
        place = list(SHAPES)[number // 4 % 4]
        packed = base64.b64encode((folder / "images" / record["image_path"]).read_bytes()).decode()
        half = {"bb": HALVES[place], "caption": record["caption"], "attributes": {"en": "bright", "de": "hell"}}
        small = {"bb": [8, 8, 10, 10.6], "caption": {"en": f"small part {number}", "de": f"kleiner teil {number}"}}
        whole = {"caption": {"en": "picture", "de": "bild"}} if number % 2 else {}
        regions.append({"binary": packed, "elems": [half, small]} | whole)
        mono.append({"image": record["image_path"], "desc": [record["caption"]["de"], f"bild nummer {number}"]})
    pairs = [{"source_text": c["caption"]["en"], "target_text": c["caption"]["de"]} for c in captions[:NUM_PAIRS]]
    for name, records in (("regions", regions), ("mono", mono), ("pairs", pairs)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.data").write_text(lines, encoding="utf-8")


def stream_settings(folder: Path, **train: Any) -> dict[str, Any]:
    """A tiny CCLM: pictures with one caption, and all three further streams."""
    settings = toy_settings(folder, **train)
    settings["model"] |= {"has_box_head": True}
    settings["objectives"] = {"itc": {}, "itm": {}, "mlm": {}}
    settings["data"]["train"] |= {"caption_num": 1}
    settings["data"] |= {"drop_last": False}
    settings["optim"] |= {"flavour": "hf"}
    mono = {"files": [str(folder / "mono.data")], "image_root": str(folder / "images"), "caption_key": "desc"}
    settings["streams"] = {
        "parallel": {
            "train": {"name": "parallel_text", "files": [str(folder / "pairs.data")]},
            "objectives": {"ttc": {}, "ttm": {}, "mlm": {}},
            "probability": 0.7,
            "batch_size": 6,
            "max_tokens": 24,
        },
        "mono": {
            "train": {"name": "captioned_images", "caption_num": 1, **mono},
            "objectives": {"itc": {}, "itm": {}, "mlm": {}},
            "probability": 0.4,
            "batch_size": 4,
            "max_tokens": 20,
        },
        "regions": {
            "train": {
                "name": "regions",
                "files": [str(folder / "regions.data")],
                "max_images": 4,
                "max_regions": 3,
                "code_switch": True,
                "careful_flip": True,
            },
            "objectives": {"itc": {}, "itm": {}, "mlm": {}, "bbox": {}},
            "probability": 0.5,
            "replaces_image": True,
            "batch_size": 8,
            "max_tokens": 20,
        },
    }
    return settings
