"""Runners for CCLM's data fixtures: cleaning of captions and questions, masks of regions and of words, region rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from dataset.augment import GREY, WARPS
from dataset.boxes import Placed, read_box
from dataset.regions import RegionImages
from dataset.samples import Preprocessing
from dataset.text import SkipgramMasker, clean_caption, clean_question
from dataset.transforms import Box, Resize
from tests.parity.runners.ccrk_data import ToyTokenizer, check_masking_statistics, check_operation

MAX_TOKENS = 40
BOX_TOLERANCE = 1e-6  # the fixtures are rounded to seven places


def run_data_functions(case: Path) -> None:
    cases = json.loads((case / "cases.json").read_text(encoding="utf-8"))
    for key, clean in (("pre_caption", clean_caption), ("pre_question", clean_question)):
        for entry in cases.get(key, []):
            check_cleaning(entry, clean)
    if "region_image_atts" in cases:
        check_region_masks(cases["region_image_atts"])
    if "mlm_seeded" in cases:
        for entry in cases["mlm_seeded"]["cases"]:
            check_masked_tokens(entry, cases["mlm_seeded"])
    if "mlm_stats" in cases:
        check_statistics(cases["mlm_stats"], cases.get("mlm_seeded", {}))


def check_cleaning(entry: dict[str, Any], clean: Any) -> None:
    try:
        found: Any = clean(entry["text"], entry["max_words"])
    except ValueError:
        found = {"error": "ValueError"}
    assert found == entry["result"], f"{entry['text']!r}: found {found!r}, expected {entry['result']!r}"


def check_region_masks(group: dict[str, Any]) -> None:
    size, patch = group["image_res"], group["patch_size"]
    for entry in group["cases"]:
        mask = Placed(*entry["box_xywh"]).patches(size, size // patch)
        assert np.flatnonzero(mask).tolist() == entry["on"], entry["box_xywh"]


def make_masker(settings: dict[str, Any], max_masks: int, mask_id: int, vocab_size: int) -> SkipgramMasker:
    config = SkipgramMasker.Config(
        mask_prob=settings.get("mask_prob", 0.4),
        max_masks=max_masks,
        skipgram_prob=settings.get("skipgram_prb", 0.2),
        skipgram_size=settings.get("skipgram_size", 3),
    )
    return SkipgramMasker(config, mask_id, vocab_size)


def check_masked_tokens(entry: dict[str, Any], settings: dict[str, Any]) -> None:
    """Python's random has no counterpart here: as many are masked, at places ours may choose, and nowhere else."""
    vocab = settings["vocab"]
    masker = make_masker(settings, settings["max_masks"], vocab - 1, vocab)
    ids = [token_id(token, vocab) for token in entry["tokens"]]
    masked = [token_id(token, vocab) for token in entry["masked_tokens"]]
    positions = entry["masked_pos"]
    assert len(positions) == len(set(positions)) == masker.num_masked(len(ids)), entry["seed"]
    assert all(1 <= position < len(ids) for position in positions)
    changed = {k for k, (before, after) in enumerate(zip(ids, masked, strict=True)) if before != after}
    assert changed <= set(positions)
    ours = masker.mask(ids, np.random.default_rng(entry["seed"]))
    used = ours.targets >= 0
    assert used.sum() == len(positions) and ours.positions[used].min() >= 1
    assert ours.targets[used].tolist() == [ids[position] for position in ours.positions[used]]
    assert set(np.flatnonzero(ours.ids != np.array(ids)).tolist()) <= set(ours.positions[used].tolist())


def token_id(token: str, vocab: int) -> int:
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": vocab - 1}
    return special[token] if token in special else int(token.removeprefix("\u2581t"))


def check_statistics(statistics: dict[str, Any], settings: dict[str, Any]) -> None:
    """The fixture's frequencies come out of ours as well. How many are masked tells the limit it was made with."""
    vocab = settings.get("vocab", 1000)
    masker = make_masker(settings, max(settings.get("max_masks", 12), 1), vocab - 1, vocab)
    expected = {
        "draws": statistics["draws"],
        "tokens": statistics["length_with_special"],
        "position_frequency": statistics["position_rate"],
        "mean_masked": statistics["per_draw"],
        "fraction_mask_random_keep": [
            statistics["frac_mask_token"], statistics["frac_random"], statistics["frac_kept"]
        ],
    }  # fmt: skip
    check_masking_statistics(masker, expected)


def run_region_pipeline(case: Path) -> None:
    config = json.loads((case / "cases.json").read_text(encoding="utf-8"))
    for number, entry in enumerate(config["cases"]):
        check_region_rows(entry, config["image_res"], config["patch_size"], case, number)


def check_region_rows(entry: dict[str, Any], size: int, patch: int, case: Path, number: int) -> None:
    given, expected = entry["in"], entry["out"]
    settings = RegionImages.Config(
        files=[str(case / "cases.json")],
        max_regions=given["max_regions"],
        min_share_in_image=given["min_perc_in_image"],
        code_switch=given.get("code_switch", False),
        careful_flip=given.get("careful_hflip", False),
    )
    transform = Resize(Resize.Config(), size)
    preprocessing = Preprocessing(ToyTokenizer(), transform, max_tokens=MAX_TOKENS, grid=size // patch)
    dataset = RegionImages(settings, preprocessing)
    left, top, right, bottom = given["crop_xyxy"]
    crop, generator = Box(top, left, bottom - top, right - left), np.random.default_rng(0)
    boxes = [read_box(element["bb"]) for element in given["elems"]]
    order = range(len(boxes))
    rows = dataset.rows_in(given, given["elems"], boxes, crop, order, generator)
    assert [clean_caption(row.phrase.text, 40) for row in rows] == expected["captions"], number
    is_mirror_image = given["flip_drawn"]
    if given.get("careful_hflip") and any("left" in caption or "right" in caption for caption in expected["captions"]):
        # The original looked for the words where they cannot be and mirrored the picture all the same.
        assert not dataset.may_flip(rows), f"case {number} must not be mirrored"
    else:
        assert dataset.may_flip(rows)
    found = dataset.finish_rows(rows, crop, is_mirror_image, 0, generator)
    assert [int(row.is_image) for row in found] == expected["is_image"], number
    assert [np.flatnonzero(row.mask).tolist() for row in found] == expected["image_atts_on"], number
    difference = np.abs(np.array([row.target for row in found]) - np.array(expected["target_bbox_cxcywh"])).max()
    assert difference <= BOX_TOLERANCE, f"case {number}: boxes differ by {difference:.3g}"


def run_randaugment(case: Path) -> None:
    config = json.loads((case / "config.json").read_text(encoding="utf-8"))
    image = load_file(case / "inputs.safetensors")["image"]
    for key, expected in load_file(case / "outputs.safetensors").items():
        name, arguments = key.partition(".")[0], config["args"][key]
        direction = -1 if name in WARPS and arguments[0] < 0 else 1
        fill = arguments[-1] if name in WARPS else list(GREY)
        check_operation(image, expected, name, config["level"], direction, fill)


KINDS = {
    ("cclm", "randaugment"): run_randaugment,
    ("cclm", "data_functions"): run_data_functions,
    ("cclm", "region_pipeline"): run_region_pipeline,
}
