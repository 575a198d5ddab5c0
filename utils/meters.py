"""Sums between two logging steps: of loss parts on the device, of times and tokens on the host."""

import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from utils.distributed import all_reduce_sum, world_size


class Meter:
    """Adds up what a logging step reports; nothing is read from the device before that."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.parts: dict[str, Tensor] = {}
        self.num_parts: Counter[str] = Counter()  # an objective may take part in some steps only
        self.noted: set[str] = set()  # parts that are no losses
        self.num_batches, self.num_tokens, self.num_padded_tokens = 0, 0, 0
        self.waited_seconds, self.started = 0.0, time.perf_counter()

    def add(
        self,
        parts: dict[str, Tensor],
        batch: Any,
        waited_seconds: float,
        statistics: dict[str, Tensor] | None = None,
    ) -> None:
        """Count one batch with its loss parts () each; statistics () each are reported beside them."""
        self.noted |= set(statistics or {})
        for name, value in {**parts, **(statistics or {})}.items():
            value = value.detach().float()
            self.parts[name] = self.parts[name] + value if name in self.parts else value
            self.num_parts[name] += 1
        self.num_batches += 1
        self.num_tokens += batch.num_tokens
        self.num_padded_tokens += batch.num_padded_tokens
        self.waited_seconds += waited_seconds

    def report(self, batch_size: int) -> dict[str, float]:
        """Means over processes and batches, of a part over those it took part in; reads the device.

        batch_size is over all processes.
        """
        names = sorted(self.parts)
        sums = all_reduce_sum(torch.stack([self.parts[name] for name in names])) / world_size()
        values = sums.tolist()
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return {
            "loss": sum(v for name, v in zip(names, values, strict=True) if name not in self.noted) / self.num_batches,
            **{f"train/{name}": value / self.num_parts[name] for name, value in zip(names, values, strict=True)},
            "samples_per_second": batch_size * self.num_batches / seconds,
            "data_wait_share": self.waited_seconds / seconds,
            "padding_share": 1 - self.num_tokens / max(1, self.num_padded_tokens),
        }

    def state_dict(self) -> dict[str, Any]:
        """The sums that a resumed run continues; times start anew."""
        counts = (self.num_batches, self.num_tokens, self.num_padded_tokens)
        parts = {name: (value.cpu(), self.num_parts[name]) for name, value in self.parts.items()}
        return {"parts": parts, "counts": counts, "noted": sorted(self.noted)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.parts = {name: value.to(device) for name, (value, _) in state["parts"].items()}
        self.num_parts = Counter({name: count for name, (_, count) in state["parts"].items()})
        self.num_batches, self.num_tokens, self.num_padded_tokens = state["counts"]
        self.noted = set(state["noted"])
