"""Small heads on top of the encoders: classification, masked language modelling, temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.transformer import initialise


def classification_head(width: int, num_classes: int) -> nn.Sequential:
    """Two linear maps around LayerNorm and GELU, torch's default initialisation (CCLM's `itm_head`, `cls_head`,
    `bbox_head`).
    """
    return nn.Sequential(
        nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, num_classes)
    )


@dataclass
class ClassifierConfig:
    """A head that tells num_classes apart: two layers with a norm between them, or a single linear map."""

    num_classes: int
    num_layers: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, found {self.num_classes}")

    def build(self, width: int) -> nn.Module:
        """The head for vectors (T, D): logits (T, num_classes)."""
        if self.num_layers == 1:
            return nn.Linear(width, self.num_classes)
        return classification_head(width, self.num_classes)


def exact_logits(head: nn.Module, x: Tensor) -> Tensor:
    """What a head makes of x (n, D), in single precision whatever the autocast: in bf16, candidates of a query whose
    logits differ by less than 0.4 % would tie.
    """
    with torch.autocast(x.device.type, enabled=False):
        return head(x.float())


class MaskedLanguageHead(nn.Module):
    """BERT's prediction head without its decoder matrix: that one is the word embedding, which the caller passes."""

    def __init__(self, width: int, vocab_size: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        initialise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (Q, D) -> (Q, D), to be multiplied by the word embeddings; the bias is added there."""
        return self.norm(F.gelu(self.dense(tokens)))


class Temperature(nn.Module):
    """The number that similarities are divided by; learned, and kept in [minimum, maximum] where the recipe says so."""

    @dataclass
    class Config:
        initial: float = 0.07
        minimum: float = 0.001
        maximum: float = 0.5
        is_clamped: bool = True
        # `stored`: training clamps the number itself (CCLM); `used`: it drifts freely, but what lies outside the range
        # divides as its nearest end and gets no gradient (ZeroVL).
        clamps: Literal["stored", "used"] = "stored"
        is_learned: bool = True
        # `log_scale`: the parameter is ln(1 / temperature), clamped after every step and at no other time (CLIP).
        stored_as: Literal["value", "log_scale"] = "value"

        def __post_init__(self) -> None:
            is_inside = self.minimum <= self.initial <= self.maximum or not self.is_clamped
            if not (0 < self.minimum <= self.maximum and self.initial > 0 and is_inside):
                raise ValueError(
                    f"need 0 < minimum <= initial <= maximum; found {self.minimum}, {self.initial}, {self.maximum}"
                )

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.value = nn.Parameter(torch.tensor(config.initial), requires_grad=config.is_learned)

    @staticmethod
    def build(config: Config) -> Temperature | LogScale:
        """The module for what is stored."""
        return (LogScale if config.stored_as == "log_scale" else Temperature)(config)

    def after_step(self) -> None:
        """Called after every optimizer step."""

    def forward(self) -> Tensor:
        """The temperature (), within its range as the config says."""
        if self.config.is_clamped and self.config.clamps == "used":
            return self.value.clamp(self.config.minimum, self.config.maximum).view(())
        if self.training and self.config.is_clamped:
            with torch.no_grad():
                self.value.clamp_(self.config.minimum, self.config.maximum)
        return self.value.view(())  # sharded, it is stored as a vector of one number


class LogScale(nn.Module):
    """A temperature whose logarithm is learned, as CLIP's logit_scale = ln(1 / temperature).

    It begins where the config or a checkpoint says, also outside the range, and is clamped after every optimizer step.
    """

    def __init__(self, config: Temperature.Config) -> None:
        super().__init__()
        self.config = config
        start = torch.tensor(-math.log(config.initial))
        self.log_scale = nn.Parameter(start, requires_grad=config.is_learned)

    def after_step(self) -> None:
        """Brings the parameter back into its range."""
        if self.config.is_clamped:
            with torch.no_grad():
                self.log_scale.clamp_(-math.log(self.config.maximum), -math.log(self.config.minimum))

    def forward(self) -> Tensor:
        """The temperature ()."""
        return (-self.log_scale.view(())).exp()
