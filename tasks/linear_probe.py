"""`--task linear_prob`: a linear classifier on a frozen image tower, as ZeroVL is measured on ImageNet.

Letters: M images, B batch, C classes, D width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset import TRANSFORMS
from dataset.class_folder import ClassFolder
from dataset.image_steps import ImageSteps
from scheduler import ScheduleConfig, learning_rate_factor
from tasks.encode_files import AnyPrecision, encode_pictures
from tasks.tool import Tool, ToolConfig
from utils import distributed
from utils.digest import digest_of_weights
from utils.lars import Lars
from utils.progress import Progress

MOMENTUM = 0.9
TOP = (1, 5)

log = logging.getLogger(__name__)


def global_tokens(model: Any, images: Tensor) -> Tensor:
    """The tower's global token (M, D): what the classifier sees."""
    return model.image_encoder(images)[:, 0]


class Probe:
    """The classifier with its optimizer: LARS, warm-up and half a cosine down to 0."""

    def __init__(
        self, classifier: nn.Linear, lr: float, warmup: float, total_steps: int, *, cycles: float = 0.5, **lars: float
    ) -> None:
        """cycles: waves of the cosine; lars: further settings of the optimizer."""
        self.classifier, self.lr, self.total_steps, self.num_steps = classifier, lr, total_steps, 0
        self.schedule = ScheduleConfig(name="cosine", warmup=warmup, cycles=cycles)
        self.optimizer = Lars(classifier.parameters(), lr=lr, **{"momentum": MOMENTUM} | lars)

    def step(self, vectors: Tensor, labels: Tensor, num_global: int) -> Tensor:
        """The loss () of this rank's part of a batch, before one update from the batch of all ranks.

        vectors (B, D), labels (B,); num_global counts the pictures of all ranks.
        """
        rate = self.lr * learning_rate_factor(self.schedule, self.num_steps, self.total_steps)
        loss = F.cross_entropy(self.classifier(vectors), labels, reduction="sum") / num_global
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in self.classifier.parameters():
            parameter.grad = distributed.all_reduce_sum(parameter.grad)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.num_steps += 1
        return loss.detach() * num_global / max(len(labels), 1)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        parts = {"classifier": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict()}
        return parts | {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_steps = state["num_steps"]


class LinearProbe(Tool):
    """Trains on <data>/train, counts on <data>/val; pictures that are always the same are encoded once.

    A stopped command goes on with the epoch that it was in.
    """

    @dataclass
    class Config(ToolConfig):
        data: str = ""  # holds train/<class>/ and val/<class>/
        model_config: str = ""
        train_transform: Annotated[Any, TRANSFORMS] = field(
            default_factory=lambda: ImageSteps.Config(steps=["random_resize_crop", "autoaug"], scale=[0.08, 1.0])
        )
        val_transform: Annotated[Any, TRANSFORMS] = None  # none: the one that the model's run tests with
        mean: list[float] = field(default_factory=list)  # of the pixels, three shares of white; none: the model's own
        std: list[float] = field(default_factory=list)
        epochs: int = 90
        batch_size: int = 16384  # over all processes
        encode_batch_size: int = 256
        lr: float = 6.4
        warmup: float = 0.1111  # share of all steps
        cycles: float = 0.5  # waves of the cosine
        momentum: float = MOMENTUM
        weight_decay: float = 0.0
        evaluate_every_epochs: int = 2
        precision: AnyPrecision = "fp32"
        num_workers: int = 0

        def __post_init__(self) -> None:
            if not self.data or not self.checkpoint:
                raise ValueError("data (with train/ and val/, a folder for each class) and --checkpoint are needed")
            for name in ("epochs", "batch_size", "encode_batch_size", "evaluate_every_epochs"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
            if self.lr <= 0 or not 0 <= self.warmup <= 1 or self.num_workers < 0:
                raise ValueError("lr must be above 0, warmup a share in 0 ... 1, num_workers not negative")
            if {len(self.mean), len(self.std)} not in ({0}, {3}) or min(self.std, default=1) <= 0:
                raise ValueError(f"mean and std need three numbers each, std above 0; found {self.mean}, {self.std}")
            if not 0 <= self.momentum < 1 or self.weight_decay < 0 or self.cycles <= 0:
                raise ValueError("momentum must be in 0 ... 1, weight_decay not negative, cycles above 0")

    def run(self) -> dict[str, Any]:
        """Top-1 and top-5 on the validation pictures, in percent."""
        config = self.config
        train, val = (ClassFolder(os.path.join(config.data, split)) for split in ("train", "val"))
        if val.classes != train.classes:
            differing = ", ".join(sorted(set(val.classes) ^ set(train.classes))[:5])
            raise ValueError(
                f"{config.data}: train and val must have the same classes; only in one of them: {differing}"
            )
        self.device = distributed.device_for_rank()
        self.loaded = self.load(config.checkpoint, config.model_config or None, device=str(self.device))
        self.loaded.model.requires_grad_(False)
        tower = self.loaded.model.image_encoder
        for name, values in (("mean", config.mean), ("std", config.std)):
            if values:
                setattr(tower, name, tower.mean.new_tensor(values)[:, None, None] * 255)
        self.weights = digest_of_weights(self.loaded.model.image_encoder.state_dict())
        transform, val_transform = self._transforms()
        kept = None if draws(transform, train) else self._all_vectors(train, transform, "train")
        val_vectors = self._all_vectors(val, val_transform, "val")
        val_labels = torch.tensor(val.labels)
        batch_size = min(config.batch_size, len(train))
        probe = self._new_probe(train, len(train) // batch_size)
        state = Path(config.output_dir) / "probe.pt"
        found: dict[str, float] = {}
        for epoch in range(self._restore(probe, state), config.epochs):
            order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
            batches = [order[k : k + batch_size].tolist() for k in range(0, len(order) - batch_size + 1, batch_size)]
            loss = self._epoch(probe, train, transform, kept, epoch, batches)
            self._save(probe, state, epoch + 1)
            if (epoch + 1) % config.evaluate_every_epochs == 0:
                found = self._accuracy(probe, val_vectors, val_labels)
                log.info("epoch %d: loss %.4f, acc1 %.2f, acc5 %.2f", epoch + 1, loss, found["acc1"], found["acc5"])
        found = self._accuracy(probe, val_vectors, val_labels)
        return {"val": found, "images": {"train": len(train), "val": len(val)}, "classes": train.num_classes}

    def summary(self, result: dict[str, Any]) -> str:
        """Both numbers in a line."""
        return f"val acc1 {result['val']['acc1']:.2f}, acc5 {result['val']['acc5']:.2f}\n"

    def _transforms(self) -> tuple[Any, Any]:
        """For training and for validation."""
        size = self.loaded.config.model.image_encoder.image_size
        found = [
            None if section is None else TRANSFORMS.load(section.name)(section, size)
            for section in (self.config.train_transform, self.config.val_transform)
        ]
        return found[0], found[1] or self.loaded.inputs.transform

    def _new_probe(self, train: ClassFolder, steps_per_epoch: int) -> Probe:
        torch.manual_seed(self.config.seed)  # the same first weights on every rank
        classifier = nn.Linear(self.loaded.model.image_encoder.width, train.num_classes).to(self.device)
        config, options = self.config, ("cycles", "momentum", "weight_decay")
        chosen = {name: getattr(config, name) for name in options}
        return Probe(classifier, config.lr, config.warmup, steps_per_epoch * config.epochs, **chosen)

    def _epoch(
        self,
        probe: Probe,
        train: ClassFolder,
        transform: Any,
        kept: np.ndarray | None,
        epoch: int,
        batches: list[list[int]],
    ) -> float:
        """One pass over the batches; the loss of the last one."""
        own = [batch[distributed.rank() :: distributed.world_size()] for batch in batches]
        labels = torch.tensor(train.labels)
        vectors = self._encode(train, own, transform, (self.config.seed, epoch)) if kept is None else _rows(kept, own)
        loss = torch.zeros(())
        with Progress(len(batches), f"steps of epoch {epoch + 1}", is_shown=distributed.is_main()) as progress:
            for batch, places, part in zip(batches, own, vectors, strict=True):
                loss = probe.step(part.to(self.device), labels[places].to(self.device), len(batch))
                progress.advance(1)
        return loss.item()

    def _encode(
        self, images: ClassFolder, parts: list[list[int]], transform: Any, seed: tuple[int, ...]
    ) -> Iterator[Tensor]:
        config = self.config
        for vectors in encode_pictures(
            self.loaded,
            images,
            parts,
            self.device,
            config.precision,
            batch_size=config.encode_batch_size,
            workers=config.num_workers,
            transform=transform,
            seed=seed,
            encode=global_tokens,
        ):
            yield vectors.clone()  # the towers' inference tensors may not be saved for a backward pass

    def _all_vectors(self, images: ClassFolder, transform: Any, split: str) -> np.ndarray:
        """Vectors (M, D) of all pictures, from the disk where this very set was encoded before."""
        settings = asdict(transform.config) if hasattr(transform, "config") else {}
        pixels = [self.config.precision, transform.image_size, self.config.mean, self.config.std]
        key = json.dumps([self.weights, *pixels, settings, images.stamps()])
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        place = Path(self.config.output_dir) / f"{split}-{digest}.npy"
        if not distributed.all_agree(place.is_file()):
            parts = [list(range(len(images)))[distributed.rank() :: distributed.world_size()]]
            own = next(iter(self._encode(images, parts, transform, ()))) if parts[0] else None
            vectors = np.zeros((len(images), self.loaded.model.image_encoder.width), np.float32)
            for rank, part in enumerate(distributed.gather_objects(None if own is None else own.cpu().numpy())):
                if part is not None:
                    vectors[rank :: distributed.world_size()] = part
            if distributed.is_main():
                place.parent.mkdir(parents=True, exist_ok=True)
                temporary = place.with_suffix(".partial")
                with open(temporary, "wb") as file:
                    np.save(file, vectors)
                os.replace(temporary, place)
            distributed.barrier()
        return np.load(place, mmap_mode="r", allow_pickle=False)

    @torch.no_grad()
    def _accuracy(self, probe: Probe, vectors: np.ndarray, labels: Tensor) -> dict[str, float]:
        """Percent of pictures whose class is among the first K."""
        size, right = self.config.encode_batch_size, dict.fromkeys(TOP, 0.0)
        for start in range(0, len(vectors), size):
            part = torch.from_numpy(np.array(vectors[start : start + size])).to(self.device)
            logits, target = probe.classifier(part).cpu(), labels[start : start + size]
            for k in TOP:
                right[k] += len(target) * share_right(logits, target, k).item()
        return {f"acc{k}": 100 * right[k] / len(vectors) for k in TOP}

    def _fingerprint(self) -> str:
        """What a kept state must share with this command; a longer run has another schedule."""
        of_work = ("output_dir", "remote_output", "num_workers", "encode_batch_size", "checkpoint", "model_config")
        settings = {name: value for name, value in asdict(self.config).items() if name not in of_work}
        return hashlib.sha256(json.dumps([settings, self.weights], sort_keys=True).encode()).hexdigest()

    def _save(self, probe: Probe, place: Path, epochs: int) -> None:
        if distributed.is_main():
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_suffix(".partial")
            torch.save({"epochs": epochs, "fingerprint": self._fingerprint(), **probe.state_dict()}, temporary)
            os.replace(temporary, place)

    def _restore(self, probe: Probe, place: Path) -> int:
        """Epochs that are done; 0 where there is no state of this command."""
        if not place.is_file():
            return 0
        state = torch.load(place, map_location=self.device, weights_only=True)
        if state["fingerprint"] != self._fingerprint():
            log.warning("%s: of other settings or weights; training begins anew", place)
            return 0
        probe.load_state_dict(state)
        return state["epochs"]


def share_right(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Share () of pictures whose class (B,) is among the first k of logits (B, C)."""
    ranked = logits.topk(min(k, logits.shape[1]), dim=1).indices  # (B, k)
    return (ranked == labels[:, None]).any(dim=1).double().mean()


def draws(transform: Any, images: ClassFolder) -> bool:
    """Whether a transform makes something else of a picture each time."""
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    transform(images.read(0), generator)
    return generator.bit_generator.state != before


def _rows(vectors: np.ndarray, parts: list[list[int]]) -> Iterator[Tensor]:
    for part in parts:
        yield torch.from_numpy(np.asarray(vectors[part]))
