"""The data and objectives of CCLM's and CCRK's pre-training files."""

from __future__ import annotations

from typing import Any

from compat.original import Original
from utils.config import ConfigError

IMAGE_KEYS = {
    "image_key", "is_image_rpath", "caption_key", "tokenized", "batch_size", "num_workers", "iter_perc",
    "language_chosen",
}  # fmt: skip
MASK_KEYS = {
    "mask_prob": "mask_prob",
    "max_masks": "max_masks",
    "skipgram_prb": "skipgram_prob",
    "skipgram_size": "skipgram_size",
}
# Keys that change nothing in these systems, or that only say what the data shows.
WITHOUT_EFFECT = {
    "train_dataset_size", "print_broken_data", "patch_size", "regions", "images_mono", "texts_para", "mask_whole_word",
    "use_tlm", "sample_2_captions", "calc_image_bbox_loss", "use_clip_vit",
}  # fmt: skip
# Data and objectives of CCLM that have to be empty or off here.
MUST_BE_EMPTY = ("train_file_regions", "train_file_mono", "train_file_text")
MUST_BE_OFF = ("use_tlm", "sample_2_captions", "calc_image_bbox_loss", "mask_whole_word")
PRETRAINING_KEYS = MASK_KEYS.keys() | {"train_file", "images", "max_words", "max_tokens", "sample_n_captions"}


def pretraining_settings(original: Original, world_size: int) -> dict[str, Any]:
    """Pictures with captions by language, their masks, and the losses on them."""
    _refuse_what_is_not_here(original)
    images = original.section("images", IMAGE_KEYS)
    if images.get("tokenized"):
        raise ConfigError(f"{original.place('images')}: 'images.tokenized: True' is not supported; allowed: False")
    is_one_to_k = bool(original.get("sample_n_captions"))
    train = {
        "name": "captioned_images",
        "files": original.node("train_file"),
        "image_key": images.get("image_key"),
        "caption_key": images.get("caption_key"),
        "languages": images.get("language_chosen"),
        "caption_num": None if is_one_to_k else 1,
    }
    batch_size = _batch_size(original, images)
    return {
        # The contrastive gradient is the originals', so that their numbers come out.
        "objectives": {"one_to_k" if is_one_to_k else "itc": {"gather": "local_slice"}, "itm": {}, "mlm": {}},
        "data.max_tokens": original.node("max_tokens"),
        "data.max_words": original.node("max_words"),
        "data.train": _given(train),
        "data.mask": _given({ours: original.node(theirs) for theirs, ours in MASK_KEYS.items()}),
        "data.num_workers": images.get("num_workers"),
        "data.batch_size": batch_size and batch_size * world_size,
    }


def _batch_size(original: Original, section: dict[str, Any]) -> int | None:
    size = section.get("batch_size")
    if size is not None and not isinstance(size, int):
        raise ConfigError(f"{original.place('images')}: 'images.batch_size' must be a whole number, found {size}")
    return size


def _refuse_what_is_not_here(original: Original) -> None:
    for key in MUST_BE_EMPTY:
        if original.get(key):
            place = original.place(key)
            raise ConfigError(f"{place}: '{key}' names data of a kind that is not supported; leave it empty")
    for key in MUST_BE_OFF:
        if original.get(key):
            raise ConfigError(f"{original.place(key)}: '{key}: True' is not supported; allowed: False")


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}
