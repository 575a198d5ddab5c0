"""Swin weights: the original layout (also inside CCLM and CCRK), timm's layout, and tables for another window."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from compat.layout import State

_TABLE = "relative_position_bias_table"
# Recomputed by every implementation from window and resolution; never loaded.
BUFFERS = ("relative_position_index", "attn_mask")


def stage_windows(image: dict[str, Any]) -> list[tuple[int, int]]:
    """(resolution, window) of every stage; the window shrinks to the resolution where that is smaller."""
    size = image["image_size"] // image.get("patch_size", 4)
    return [(size >> stage, min(image["window_size"], size >> stage)) for stage in range(len(image["depths"]))]


def to_timm(state: State, image: dict[str, Any]) -> State:
    """Original or timm keys -> timm keys for the image tree of a config: tables interpolated, buffers and classifier
    dropped.
    """
    is_original = any(name.startswith("layers.0.downsample.") for name in state)
    windows, ours = stage_windows(image), {}
    for name, value in state.items():
        if name.endswith(BUFFERS) or name.startswith("head."):
            continue
        found = re.match(r"layers\.(\d+)\.(downsample\..*)", name)
        if found and is_original:
            name = f"layers.{int(found[1]) + 1}.{found[2]}"
        if name.endswith(_TABLE):
            value = interpolate_table(value, windows[int(name.split(".")[1])][1])
        ours[name] = value
    return ours


def to_original(state: State, image: dict[str, Any]) -> State:
    """timm keys -> original keys, with the buffers that original checkpoints hold."""
    theirs = {}
    for name, value in state.items():
        found = re.match(r"layers\.(\d+)\.(downsample\..*)", name)
        theirs[f"layers.{int(found[1]) - 1}.{found[2]}" if found else name] = value
    for stage, (size, window) in enumerate(stage_windows(image)):
        for block in range(image["depths"][stage]):
            prefix = f"layers.{stage}.blocks.{block}"
            theirs[f"{prefix}.attn.relative_position_index"] = relative_position_index(window)
            if block % 2 and window < size:
                theirs[f"{prefix}.attn_mask"] = shifted_window_mask(size, window)
    return theirs


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for every pair of places in a window: (window^2, window^2)."""
    place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = place[:, :, None] - place[:, None, :] + window - 1  # (2, w^2, w^2)
    return offset[0] * (2 * window - 1) + offset[1]


def shifted_window_mask(size: int, window: int) -> Tensor:
    """-100 between places that only the cyclic shift brought into one window: (windows, window^2, window^2)."""
    shift = window // 2
    edge = torch.zeros(size, dtype=torch.long)
    edge[size - window : size - shift] = 1
    edge[size - shift :] = 2
    region = edge[:, None] * 3 + edge[None, :]  # (size, size)
    across = size // window
    windows = region.view(across, window, across, window).transpose(1, 2).reshape(across**2, -1)
    return (windows[:, None, :] != windows[:, :, None]).float() * -100.0


def interpolate_table(table: Tensor, window: int) -> Tensor:
    """A relative-position bias table ((2s-1)^2, heads) for another window: ((2 window - 1)^2, heads).

    Source places are spaced geometrically so that the table's ends meet; bicubic interpolating spline per head,
    places beyond the source are clamped to its edge. Needs a source window of at least 3.
    """
    side, target = round(table.shape[0] ** 0.5), 2 * window - 1
    if side == target:
        return table
    if side < 4:
        raise ValueError(
            f"a relative-position table of window {(side + 1) // 2} is too small to interpolate; needs window 3 or more"
        )
    source_places = _geometric_places(side, target)
    places = np.clip(np.arange(target) - target // 2, source_places[0], source_places[-1])
    grids = table.detach().double().numpy().reshape(side, side, -1)
    heads = [
        RectBivariateSpline(source_places, source_places, grids[:, :, h], s=0)(places, places)
        for h in range(grids.shape[2])
    ]
    return torch.from_numpy(np.stack(heads, axis=-1).reshape(target**2, -1)).to(table.dtype)


def _geometric_places(side: int, target: int) -> np.ndarray:
    """0, +-1, +-(1 + q), +-(1 + q + q^2), ... with q found by bisection so that the sum reaches half the target."""
    low, high, steps = 1.01, 1.5, side // 2
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q**steps) / (1 - q) > target // 2:
            high = q
        else:
            low = q
    reach = np.cumsum(q ** np.arange(steps))
    return np.concatenate([-reach[::-1], [0.0], reach])
