"""The seam between the trainer and everything that has to do with images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Task(nn.Module):
    """What is trained and evaluated: a model, its objectives and its data.

    The trainer, DDP and FSDP2 know nothing else. Everything that must survive a resume besides weights (momentum
    copies, queues) is a buffer or a parameter of the task.
    """

    headline = ""

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """The weighted parts of the loss by name, () each; the trainer adds them up.

        Their gradients, averaged over ranks, are those of the whole batch.
        """
        raise NotImplementedError

    def embed(self, batch: Any) -> dict[str, Tensor]:
        """Rows by name that the losses of a whole batch need of a micro-batch (train.accumulate_decoupled)."""
        raise NotImplementedError

    def joint_losses(self, batches: Sequence[Any], embeds: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `forward` would return for all micro-batches as one batch; embeds holds the rows of `embed` of all of
        them, one below the other. The batches lie on the host.
        """
        raise NotImplementedError

    def train_loader(self, rank: int, world_size: int) -> Any:
        """An iterable with length, `state_dict` and `load_state_dict`: this rank's batches of an epoch, from where it
        stands; with several streams a list of batches for every step.
        """
        raise NotImplementedError

    def evaluate(self, split: str) -> dict[str, Any]:
        """The tree of metrics of `val` or `test`; called on all ranks, which get equal trees. {} if the split has no
        data.
        """
        raise NotImplementedError

    def headline_value(self, metrics: dict[str, Any]) -> float:
        """The number of a tree of metrics by which the best checkpoint is chosen; larger is better."""
        return float(metrics["mean"][self.headline])

    def before_training(self, steps_per_epoch: float) -> None:
        """Called once when the weights are those that training starts from, before a checkpoint is read."""

    def statistics(self) -> dict[str, Tensor]:
        """Numbers () of the last losses by name, for the log; {} where there are none."""
        return {}

    def after_step(self) -> None:
        """Called after every step, when the streams that take part in it have all made their update."""

    def fresh_parameters(self) -> set[str]:
        """Names of parameters that no public weights initialise; a recipe may give them a larger learning rate."""
        return set()
