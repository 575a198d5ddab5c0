"""Number formats of training, and what keeps their gradients sound: loss scale, norm, clipping, skipping of bad steps.

Everything here stays on the device: whether a step is skipped is a tensor that the fused optimizer reads itself.
Held by tests on the CPU, fp16 included; not run on a GPU yet.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

INITIAL_SCALE, GROWTH, BACKOFF, GROWTH_INTERVAL = 65536.0, 2.0, 0.5, 2000  # as torch.amp.GradScaler


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """The context of a forward pass in a precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


class LossScale:
    """What the loss is multiplied by so that fp16 gradients stay in range; 1 for the other formats.

    torch.amp.GradScaler decides per process, from the gradients that this process holds, whether to skip; with sharded
    parameters ranks would then disagree. Here the caller says, from the norm over all ranks.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.is_used = precision == "fp16"
        self.scale = torch.tensor(INITIAL_SCALE if self.is_used else 1.0, device=device)
        self.num_good = torch.zeros((), device=device)

    def update(self, is_bad: Tensor) -> None:
        """Shrink after a bad step, grow after many good ones; is_bad () is 1.0 or 0.0."""
        if not self.is_used:
            return
        self.num_good = (self.num_good + 1) * (1 - is_bad)
        grows = (self.num_good >= GROWTH_INTERVAL).float()
        self.scale = self.scale * (1 + (BACKOFF - 1) * is_bad) * (1 + (GROWTH - 1) * grows)
        self.num_good = self.num_good * (1 - grows)

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "num_good": self.num_good}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.scale = state["scale"].to(self.scale.device)
        self.num_good = state["num_good"].to(self.num_good.device)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm () of all gradients together, over all ranks where they are sharded; not finite if one is not."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def clip_divisor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this norm are divided by so that their norm is at most max_norm; 0 means no limit."""
    return ((norm + 1e-6) / max_norm).clamp(min=1.0) if max_norm else torch.ones_like(norm)


def guarded_step(optimizer: Optimizer, divisor: Tensor, is_bad: Tensor) -> None:
    """One step on the gradients divided by divisor (), without effect where is_bad () is 1; for fused optimizers."""
    optimizer.grad_scale, optimizer.found_inf = divisor, is_bad
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf
