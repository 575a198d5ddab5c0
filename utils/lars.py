"""LARS (You et al. 2017): every parameter's rate is scaled by the ratio of its norm to its gradient's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

ETA = 0.001


class Lars(Optimizer):
    """Momentum on updates eta |p| / (|g| + wd |p|) (g + wd p) lr: the rate lies inside the momentum, as ZeroVL has it.

    A parameter or gradient of norm 0 takes the plain rate. Like torch's fused optimizers a step divides gradients by
    `grad_scale` () and has no effect where `found_inf` () is 1; nothing is read from the device.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        eta: float = ETA,
        eps: float = 1e-8,
        is_nesterov: bool = False,
    ) -> None:
        if momentum < 0 or eta <= 0 or (is_nesterov and (momentum == 0 or dampening)):
            raise ValueError(f"momentum {momentum}, dampening {dampening}, eta {eta} do not go together")
        settings = {"momentum": momentum, "dampening": dampening, "is_nesterov": is_nesterov, "eta": eta, "eps": eps}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "is_adapted": True, **settings})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of all parameters that have a gradient."""
        divisor, is_bad = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad if divisor is None else parameter.grad / divisor
                    self._update(parameter, gradient, group, is_bad)

    def _update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any], is_bad: torch.Tensor | None
    ) -> None:
        decay, momentum = group["weight_decay"], group["momentum"]
        change = gradient + decay * parameter
        if group["is_adapted"]:
            norm, gradient_norm = parameter.norm(), gradient.norm()
            ratio = group["eta"] * norm / (gradient_norm + decay * norm + group["eps"])
            change = change * torch.where((norm > 0) & (gradient_norm > 0), ratio, torch.ones_like(ratio))
        change = change * group["lr"]
        if momentum:
            state = self.state[parameter]
            if not state:
                state["momentum"], state["num_steps"] = torch.zeros_like(parameter), torch.zeros_like(parameter.norm())
            share = torch.where(state["num_steps"] == 0, 1.0, 1.0 - group["dampening"])
            buffer = momentum * state["momentum"] + share * change
            change = change + momentum * buffer if group["is_nesterov"] else buffer
            if is_bad is None:
                state["momentum"], state["num_steps"] = buffer, state["num_steps"] + 1
            else:
                # A gradient that is not finite must not reach the buffer through 0 * inf either.
                is_good = is_bad == 0
                state["momentum"] = torch.where(is_good, buffer, state["momentum"])
                state["num_steps"] = state["num_steps"] + is_good
        if is_bad is not None:
            change = torch.where(is_bad == 0, change, torch.zeros_like(change))
        parameter.sub_(change)
