"""CCLM's data on disk in the documented layout, a few records of each file, and a tiny released checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from compat.weights import to_original
from dataset.text import train_bpe
from models.model import Model
from tests.dataset import toy
from tests.dataset.toy import base64_of, picture
from utils.config import build, to_tree

COLOURS = ("red", "green", "blue", "white", "black", "grey")
NUM_PICTURES = 8
# A model of a few neurons with a tokenizer of a hundred pieces, over any of CCLM's configurations.
SIZES = """
model.image_encoder.image_size=32 model.image_encoder.window_size=4 model.image_encoder.width=8
model.image_encoder.depths=[1,1] model.image_encoder.num_heads=[1,2] model.text_encoder.width=16
model.text_encoder.num_layers=1 model.text_encoder.num_heads=2 model.text_encoder.mlp_width=16
model.text_encoder.vocab_size=120 model.text_fusion.num_layers=1 data.tokenizer=tokenizer data.num_workers=0
train.log_every_steps=1 train.precision=fp32 init.text= init.image= data.cache_dir=
""".split()
FLICKR_CO = ("de", "en", "es", "id", "ja", "ru", "tr", "zh")
WIT = ("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi")


def caption(number: int, language: str) -> str:
    return f"{language} {COLOURS[number % len(COLOURS)]} picture {number}"


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    toy.write_lines(path, records)


def write_pictures(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))


def write_multi30k(root: Path) -> None:
    write_retrieval(root, "multi30k", "flickr30k-images", ("en", "de", "fr", "cs"), "{split}.{language}", {})
    for language in ("en", "de", "fr", "cs"):
        source = root / f"data/finetune/multi30k/test.{language}.json"
        source.rename(source.with_name(f"test_2016_flickr.{language}.json"))


def write_coco(root: Path) -> None:
    english = {"val": "valid", "test": "1k_test"}
    write_retrieval(root, "mscoco", "coco/val2014", ("en", "ja"), "{language}.{split}", english)
    write_retrieval(root, "mscoco", "coco/val2014", ("zh",), "{language}.{split}", {})


def write_retrieval(
    root: Path, folder: str, images: str, languages: tuple[str, ...], name: str, splits: dict[str, str]
) -> None:
    """Pairs for training, galleries with a list of captions for validation and test."""
    names = [f"{images}/{number}.jpg" for number in range(NUM_PICTURES)]
    write_pictures(root / "images", names)
    for language in languages:
        pairs = [{"image": n, "image_id": i, "caption": caption(i, language)} for i, n in enumerate(names)]
        gallery = [{**pair, "caption": [pair["caption"], pair["caption"] + " again"]} for pair in pairs]
        for split in ("train", "val", "test"):
            file = name.format(language=language, split=splits.get(split, split))
            write_json(root / f"data/finetune/{folder}/{file}.json", pairs if split == "train" else gallery)


def write_flickr_co(root: Path) -> None:
    """Flickr30k for training, xFlickr&CO with half of its pictures from MSCOCO, one empty sentence in German."""
    half = NUM_PICTURES // 2
    flickr = [f"{number}.jpg" for number in range(NUM_PICTURES)]
    both = flickr[:half] + [f"COCO_val2014_{number:012d}.jpg" for number in range(half)]
    write_pictures(root / "images/flickr30k-images", flickr)
    write_pictures(root / "images/val2014", both[half:])

    def lines(names: list[str], language: str) -> list[dict]:
        return [{"sentences": [caption(i, language)], "id": str(i), "img_path": name} for i, name in enumerate(names)]

    iglue = root / "iglue/datasets"
    for split in ("train_ann", "valid_ann"):
        write_lines(iglue / f"flickr30k/annotations/{split}.jsonl", lines(flickr, "en"))
    for language in FLICKR_CO:
        annotations = iglue / f"xFlickrCO/annotations/{language}"
        test = lines(both, language) + [{"sentences": [""], "id": "9", "img_path": "9.jpg"}] * (language == "de")
        write_lines(annotations / "test.jsonl", test)
        write_lines(annotations / "train_100.jsonl", lines(flickr, language))
        translated = iglue / f"xFlickrCO/annotations_machine-translate/{language}/test_gmt.jsonl"
        write_lines(translated, lines(both, f"translated {language}"))


def write_wit(root: Path) -> None:
    """Annotations and pixel files, not joined; one line of the Arabic test has no picture."""
    for place, kind in (("wit_test", "test"), ("image_data_train/image_pixels", "train")):
        folder = root / "images" / place
        folder.mkdir(parents=True, exist_ok=True)
        for part in (0, 1):
            numbers = range(part, NUM_PICTURES, 2)
            rows = [f"u/{kind}/{i}\t{base64_of(picture(i))}\tmore\n" for i in numbers]
            (folder / f"part-{part}.csv").write_text("".join(rows))

    def lines(kind: str, language: str) -> list[dict]:
        records = [
            {"image_url": f"u/{kind}/{i}", "caption_reference_description": caption(i, language)}
            for i in range(NUM_PICTURES)
        ]
        return records + [{**records[0], "image_url": "u/nowhere"}] * (language == "ar")

    iglue = root / "iglue/datasets/wit"
    for split in ("train_en", "val_en"):
        write_lines(iglue / f"annotations/{split}.jsonl", lines("train", "en"))
    for language in WIT:
        write_lines(iglue / f"annotations/test_{language}.jsonl", lines("test", language))
        translated = lines("test", f"translated {language}")
        translated[0]["caption_reference_description"] = "."  # as the Arabic file has it
        write_lines(iglue / f"annotations_machine-translate/test_{language}_gmt.jsonl", translated)


PRETRAINING = {
    "images": ("cc-3m-uc2", "sbu-mm", "vg-mm", "coco-mm"),
    "regions": ("coco_object-mm", "vg_object-mm", "vg_region-mm"),
    "parallel": ("wikimatrix",),
}


def write_pretraining(root: Path) -> None:
    """Pre-training files: images with captions, with described boxes, and parallel texts."""
    for number in range(NUM_PICTURES):
        words = {language: caption(number, language) for language in ("en", "de", "zh")}
        image = {"binary": base64_of(picture(number, (40, 40))), "caption": words}
        element = {"bb": [3, 4, 20, 18], "caption": words, "attributes": {"en": "shiny", "de": "blank"}}
        records = {
            "images": image,
            "regions": {**image, "elems": [element, {**element, "bb": [10, 12, 9, 8]}]},
            "parallel": {"source_text": words["en"], "target_text": words["de"]},
        }
        for kind, names in PRETRAINING.items():
            for name in names:
                path = root / f"data/pretrain/{name}/part_0.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(records[kind]) + "\n")


def write_tokenizer(root: Path) -> None:
    texts = [caption(i, x) for i in range(NUM_PICTURES) for x in ("en", "de", "zh", "translated ja again")]
    train_bpe(texts, vocab_size=120).save(root / "tokenizer")


def tiny_model_tree() -> dict:
    """The model of SIZES as CCLM pre-trains it."""
    return {
        "image_encoder": {
            "name": "swin", "image_size": 32, "window_size": 4, "width": 8, "depths": [1, 1], "num_heads": [1, 2]
        },
        "text_encoder": {
            "name": "bert", "vocab_size": 120, "width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 16,
            "max_positions": 514,
        },
        "text_fusion": {"num_layers": 1},
        "has_masked_language_head": True,
    }  # fmt: skip


def write_checkpoint(path: Path) -> None:
    """A pre-trained model in CCLM's released layout."""
    torch.manual_seed(0)
    config = build(Model.Config, tiny_model_tree())
    state = to_original(Model(config).state_dict(), to_tree(config), "cclm_pretrain")
    torch.save({"model": state, "config": {}}, path)


def read_files(output_dir: Path) -> set[str]:
    """The data files that a run fingerprinted."""
    environment = json.loads((output_dir / "environment.json").read_text(encoding="utf-8"))
    return {entry["path"] for entry in environment["data"]}
