"""What digests of pictures and captions tell: repeats within a split, the false negatives they make, and leaks.

Two samples of a batch that show the same picture under different ids, or share a caption, are told apart by a
contrastive loss although both are right: false negatives. What a group of w samples adds are w (w - 1) / 2 such pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset.check import Count

MAX_GROUPS = 5
MAX_MEMBERS = 3
MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd number: multiplying by it keeps 64-bit numbers apart


@dataclass
class Split:
    """The digests of a counted split, as arrays; rows of pictures and of captions, each with what it belongs to."""

    image: np.ndarray
    image_record: np.ndarray
    image_of_id: np.ndarray  # the id of each picture row
    image_samples: np.ndarray  # the samples that each picture row takes part in
    caption: np.ndarray
    caption_record: np.ndarray
    caption_image: np.ndarray  # the picture of each caption row
    ids: np.ndarray
    id_record: np.ndarray
    num_samples: int

    @classmethod
    def of(cls, count: Count) -> Split:
        image, image_record = count.image_digests.joined()
        caption, caption_record = count.caption_digests.joined()
        ids, id_record = count.image_ids.joined()
        samples, sample_record = count.samples.joined()
        return cls(
            image=image,
            image_record=image_record,
            image_of_id=ids[np.searchsorted(id_record, image_record)],
            image_samples=samples[np.searchsorted(sample_record, image_record)],
            caption=caption,
            caption_record=caption_record,
            caption_image=_first_picture(image, image_record, caption_record),
            ids=ids,
            id_record=id_record,
            num_samples=int(samples.sum()),
        )


def find_repeats(split: Split, batch_size: int, where: Callable[[int], str]) -> dict[str, Any]:
    """Pictures and captions that occur more than once, and the false negatives to expect in a batch."""
    hidden = _shared(split.image, split.image_of_id)
    reused = _shared(split.caption, split.caption_image)
    of_pictures = _count_pairs(split.image, split.image_samples) - _count_pairs(
        _mix(split.image, split.image_of_id), split.image_samples
    )
    ones = np.ones(len(split.caption), np.uint64)
    of_captions = _count_pairs(split.caption, ones) - _count_pairs(_mix(split.caption, split.caption_image), ones)
    all_pairs = split.num_samples * (split.num_samples - 1) / 2
    in_batch = min(batch_size, split.num_samples)
    scale = in_batch * (in_batch - 1) / 2 / all_pairs if all_pairs else 0.0
    return {
        "distinct_images": len(np.unique(split.image)),
        "distinct_captions": len(np.unique(split.caption)),
        "images_under_several_ids": int(hidden.sum()),
        "captions_of_several_images": int(reused.sum()),
        "batch_size": batch_size,
        "false_negatives_per_batch": {"image": of_pictures * scale, "caption": of_captions * scale},
        "false_negative_share": min((of_pictures + of_captions) / all_pairs, 1.0) if all_pairs else 0.0,
        "image_examples": _groups(split.image[hidden], split.image_record[hidden], where),
        "caption_examples": _groups(split.caption[reused], split.caption_record[reused], where),
    }


def find_leaks(
    train: Split, other: Split, where_train: Callable[[int], str], where_other: Callable[[int], str]
) -> dict[str, Any]:
    """What of another split is in the training split too: rows by picture bytes, by id, and by caption."""
    found: dict[str, Any] = {}
    for name, ours, our_record, theirs, their_record in (
        ("image", train.image, train.image_record, other.image, other.image_record),
        ("id", train.ids, train.id_record, other.ids, other.id_record),
        ("caption", train.caption, train.caption_record, other.caption, other.caption_record),
    ):
        is_leak = np.isin(theirs, ours)
        keys, first = np.unique(theirs[is_leak], return_index=True)
        records = their_record[is_leak][first]
        chosen = np.argsort(records, kind="stable")[:MAX_GROUPS]
        pairs = [(int(records[k]), int(our_record[np.argmax(ours == keys[k])])) for k in chosen]
        found[f"{name}s"] = len(keys)
        found[f"{name}_share"] = float(is_leak.mean()) if len(theirs) else 0.0
        found[f"{name}_examples"] = [f"{where_other(a)} = {where_train(b)}" for a, b in pairs]
    return found


def _mix(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """One key for each pair of keys."""
    return (keys * MIX) ^ others


def _first_picture(image: np.ndarray, image_record: np.ndarray, records: np.ndarray) -> np.ndarray:
    """The first picture of each of some records; a number of the record's own where it has none."""
    own = records.astype(np.uint64) * MIX
    if not len(image):
        return own
    place = np.minimum(np.searchsorted(image_record, records), len(image) - 1)
    return np.where(image_record[place] == records, image[place], own)


def _count_pairs(keys: np.ndarray, weights: np.ndarray) -> float:
    """Pairs of samples with the same key; a row counts as `weight` samples."""
    _, inverse = np.unique(keys, return_inverse=True)
    sums = np.bincount(inverse, weights=weights.astype(np.float64))
    return float((sums * (sums - 1) / 2).sum())


def _shared(keys: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Rows whose key occurs with more than one owner: (rows,) bool."""
    if not len(keys):
        return np.zeros(0, bool)
    _, first = np.unique(_mix(keys, owners), return_index=True)
    distinct, owners_of = np.unique(keys[first], return_counts=True)
    return np.isin(keys, distinct[owners_of > 1])


def _groups(keys: np.ndarray, records: np.ndarray, where: Callable[[int], str]) -> list[str]:
    """Places of the members of the largest groups of equal keys."""
    distinct, counts = np.unique(keys, return_counts=True)
    largest = distinct[np.argsort(-counts, kind="stable")[:MAX_GROUPS]]
    lines = []
    for key in largest:
        members = np.unique(records[keys == key])
        more = f" and {len(members) - MAX_MEMBERS} more" if len(members) > MAX_MEMBERS else ""
        lines.append(" = ".join(where(int(number)) for number in members[:MAX_MEMBERS]) + more)
    return lines
