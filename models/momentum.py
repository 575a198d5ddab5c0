"""Teachers: what a student learns from without a gradient, an averaged copy of itself or a model trained before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.dual_encoder import DualEncoder
from models.packing import Packing
from models.projection import Projection


class Teacher(nn.Module):
    """Copies of modules that get no gradient and follow their originals: copy <- momentum copy + (1 - momentum)
    original at every `update`.

    The copies are parameters, so that a run that is resumed has them. With momentum 1 they never change (a model that
    was trained before): then they belong to no state dict and are not spread over processes.
    """

    is_replicated = True  # equal on all processes by construction: nothing to broadcast

    def __init__(self, originals: Mapping[str, nn.Module], momentum: float, *, has_dropout: bool = False) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in 0 ... 1, found {momentum}")
        self.momentum, self.has_dropout = momentum, has_dropout
        self._originals = dict(originals)  # a plain dict: they belong to the student
        copies = nn.ModuleDict({name: copy.deepcopy(part) for name, part in originals.items()})
        copies.requires_grad_(False).train(has_dropout)
        self._kept = (copies,)
        if momentum < 1:
            self.copies = copies

    def __getitem__(self, name: str) -> nn.Module:
        """The copy of a module."""
        return self._kept[0][name]

    def __contains__(self, name: str) -> bool:
        return name in self._kept[0]

    def train(self, mode: bool = True) -> Teacher:
        """The copies drop nothing out in training either, unless they were asked to."""
        super().train(mode)
        self._kept[0].train(mode and self.has_dropout)
        return self

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Teacher:
        """Moves to a device and the like; reaches the copies that are no submodules, too."""
        if self.momentum == 1:
            self._kept[0]._apply(function, recurse)
        return super()._apply(function, recurse)

    @torch.no_grad()
    def reset(self) -> None:
        """Make the copies equal to their originals."""
        for kept, original in self._pairs():
            kept.copy_(original)

    @torch.no_grad()
    def update(self) -> None:
        """One step of the average; buffers (running statistics) are taken over."""
        if self.momentum == 1:
            return
        for kept, original in self._pairs():
            if isinstance(original, nn.Parameter):
                kept.lerp_(original, 1 - self.momentum)
            else:
                kept.copy_(original)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Every tensor of a copy with its original."""
        pairs = []
        for name, original in self._originals.items():
            kept = self[name]
            pairs += zip(kept.parameters(), original.parameters(), strict=True)
            pairs += zip(kept.buffers(), original.buffers(), strict=True)
        return pairs


@dataclass
class TeacherState:
    """What the teacher makes of a batch: unit vectors image (M, E) and text (T, E), and the texts before the
    projection, pooled_text (T, D).
    """

    image: Tensor
    text: Tensor
    pooled_text: Tensor


class MomentumTowers(nn.Module):
    """The averaged copy of a dual encoder (R2D2's momentum encoders); a frozen image tower is shared, not copied."""

    @dataclass
    class Config:
        momentum: float = 0.995  # recollection of the paper's value, which is also that of the method it builds on
        # The sources do not say whether the teacher drops out; without, its targets do not depend on chance.
        has_dropout: bool = False

        def __post_init__(self) -> None:
            if not 0 <= self.momentum < 1:
                raise ValueError(f"momentum must be at least 0 and less than 1, found {self.momentum}")

    def __init__(self, config: Config, model: DualEncoder) -> None:
        super().__init__()
        names = ["text_encoder", "text_projection", "image_projection"]
        if not model.image_encoder.config.is_frozen:
            names.append("image_encoder")
        parts = {name: getattr(model, name) for name in names if getattr(model, name) is not None}
        self.towers = Teacher(parts, config.momentum, has_dropout=config.has_dropout)
        self.projection_form = model.projection_form

    def reset(self) -> None:
        """Start again from the student's weights."""
        self.towers.reset()

    def update(self) -> None:
        """Follow the student; to be called after its update, so before the next batch."""
        self.towers.update()

    @torch.no_grad()
    def forward(self, images: Tensor, ids: Tensor, packing: Packing) -> TeacherState:
        """images (M, 3, H, W), or where the image tower is frozen what the student made of them, (M, N, D); complete
        texts ids (T, L).
        """
        towers: Any = self.towers
        tokens = towers["image_encoder"](images) if "image_encoder" in towers else images
        image_projection = towers["image_projection" if "image_projection" in towers else "text_projection"]
        pooled_text = towers["text_encoder"].encode_pooled(ids, packing)
        return TeacherState(
            image=Projection.finish(self.projection_form, image_projection(tokens[:, 0])),
            text=Projection.finish(self.projection_form, towers["text_projection"](pooled_text)),
            pooled_text=pooled_text,
        )
