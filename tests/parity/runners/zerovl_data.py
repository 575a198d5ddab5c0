"""ZeroVL's data: batches of one set each, noise on captions."""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dataset.auto_augment import ENHANCERS, POLICIES, apply_operation, apply_policy
from dataset.image_steps import ImageSteps
from dataset.loader import Loader
from dataset.mixture import Mixture
from dataset.text import TextTokenizer, load_tokenizer
from dataset.text_augment import change_pieces, join_pieces
from tests.parity.runners.common import read_case

# Operations whose direction the original draws.
SIGNED = {*ENHANCERS, "shearX", "shearY", "translateX", "translateY"}

SHARE = 0.2  # of changed pieces in the original


class Numbers:
    """A data set whose samples are their own numbers."""

    languages, skipped = ["und"], []

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def run_debias_sampler(folder: Path) -> None:
    """The stated properties; the original's row order repeats in every pass, which ours must not."""
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    sizes = cases["dataset_sizes"]
    for run in cases["runs"]:
        check_sampler(sizes, run)


def check_sampler(sizes: dict[str, int], run: dict[str, Any]) -> None:
    num_ranks, batch_size, kind = run["world_size"], run["global_batch_size"], run.get("train_type", "debias")
    mixture = object.__new__(Mixture)
    mixture.config = Mixture.Config.__new__(Mixture.Config)
    mixture.config.order = kind
    mixture.sets = {name: Numbers(size) for name, size in sizes.items()}
    mixture.ends = np.cumsum(list(sizes.values()))
    num_epochs = 40
    ranks = [Loader(mixture, batch_size=batch_size, rank=r, world_size=num_ranks, seed=5) for r in range(num_ranks)]
    assert len(ranks[0]) == run["steps_per_epoch"]
    names, ends = list(sizes), mixture.ends
    found: Counter[str] = Counter()
    orders = set()
    for epoch in range(num_epochs):
        order = ranks[0].order(epoch)
        shares = [list(loader.layout.cut(loader.order(epoch), epoch, 0)) for loader in ranks]
        assert all(len(each) == run["steps_per_epoch"] for each in shares)
        for step in range(run["steps_per_epoch"]):
            rows = np.concatenate([each[step].indices for each in shares])
            sets = {names[int(np.searchsorted(ends, row, side="right"))] for row in rows}
            assert len(set(rows.tolist())) == len(rows) == batch_size
            if kind != "shuffle":
                assert len(sets) == 1
                found[sets.pop()] += 1
        orders.add(order.tobytes())
    assert len(orders) == num_epochs
    if kind == "sequential":
        [expected] = run["dataset_per_step"]
        assert found == Counter({name: num_epochs * count for name, count in Counter(expected).items()})
    if kind != "debias":
        return
    num_steps = num_epochs * run["steps_per_epoch"]
    for name, weight in zip(names, run["sample_weights"], strict=True):
        spread = (weight * (1 - weight) / num_steps) ** 0.5
        assert abs(found[name] / num_steps - weight) <= 4 * spread, name


def run_text_augment(folder: Path) -> None:
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    tokenizer = make_tokenizer(cases)
    for case in cases["augment"]:
        pieces = tokenizer.pieces(case["caption"])
        assert pieces == case["wordpieces"], case["caption"]
        draws = iter(case["random_tokens"])
        changed = change_pieces(pieces, case["uniform"], SHARE, lambda draws=draws: next(draws))
        assert join_pieces(changed) == case["augmented"], case
        assert next(draws, None) is None
    for case in cases["encode"]:
        [ids] = tokenizer.encode_batch([case["text"]], case["max_length"])
        assert ids == case["input_ids"][: sum(case["attention_mask"])], case["text"]
        assert len(ids) == sum(case["attention_mask"])


def make_tokenizer(cases: dict[str, Any]) -> TextTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        vocab = Path(folder, "vocab.txt")
        vocab.write_text("\n".join(cases["vocab"]) + "\n", encoding="utf-8")
        settings = {"do_lower_case": cases["do_lower_case"]}
        vocab.with_name("tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return load_tokenizer(folder)


NORMS = {"half": ((0.5,) * 3, (0.5,) * 3), "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


def run_image_transforms(folder: Path) -> None:
    """Every operation, some policies and the validation of ZeroVL; one grey level for what resamples."""
    case = read_case(folder)
    pixels = case.inputs["image"].numpy()
    image = Image.fromarray(pixels)
    for name, level, sign in case.config["ops"]:
        found = apply_operation(image, name, level, sign)
        check_pixels(np.asarray(found), case.outputs[f"op.{name}.{level}.{'p' if sign > 0 else 'm'}"], name)
    for place, (number, uniforms, signs) in enumerate(case.config["policies"]):
        found = apply_policy(image, number, iter(uniforms), signs_of_operations(number, uniforms, signs))
        check_pixels(np.asarray(found), case.outputs[f"policy.{place}"], f"policy {number}")
    packed = io.BytesIO()
    image.save(packed, "PNG")
    for variant in case.config["valid"]:
        steps = ImageSteps(ImageSteps.Config(steps=variant.get("steps", ["resize", "center_crop"]),
                                             resize=variant["resize"]), variant["crop"])  # fmt: skip
        mean, std = (np.array(values)[:, None, None] for values in NORMS[variant["norm"]])
        found = (steps(packed.getvalue()) / 255 - mean) / std
        difference = np.abs(found - case.outputs[variant["name"]].numpy()).max()
        assert difference <= 1 / 255 / std.min() + 1e-6, variant["name"]


def signs_of_operations(number: int, uniforms: list[float], drawn: list[int]) -> Iterator[int]:
    """A sign for every operation of a policy that is applied; the original draws one only where it has a meaning."""
    left = iter(drawn)
    for uniform, (probability, name, _) in zip(uniforms, POLICIES[number], strict=True):
        if uniform < probability:
            yield next(left) if name in SIGNED else 1


def check_pixels(found: np.ndarray, expected: Tensor, where: str) -> None:
    assert np.abs(found.astype(int) - expected.numpy().astype(int)).max() <= 1, where


KINDS = {
    ("zerovl", "debias_sampler"): run_debias_sampler,
    ("zerovl", "image_transforms"): run_image_transforms,
    ("zerovl", "text_augment"): run_text_augment,
}
