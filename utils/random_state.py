"""The state of every random source that training draws from."""

import random
from typing import Any

import numpy
import torch


def capture_random_state(device: torch.device) -> dict[str, Any]:
    """States of python, numpy, torch and the device, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = numpy.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype("int64")), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on drawing where `capture_random_state` was called."""
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_random_state(*numbers: int) -> None:
    """Seed python, numpy and torch (all devices) from several numbers together."""
    seed = int(numpy.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
