"""The trainings of a whole Chinese-CLIP project: our data set, in the original's order, through our update."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from compat.chinese_clip_sizes import model_section
from dataset.batch import ImageTextBatch
from dataset.data import Data
from dataset.pairs import Pairs
from dataset.samples import Preprocessing
from dataset.text import load_tokenizer
from dataset.transforms import Resize
from optim import make_optimizer, set_learning_rate
from rosetta import ROOT
from scheduler import learning_rate_factor
from tasks.retrieval import RetrievalEvaluation
from tests.parity.runners.chinese_clip_losses import decoupled_step, plain_step
from tests.parity.runners.chinese_clip_model import written
from tests.parity.runners.chinese_clip_training import LOSS, NORM, is_noise, make_task, recipe
from tests.parity.runners.common import Case
from utils.checkpoint import read_weights
from utils.precision import guarded_step

SAMPLER_SEED, CLIP_VIT_BETAS, CLIP_VIT_EPS = 123, (0.9, 0.98), 1e-6
LOGGED = 6e-4  # rates and scales are printed with three places or so


def parse_flags(listed: dict[str, Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name, kind, value in (
        ("batch-size", int, 64),
        ("valid-batch-size", int, 64),
        ("max-epochs", int, None),
        ("max-steps", int, None),
        ("warmup", int, 500),
        ("lr", float, None),
        ("wd", float, 0.2),
        ("accum-freq", int, 1),
        ("context-length", int, 52),
    ):
        parser.add_argument(f"--{name}", type=kind, default=value)
    return parser.parse_known_args([*listed["flags"], *listed["common_flags"].split()])[0]


def check_training(folder: Path, name: str) -> None:
    listed = json.loads((folder / f"expected/{name}.json").read_text(encoding="utf-8"))
    flags = parse_flags(listed)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hyper = {
        "lr": flags.lr,
        "wd": flags.wd,
        "beta1": CLIP_VIT_BETAS[0],
        "beta2": CLIP_VIT_BETAS[1],
        "eps": CLIP_VIT_EPS,
    }
    state = {
        key.removeprefix("module."): value
        for key, value in read_weights(folder / "checkpoint.pt")["state_dict"].items()
    }
    settings = recipe(hyper)
    task, optim = make_task(folder, Case(config | {"_hparams": hyper}, {}, {}, state), settings.optim)
    optimizer, schedule = make_optimizer(task, optim), replace(settings.schedule, warmup=flags.warmup)
    data = open_pairs(folder / "dataset/lmdb/train", flags.context_length, model_section(config)["image_encoder"])
    num_batches = math.ceil(len(data) / flags.batch_size)
    total = flags.max_steps or num_batches // flags.accum_freq * flags.max_epochs
    step, epoch, validations = 0, 0, {line["steps"]: line for line in listed["valid"]}
    validation = make_validation(folder, settings, flags)
    while step < total:
        batches = batches_of(data, flags.batch_size, num_batches, epoch)
        for first in range(0, num_batches // flags.accum_freq * flags.accum_freq, flags.accum_freq):
            if step == total:
                break
            line = listed["train"][step]
            factor = learning_rate_factor(schedule, step, total)
            set_learning_rate(optimizer, optim, factor, step)
            group = batches[first : first + flags.accum_freq]
            loss = plain_step(task, group[0]) if len(group) == 1 else decoupled_step(task, group, repeats=True)
            guarded_step(optimizer, torch.tensor(1.0), torch.tensor(0.0))
            task.after_step()
            step += 1
            assert (line["step"], line["total"], line["epoch"]) == (step, total, epoch + 1)
            assert abs(loss.item() - line["loss"]) <= LOSS * max(1, abs(line["loss"])), (name, step, loss.item(), line)
            assert abs(optim.lr * factor - line["lr"]) <= 1e-2 * line["lr"]
            assert abs(task.model.temperature.log_scale.item() - line["logit_scale"]) <= LOGGED
            if step in validations:
                check_validation(validation, task, validations.pop(step))
        epoch += 1
    assert not validations
    found = written(task.model)
    for key, value in load_file(folder / f"expected/{name}_final.safetensors").items():
        own = key.removeprefix("final.module.")
        if key.startswith("final.") and not is_noise(own):
            assert (found[own] - value).float().norm() <= NORM * value.float().norm(), (name, own)


def make_validation(folder: Path, settings: Any, flags: argparse.Namespace) -> RetrievalEvaluation:
    val = Pairs.Config([str(folder / "dataset/lmdb/valid")])
    data = replace(settings.data, val=val, max_tokens=flags.context_length, num_workers=0, cache_dir="")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    batches = replace(settings.evaluation, in_batch_size=flags.valid_batch_size)
    return RetrievalEvaluation(batches, Data(data, image_size=config["image_resolution"], seed=SAMPLER_SEED), "")


@torch.no_grad()
def check_validation(validation: RetrievalEvaluation, task: Any, line: dict[str, Any]) -> None:
    """Loss and accuracies in batches, as the original's trainer logs them between its steps."""
    [found] = validation(task.model.eval(), "val")["in_batch"].values()
    task.train()
    assert abs(found["loss"] - line["loss"]) <= LOSS * line["loss"], (found, line)
    accuracies = [found["image_to_text_accuracy"], found["text_to_image_accuracy"]]
    assert accuracies == [line["i2t"], line["t2i"]] and found["batch_size"] == line["valid_batch_size"]


def open_pairs(folder: Path, max_tokens: int, image: dict[str, Any]) -> Pairs:
    transform = Resize(Resize.Config(in_own_mode=True), image["image_size"])
    tokenizer = load_tokenizer(ROOT / "assets/tokenizers/chinese-clip")
    return Pairs(Pairs.Config([str(folder)]), Preprocessing(tokenizer, transform, max_tokens, max_words=0))


def batches_of(data: Pairs, size: int, count: int, epoch: int) -> list[ImageTextBatch]:
    """An epoch as torch's sampler orders it; numbers beyond the last pair begin anew."""
    order = torch.randperm(size * count, generator=torch.Generator().manual_seed(SAMPLER_SEED + epoch)).tolist()
    samples = [data.sample(number % len(data), None) for number in order]
    return [data.collate(samples[start : start + size], []) for start in range(0, len(samples), size)]
