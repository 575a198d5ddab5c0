"""R2D2's data: the five sets on disk, the tokenizer, the transforms, both learning-rate schedules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

from dataset import DATASETS
from dataset.augment import OPERATIONS, apply_operation
from dataset.bad_records import BadRecords
from dataset.samples import Preprocessing
from dataset.text import load_tokenizer
from dataset.transforms import Resize
from dataset.zero import ZeroLabels
from models.image_encoder import CLIP_MEAN, CLIP_STD
from scheduler import ScheduleConfig, learning_rate_factor

MAX_TOKENS = 64
LEVEL, TOLERANCE = 5, 2  # grey levels of the warps; see the fixtures' notes
ZERO_FILES = {
    "ICR": ("ICR/{0}/long_itr_{0}.json", "zero_lines"),
    "IQR": ("IQR/{0}/short_itr_{0}.json", "zero_lines"),
    "flickr30k_cna": ("flickr/{0}/flickr30k_cna_{0}.txt", "numbered_captions"),
}
LABELLED_FILES = {"ICM": "ICM/{0}/long_itm_{0}.json", "IQM": "IQM/{0}/short_itm_{0}.json"}
IMAGES = {"flickr30k_cna": "flickr/Flickr30k-images"}


class ImageSize:
    """A transform that returns a picture's width and height instead of its pixels."""

    image_size = 1

    def __call__(self, data: bytes, generator: np.random.Generator) -> np.ndarray:
        return np.array(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[1::-1])


def dataset_of(folder: Path, name: str, split: str) -> Any:
    path, kind = ZERO_FILES[name]
    # IQR and ICR have no third part: their test set is the validation file.
    on_disk = "val" if split == "test" and name != "flickr30k_cna" else split
    section = DATASETS.load(kind).Config(
        files=[str(folder / path.format(on_disk))],
        image_root=str(folder / IMAGES.get(name, "IQR_IQM_ICR_ICM_images")),
    )
    return DATASETS.load(kind)(section, preprocessing_of(folder))


def preprocessing_of(folder: Path) -> Preprocessing:
    tokenizer = load_tokenizer(folder.parent / "tokenizer" / "vocab.txt")
    return Preprocessing(tokenizer, ImageSize(), MAX_TOKENS, max_words=0)


def data(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    for name in ZERO_FILES:
        for split, content in expected[name].items():
            dataset = dataset_of(folder, name, split)
            check = check_training if split == "train" else check_evaluation
            check(dataset, content, f"{name}/{split}")
    for name, path in LABELLED_FILES.items():
        for split, content in expected[name].items():
            check_labels(folder, path.format(split), content, f"{name}/{split}")


def check_labels(folder: Path, path: str, expected: list[dict[str, Any]], what: str) -> None:
    section = ZeroLabels.Config(files=[str(folder / path)], image_root=str(folder / "IQR_IQM_ICR_ICM_images"))
    dataset = ZeroLabels(section, preprocessing_of(folder))
    assert len(dataset) == len(expected), what
    for number, item in enumerate(expected):
        sample, (image,) = dataset.sample(number, np.random.default_rng(0)), dataset.describe(number).images
        assert (image[0], sample.label) == (item["image"], item["label"]), what
        assert sample.text == [token for token in item["input_ids"] if token], what


def check_training(dataset: Any, expected: list[dict[str, Any]], what: str) -> None:
    assert len(dataset) == len(expected), what
    (part,) = dataset.parts.values()
    running: dict[int, int] = {}
    for number, item in enumerate(expected):
        sample = dataset.sample(number, np.random.default_rng(0))
        entry = part.read(int(part.record_of_text[number]))
        assert (Path(entry.image).name, entry.captions[0]) == (item["image"], item["caption"]), what
        assert running.setdefault(sample.image_id, len(running)) == item["id"], what
        assert sample.image.tolist() == item["size"], what
        assert sample.texts == dataset.preprocessing.encode([item["caption"]]), what


def check_evaluation(dataset: Any, expected: dict[str, Any], what: str) -> None:
    ((gallery,),) = dataset.galleries(BadRecords(0.0)).values()
    assert [Path(path).name for path in gallery.image_paths] == expected["images"], what
    # Ours puts the captions of a picture side by side; the maps must agree text by text.
    of_text = {(text, image) for text, image in zip(gallery.captions, gallery.image_of_text.tolist(), strict=True)}
    theirs = {(text, expected["txt2img"][str(k)]) for k, text in enumerate(expected["text"])}
    assert of_text == theirs and len(gallery.captions) == len(expected["text"]), what
    for image, texts in expected["img2txt"].items():
        own = [gallery.captions[k] for k in (gallery.image_of_text == int(image)).nonzero().flatten().tolist()]
        assert own == [expected["text"][k] for k in texts], what


def tokenizer(folder: Path) -> None:
    expected = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    ours = load_tokenizer(folder / "vocab.txt")
    for entry in expected["tiny"]:
        (ids,) = ours.encode_batch([entry["text"]], expected["max_length"])
        assert ids == entry["input_ids"][: sum(entry["attention_mask"])], entry["text"]
        assert set(entry["input_ids"][len(ids) :]) <= {ours.pad_id}, entry["text"]


def transforms(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    expected = load_file(folder / "outputs.safetensors")
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    transform = Resize(Resize.Config(), config["image_size"])
    for number, name in enumerate(config["files"]):
        pixels = transform((folder / name).read_bytes()) / np.float32(255)
        assert np.allclose((pixels - mean) / std, expected[f"eval_pixels/{number}"], atol=1e-5), name
    image = np.array(Image.open(folder / "aug.png").convert("RGB"))
    for name, arguments in config["ops"]:
        check_operation(image, name, arguments, expected)


def check_operation(image: np.ndarray, name: str, arguments: list[Any], expected: dict[str, np.ndarray]) -> None:
    is_extra = name.startswith("extra/")
    operation, _, tail = name.removeprefix("extra/").partition("_")
    if operation not in OPERATIONS:  # further operations of the original's library that its recipe never draws
        return
    level = (arguments[0] - 0.1) / 1.8 * 10 if is_extra else LEVEL
    ours = apply_operation(image, operation, level, -1 if tail == "neg" else 1)
    difference = np.abs(ours.astype(int) - expected[name if is_extra else f"aug/{name}"].astype(int)).max()
    assert difference <= TOLERANCE, f"{name}: differs by {difference}"


def schedules(folder: Path) -> None:
    cases = json.loads((folder / "schedules.json").read_text(encoding="utf-8"))
    for case in cases["retrieval"]:
        base, per_epoch = case["base_lr"], case["steps_per_epoch"]
        config = ScheduleConfig(
            "epoch_cosine", case["warmup_steps"], start=case["warmup_lr"] / base, floor=case["min_lr"] / base
        )
        total = per_epoch * case["num_epoch"]
        rates = [base * learning_rate_factor(config, step, total, per_epoch) for step in range(total)]
        assert torch.allclose(torch.tensor(rates), torch.tensor(case["lr_used_at_step"]), rtol=1e-6, atol=1e-13)
    for case in cases["matching"]:
        config = ScheduleConfig("triangle", case["warmup_steps"], floor=0.05)
        for group in ("weight", "bias"):
            expected = case[f"lr_used_at_step_{group}_group"]
            steps = range(case["offset"], case["offset"] + len(expected))
            rates = [case["base_lr"] * learning_rate_factor(config, step, len(expected)) for step in steps]
            assert torch.allclose(torch.tensor(rates), torch.tensor(expected), rtol=1e-6, atol=1e-13)


KINDS = {
    ("r2d2", "data"): data,
    ("r2d2", "tokenizer"): tokenizer,
    ("r2d2", "transforms"): transforms,
    ("r2d2", "schedules"): schedules,
}
