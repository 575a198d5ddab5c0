"""The data and objectives of CCLM's and CCRK's pre-training files: images, regions, parallel texts, one language."""

from __future__ import annotations

from typing import Any

from compat.original import Circumstances, Original
from utils.config import ConfigError

_SECTION_KEYS = {"tokenized", "batch_size", "num_workers", "iter_perc", "is_image_rpath", "language_chosen"}
IMAGE_KEYS = _SECTION_KEYS | {"image_key", "caption_key"}
REGION_KEYS = IMAGE_KEYS | {"code_switch", "careful_hflip", "max_images", "max_regions", "min_perc_in_image"}
TEXT_KEYS = _SECTION_KEYS | {"source_key", "target_key", "max_words", "max_tokens", "mask_prob", "max_masks"}
MASK_KEYS = {
    "mask_prob": "mask_prob",
    "max_masks": "max_masks",
    "skipgram_prb": "skipgram_prob",
    "skipgram_size": "skipgram_size",
}
# The contrastive gradient is the originals', so that their numbers come out.
GATHERED = {"gather": "local_slice"}
# Keys that change nothing in these systems, or that only say what the data shows.
WITHOUT_EFFECT = {"train_dataset_size", "print_broken_data", "patch_size", "mask_whole_word", "use_clip_vit"}
# Data that CCRK's files name in CCLM's way, but that its program does not train on.
ONLY_CCLM = ("train_file_regions", "train_file_mono", "train_file_text", "use_tlm", "sample_2_captions")
PRETRAINING_KEYS = {
    *MASK_KEYS, *ONLY_CCLM, "train_file", "images", "regions", "images_mono", "texts_para", "max_words", "max_tokens",
    "sample_n_captions", "calc_image_bbox_loss",
}  # fmt: skip
# Half of the iterations see regions where there are any; their own iter_perc is not read.
REGION_SHARE = 0.5


def pretraining_settings(original: Original, circumstances: Circumstances) -> dict[str, Any]:
    """Images with captions by language, further streams, and the losses on them."""
    if original.get("mask_whole_word"):
        raise ConfigError(f"{original.place('mask_whole_word')}: 'mask_whole_word: True' is not supported; use False")
    is_one_to_k = bool(original.get("sample_n_captions"))
    for key in ONLY_CCLM:
        if is_one_to_k and original.get(key):
            raise ConfigError(f"{original.place(key)}: '{key}' is CCLM's; with 'sample_n_captions' (CCRK) leave it out")
    images = original.section("images", IMAGE_KEYS)
    has_two = bool(original.get("sample_2_captions"))
    objectives: dict[str, Any] = {"one_to_k" if is_one_to_k else "itc": GATHERED, "itm": {}, "mlm": {}}
    if has_two:  # the second caption has no part in matching and masked words
        objectives |= {"ttc": GATHERED, "itm": {"positive_text": "first"}}
    return {
        "objectives": objectives,
        "model.has_box_head": None if is_one_to_k else True,
        "data.train": {"name": "captioned_images"} | _captions(original, "train_file", images, is_one_to_k, has_two),
        "data.drop_last": None if is_one_to_k else False,
        **{
            f"data.{key}": value
            for key, value in _amounts(original, "images", images, circumstances.world_size).items()
        },
        **_streams(original, circumstances.world_size),
    }


def picture_pair_settings(original: Original, circumstances: Circumstances) -> dict[str, Any]:
    """NLVR domain pre-training on the images of pre-training: which of two pictures does a caption describe."""
    images = original.section("images", IMAGE_KEYS)
    for key in (*ONLY_CCLM, *MASK_KEYS):
        original.get(key)  # stands in the file, has no part in this task
    amounts = _amounts(original, "images", images, circumstances.world_size)
    del amounts["mask"]
    return {
        "objectives": {"picture_pairs": {}},
        "data.train": {"name": "captioned_images"} | _captions(original, "train_file", images, False, False),
        **{f"data.{key}": value for key, value in amounts.items()},
    }


def _captions(
    original: Original, key: str, section: dict[str, Any], is_one_to_k: bool, has_two: bool
) -> dict[str, Any]:
    """A data section of images with captions."""
    one_language = section.get("language_chosen")
    return _given(
        {
            "files": original.node(key),
            "image_key": section.get("image_key"),
            "caption_key": section.get("caption_key"),
            "tokenized": section.get("tokenized"),
            "languages": one_language,
            "caption_num": None if is_one_to_k else 2 if has_two else 1,
            "caption_order": "drawn" if has_two else None,
            "missing_language": None if is_one_to_k or one_language else "keep",
        }
    )


def _amounts(original: Original, name: str, section: dict[str, Any], world_size: int) -> dict[str, Any]:
    """Lengths, masks, batch and workers of a stream: its own, or those that the file gives for all."""
    of_all = {key: original.get(key) for key in ("max_tokens", "max_words", *MASK_KEYS)}
    own = {key: section.get(key, value) for key, value in of_all.items()}
    size = section.get("batch_size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise ConfigError(f"{original.place(name)}: '{name}.batch_size' must be a whole number, found {size!r}")
    return {
        # The node of a value that stands for all keeps its line for errors.
        "max_tokens": own["max_tokens"] if "max_tokens" in section else original.node("max_tokens"),
        "max_words": own["max_words"] if "max_words" in section else original.node("max_words"),
        "mask": _given({ours: own[theirs] for theirs, ours in MASK_KEYS.items()}),
        "num_workers": section.get("num_workers"),
        "batch_size": size and size * world_size,
    }


def _streams(original: Original, world_size: int) -> dict[str, dict[str, Any]]:
    """What is trained on beside the images: only sections whose file lists are not empty."""
    sections = {
        "parallel": ("train_file_text", "texts_para", TEXT_KEYS, _parallel),
        "mono": ("train_file_mono", "images_mono", IMAGE_KEYS, _mono),
        "regions": ("train_file_regions", "regions", REGION_KEYS, _regions),
    }
    original.get("use_tlm"), original.get("calc_image_bbox_loss")
    streams = {}
    for name, (files, key, known, translate) in sections.items():
        section = original.section(key, known)
        if not original.get(files):
            continue
        stream = translate(original, section)
        if most := stream["train"].get("max_images"):
            stream["train"]["max_images"] = most * world_size
        streams[f"streams.{name}"] = _given(stream | _amounts(original, key, section, world_size))
    return streams


def _parallel(original: Original, section: dict[str, Any]) -> dict[str, Any]:
    is_joined = bool(original.get("use_tlm"))
    train = {
        "name": "parallel_text",
        "files": original.node("train_file_text"),
        "source_key": section.get("source_key"),
        "target_key": section.get("target_key"),
        "tokenized": section.get("tokenized"),
        "is_translation_modelling": is_joined or None,
    }
    objectives = {"ttc": GATHERED, "mlm": {}} if is_joined else {"ttc": GATHERED, "ttm": {}, "mlm": {}}
    return {"train": _given(train), "objectives": objectives, "probability": section.get("iter_perc")}


def _mono(original: Original, section: dict[str, Any]) -> dict[str, Any]:
    objectives = {"itc": GATHERED, "itm": {}, "mlm": {}}
    train = {"name": "captioned_images"} | _captions(original, "train_file_mono", section, False, False)
    return {"train": train, "objectives": objectives, "probability": section.get("iter_perc")}


def _regions(original: Original, section: dict[str, Any]) -> dict[str, Any]:
    train = {
        "name": "regions",
        "files": original.node("train_file_regions"),
        "image_key": section.get("image_key"),
        "caption_key": section.get("caption_key"),
        "languages": section.get("language_chosen"),
        "tokenized": section.get("tokenized"),
        "max_regions": section.get("max_regions"),
        "min_share_in_image": section.get("min_perc_in_image"),
        "code_switch": section.get("code_switch"),
        "careful_flip": section.get("careful_hflip"),
        "max_images": section.get("max_images"),
    }
    boxes = {"counts_images": True} if original.get("calc_image_bbox_loss") else {}
    return {
        "train": _given(train),
        "objectives": {"itc": GATHERED, "itm": {}, "mlm": {}, "bbox": boxes},
        "probability": REGION_SHARE,
        "replaces_image": True,
    }


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}
