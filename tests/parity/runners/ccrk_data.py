"""Runners for CCRK's data fixtures: augmentation operations, caption preprocessing, pictures with many captions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.numpy import load_file

from dataset.augment import WARPS, apply_operation, magnitude, warp_matrix
from dataset.batch import pad_texts
from dataset.decode import decode_image
from dataset.files import BadRecord
from dataset.pretrain import CaptionedImages
from dataset.samples import Preprocessing, Sample
from dataset.text import SkipgramMasker, TextTokenizer, apply_masks, clean_caption

# OpenCV 5 interpolates warps exactly; OpenCV 4, which made some of the fixtures, first rounds the place it reads from
# to 1/32 pixel. A shade can then differ by 255 / 32 at the most.
MAX_ROUNDING = 8


class ToyTokenizer(TextTokenizer):
    """The fixtures' tokenizer: a word is a number made from its letters."""

    def __init__(self) -> None:
        self.bos_id, self.pad_id, self.eos_id, self.mask_id, self.vocab_size = 0, 1, 2, 99, 100

    def encode_pieces(self, texts):
        return [[4 + sum(map(ord, word)) % 95 for word in text.split(" ")] for text in texts]


class ImageSize:
    """A transform that returns the picture's width and height instead of its pixels."""

    image_size = 1

    def prepare(self, data: bytes) -> np.ndarray:
        return np.array(decode_image(data).shape[1::-1])

    def finish(self, size: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return size


def run_augmentation_ops(case: Path) -> None:
    config = json.loads((case / "config.json").read_text())
    image = load_file(case / "inputs.safetensors")["image"]
    level = config["level"] * 10 / config.get("max_level", 10)
    for key, expected in load_file(case / "outputs.safetensors").items():
        name, _, sign = key.partition("/")
        check_operation(image, expected, name, level, -1 if sign == "minus" else 1, config["fill"])


def check_operation(
    image: np.ndarray, expected: np.ndarray, name: str, level: float, direction: int, fill: list[int]
) -> None:
    """One augmentation as recorded with OpenCV 4 or 5."""
    ours = apply_operation(image, name, level, direction, fill)
    if name in WARPS and not np.array_equal(ours, expected):
        assert _difference(ours, expected) <= MAX_ROUNDING, f"{name}: differs by {_difference(ours, expected)}"
        matrix = warp_matrix(name, direction * magnitude(name, level), *image.shape[:2])
        ours = _warp_like_opencv_4(image, matrix, fill)
    assert np.array_equal(ours, expected), f"{name} {direction}: differs by {_difference(ours, expected)}"


def run_text_preprocessing(case: Path) -> None:
    expected = json.loads((case / "expected.json").read_text())
    max_tokens, max_masks = expected["max_tokens"], expected["max_masks"]
    tokenizer = ToyTokenizer()
    config = SkipgramMasker.Config(
        mask_prob=expected.get("mask_prob", 0.4),
        max_masks=max_masks,
        skipgram_prob=expected.get("skipgram_prb", 0.2),
        skipgram_size=expected.get("skipgram_size", 3),
    )
    masker = SkipgramMasker(config, tokenizer.mask_id, tokenizer.vocab_size)
    for entry in expected["pre_caption"]:
        _check_cleaning(entry)
    for entry in expected["preprocess"]:
        _check_masked_text(
            entry, tokenizer, max_tokens, max_masks, entry.get("max_words", expected.get("max_words", 40))
        )
    for num_tokens, wanted in expected["n_pred_by_token_count"].items():
        assert masker.num_masked(int(num_tokens)) == wanted, f"{num_tokens} tokens: {wanted} are masked"
    if "masking_statistics" in expected:
        check_masking_statistics(masker, expected["masking_statistics"])


def _check_cleaning(entry: dict[str, Any]) -> None:
    try:
        cleaned = clean_caption(entry["raw"], entry["max_words"])
    except ValueError:
        assert entry.get("error") == "ValueError", f"{entry['raw']!r}: nothing left, expected {entry.get('out')!r}"
        return
    assert cleaned == entry.get("out"), f"{entry['raw']!r}: found {cleaned!r}, expected {entry.get('out')!r}"


def _check_masked_text(entry: dict, tokenizer: ToyTokenizer, max_tokens: int, max_masks: int, max_words: int) -> None:
    cleaned = clean_caption(entry["raw"], max_words)
    pieces = tokenizer.encode_pieces([cleaned])[0]
    assert [f"w{piece}" for piece in pieces] == entry["tokens"], entry["raw"]
    ids = tokenizer.encode_batch([cleaned], max_tokens)[0]
    padded = ids + [tokenizer.pad_id] * (max_tokens - len(ids))
    assert padded == entry["text_ids"], entry["raw"]
    assert [1] * len(ids) + [0] * (max_tokens - len(ids)) == entry["text_atts"], entry["raw"]
    positions = entry["masked_pos_choice"]
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": tokenizer.mask_id}
    replaced = [special.get(token) if token in special else int(token[1:]) for token in entry["masked_tokens"]]
    masked = apply_masks(ids, positions, [replaced[p] for p in positions], max_masks)
    assert masked.ids.tolist() + [tokenizer.pad_id] * (max_tokens - len(ids)) == entry["text_ids_masked"], entry["raw"]
    assert masked.positions.tolist() == entry["masked_pos"] and masked.targets.tolist() == entry["masked_ids"]


def check_masking_statistics(masker: SkipgramMasker, statistics: dict[str, Any]) -> None:
    """Frequencies of two independent samples: five standard deviations of their difference are allowed."""
    draws, num_tokens = statistics["draws"], statistics["tokens"]
    generator = np.random.default_rng(0)
    ids = [0, *(4 + k % 90 for k in range(num_tokens - 2)), 2]
    hits, kinds = np.zeros(num_tokens), np.zeros(3)
    for _ in range(draws):
        masked = masker.mask(ids, generator)
        used = masked.targets >= 0
        positions = masked.positions[used]
        hits[positions] += 1
        now = masked.ids[positions]
        is_mask, is_kept = now == masker.mask_id, now == masked.targets[used]
        kinds += [is_mask.sum(), (~is_mask & ~is_kept).sum(), is_kept.sum()]
    wanted = np.array(statistics["position_frequency"])
    spread = 5 * np.sqrt(2 * wanted * (1 - wanted) / draws) + 1e-3
    assert (np.abs(hits / draws - wanted) <= spread).all(), np.abs(hits / draws - wanted).max()
    assert math.isclose(kinds.sum() / draws, statistics["mean_masked"], abs_tol=1e-9)
    shares = np.array(statistics["fraction_mask_random_keep"])
    assert (np.abs(kinds / kinds.sum() - shares) <= 5 * np.sqrt(2 * shares * (1 - shares) / kinds.sum())).all(), kinds


def run_multitext_dataset(case: Path) -> None:
    expected = json.loads((case / "expected.json").read_text())
    for name, setting in expected["runs"].items():
        _check_multitext(case, name, setting, expected["max_tokens"], expected["max_masks"])


def _check_multitext(case: Path, name: str, setting: dict[str, Any], max_tokens: int, max_masks: int) -> None:
    tokenizer = ToyTokenizer()
    masker = SkipgramMasker(SkipgramMasker.Config(max_masks=max_masks), tokenizer.mask_id, tokenizer.vocab_size)
    preprocessing = Preprocessing(tokenizer, ImageSize(), max_tokens=max_tokens, masker=masker)
    whole, languages = _dataset(case, setting, preprocessing), setting["resolved_languages"]
    assert whole.languages == languages, name
    complete = _usable_samples(whole)
    examples, collated = setting["examples"], setting["collated"]
    if setting["caption_num"]:
        _check_draw(_dataset(case, setting, preprocessing, setting["caption_num"]), complete, examples)
        return
    samples = list(complete.values())
    assert [sample.image.tolist() for sample in samples] == [example["image_size_wh"] for example in examples], name
    padded = [
        pad_texts([*sample.texts, [tokenizer.pad_id] * max_tokens], tokenizer.pad_id).ids[:-1] for sample in samples
    ]
    batch = whole.collate(samples, [])
    assert list(batch.masked.positions.shape) == collated["masked_pos_shape"], name
    assert [len(batch.texts), max_tokens] == collated["text_ids_shape"], name
    assert len(batch.images) == collated["image_shape"][0], name
    assert [rows.tolist() for rows in padded] == [example["text_ids"] for example in examples], name
    assert torch.cat(padded).tolist() == collated["text_ids"], name


def _dataset(
    case: Path, setting: dict[str, Any], preprocessing: Preprocessing, caption_num: int = 0
) -> CaptionedImages:
    files, languages = sorted(map(str, case.glob("*.data"))), setting["language_chosen"]
    config = CaptionedImages.Config(files=files, image_root=str(case), languages=languages, caption_num=caption_num)
    return CaptionedImages(config, preprocessing)


def _usable_samples(dataset: CaptionedImages) -> dict[int, Sample]:
    """The samples by their number, without those of bad records."""
    samples = {}
    for index in range(len(dataset)):
        try:
            samples[index] = dataset.sample(index, np.random.default_rng(index))
        except BadRecord:
            continue
    return samples


def _check_draw(dataset: CaptionedImages, complete: dict[int, Sample], examples: list[dict[str, Any]]) -> None:
    """Draws differ: a complete record gives as many captions, in their order, each that of its language.

    A record with a bad caption is left out only where the draw meets it, so the recorded samples may be others.
    """
    drawn, captions = _usable_samples(dataset), dataset.config.caption_num
    for number, sample in drawn.items():
        assert len(sample.texts) == captions == len(set(sample.languages))
        assert sample.languages == sorted(sample.languages)
        if number in complete:
            assert sample.texts == [complete[number].texts[language] for language in sample.languages]
    assert complete.keys() <= drawn.keys()
    assert len(dataset.collate(list(drawn.values()), []).texts) == captions * len(drawn)
    recorded = iter(example["image_size_wh"] for example in examples)
    assert all(sample.image.tolist() in recorded for sample in complete.values())  # in this order
    assert {len(example["text_ids"]) for example in examples} == {captions}


def _difference(ours: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(ours.astype(int) - expected.astype(int)).max())


def _warp_like_opencv_4(image: np.ndarray, matrix: np.ndarray, fill: list[int]) -> np.ndarray:
    """The warp with source places in fixed point: 10 bits while they are summed, then rounded to 5."""
    inverse = cv2.invertAffineTransform(matrix.astype(np.float64))
    height, width = image.shape[:2]
    steps = np.rint(inverse[:, :1] * np.arange(width) * 1024).astype(np.int64)  # (2, W)
    starts = np.rint((inverse[:, 1:2] * np.arange(height) + inverse[:, 2:]) * 1024).astype(np.int64) + 16  # (2, H)
    places = (starts[:, :, None] + steps[:, None, :]) >> 5  # (2, H, W)
    whole = np.stack([places[0] >> 5, places[1] >> 5], axis=-1).astype(np.int16)
    parts = ((places[1] & 31) * 32 + (places[0] & 31)).astype(np.uint16)
    return cv2.remap(image, whole, parts, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=tuple(fill))


KINDS = {
    ("ccrk", "augmentation_ops"): run_augmentation_ops,
    ("ccrk", "text_preprocessing"): run_text_preprocessing,
    ("ccrk", "multitext_dataset"): run_multitext_dataset,
}
