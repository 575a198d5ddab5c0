"""Decoupled accumulation: the loss of one large batch, and its exact gradient, at the memory of a micro-batch.

Pass 1 embeds every micro-batch without a graph. The loss of all embeddings together gives their gradients and those of
the parameters that it reads itself (the temperature). Pass 2 embeds every micro-batch again, under the same random
numbers, and back-propagates its share of these gradients. ZeroVL's DGA (arXiv 2112.09331) and Chinese-CLIP's accum_freq
ask for this; the gradient equals the one of a single graph over everything, dropout included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from utils.random_state import capture_random_state, restore_random_state
from utils.wrapping import gradient_exchange

Embeds = dict[str, Tensor]


class Replay(nn.Module):
    """What DDP wraps in place of the task: pass 2 of one micro-batch as a forward call."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Any, embed_gradient: Embeds, parameter_gradient: dict[str, Tensor]) -> Tensor:
        """A number () whose gradient is the micro-batch's share of the loss's, plus the given one of parameters."""
        embeds = self.task.embed(batch)
        parts = [(embeds[name].float() * gradient).sum() for name, gradient in embed_gradient.items()]
        for name, gradient in parameter_gradient.items():
            parts.append((self.task.get_parameter(name).float() * gradient).sum())
        return torch.stack(parts).sum()


def decoupled_backward(
    wrapped: nn.Module,
    task: nn.Module,
    batches: Sequence[Any],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    scale: Tensor,
    repeats_parameter_gradient: bool = False,
) -> dict[str, Tensor]:
    """Add the gradient of the loss over all micro-batches, times scale (), to the parameters; the loss's parts.

    repeats_parameter_gradient: what the loss reads itself (the temperature) gets its gradient once for every
    micro-batch, as Chinese-CLIP's accum_freq gives it.

    wrapped is a `Replay` of the task, perhaps inside DDP: gradients travel once, with the last micro-batch. Batches
    stay where they are and visit the device once per pass. Running statistics of batch norms see every batch twice.
    """
    states, found = [], []
    with torch.no_grad():
        for batch in batches:
            states.append(capture_random_state(device))
            with autocast():
                found.append(task.embed(batch.to(device, non_blocking=True)))
    counts = {name: [len(embeds[name]) for embeds in found] for name in found[0]}
    joint = {name: torch.cat([embeds[name].float() for embeds in found]).requires_grad_() for name in counts}
    del found
    parts = task.joint_losses(batches, joint)
    trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    loss = torch.stack([part.float() for part in parts.values()]).sum() * scale
    gradients = torch.autograd.grad(loss, [*joint.values(), *trained.values()], allow_unused=True)
    shares = {n: gradient.split(counts[n]) for n, gradient in zip(joint, gradients) if gradient is not None}
    repeats = len(batches) if repeats_parameter_gradient else 1
    of_parameters = {n: g * repeats for n, g in zip(trained, gradients[len(joint) :], strict=True) if g is not None}
    after = capture_random_state(device)
    for k, batch in enumerate(batches):
        restore_random_state(states[k], device)
        is_last = k == len(batches) - 1
        own = {name: share[k] for name, share in shares.items()}
        with gradient_exchange(wrapped, is_wanted=is_last):
            with autocast():
                replayed = wrapped(batch.to(device, non_blocking=True), own, of_parameters if is_last else {})
            replayed.backward()
    restore_random_state(after, device)
    return {name: part.detach() for name, part in parts.items()}
