"""ViT weights: timm and DeiT names, CLIP's Hugging Face names (also inside CCLM), and position embeddings for another
grid.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compat.bert import source_layers
from compat.layout import Entry, State, to_ours, to_theirs, with_weight_and_bias


def clip_entries(num_layers: int, source: list[int] | None = None) -> list[Entry]:
    """timm names <- CLIP names as CCLM stores them; `source` picks layers of a deeper file."""
    table = [
        Entry("patch_embed.proj.weight", ("patch_embed.weight",)),
        *with_weight_and_bias("norm_pre", "pre_layrnorm"),
    ]
    for number, their_number in enumerate(source or range(num_layers)):
        ours, theirs = f"blocks.{number}", f"encoder.layers.{their_number}"
        table += with_weight_and_bias(f"{ours}.attn.qkv", *(f"{theirs}.self_attn.{part}_proj" for part in "qkv"))
        table += with_weight_and_bias(f"{ours}.attn.proj", f"{theirs}.self_attn.out_proj")
        for place in (1, 2):
            table += with_weight_and_bias(f"{ours}.norm{place}", f"{theirs}.layer_norm{place}")
            table += with_weight_and_bias(f"{ours}.mlp.fc{place}", f"{theirs}.mlp.fc{place}")
    return table + with_weight_and_bias("norm", "post_layernorm")


def to_timm(state: State, image: dict[str, Any]) -> State:
    """timm, DeiT or CLIP keys -> timm keys for the image tree of a config; positions are interpolated to its grid."""
    grid = image["image_size"] // image["patch_size"]
    if "cls_token" in state or "pos_embed" in state:
        ours = {
            name: value for name, value in state.items() if not name.startswith(("head.", "head_dist.", "pre_logits."))
        }
        has_class_token = "cls_token" in state
    else:
        state = {_cclm_name(name): value for name, value in state.items()}
        ours = _from_clip(state, image["num_layers"])
        has_class_token = True
    ours["pos_embed"] = interpolate_positions(ours["pos_embed"], grid, int(has_class_token))
    return ours


def _from_clip(state: State, num_layers: int) -> State:
    if "class_embedding" not in state:
        raise ValueError(f"not a ViT or CLIP-ViT layout; first keys: {', '.join(list(state)[:4])}")
    numbers = [int(found[1]) for name in state if (found := re.match(r"encoder\.layers\.(\d+)\.", name))]
    ours, missing, _ = to_ours(state, clip_entries(num_layers, source_layers(max(numbers) + 1, num_layers)))
    if missing:
        raise ValueError(f"CLIP image weights lack {len(missing)} keys: {', '.join(missing[:5])}")
    return ours | {"cls_token": state["class_embedding"][None, None], "pos_embed": state["pos_embed.weight"][None]}


def to_clip(state: State, image: dict[str, Any]) -> State:
    """timm keys -> CLIP keys as CCLM stores them."""
    theirs = to_theirs(state, clip_entries(image["num_layers"]))
    positions = state["pos_embed"][0]  # (1 + N, D)
    position_ids = torch.arange(len(positions))[None]  # a buffer of CCLM's towers
    theirs |= {"class_embedding": state["cls_token"].flatten(), "pos_embed.weight": positions}
    return theirs | {"position_ids": position_ids}


def _cclm_name(name: str) -> str:
    """Hugging Face CLIP names brought to the spelling inside CCLM."""
    name = name.removeprefix("vision_model.").removeprefix("embeddings.")
    return name.replace("patch_embedding.weight", "patch_embed.weight").replace(
        "position_embedding.weight", "pos_embed.weight"
    )


def interpolate_positions(table: Tensor, grid: int, kept: int, *, align_corners: bool = False) -> Tensor:
    """A position table (1, c + g^2, D) for another grid: (1, c + grid^2, D), bicubic; the first c = `kept` rows, those
    of the class token and its like, stay. Chinese-CLIP aligns corners.
    """
    side = round((table.shape[1] - kept) ** 0.5)
    if side**2 != table.shape[1] - kept:
        raise ValueError(
            f"a position table of {table.shape[1]} rows is no square grid of patches; "
            f"needed: {kept} and a square number, as {kept + grid**2} for this model"
        )
    if side == grid:
        return table
    places = table[:, kept:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()  # (1, D, g, g)
    places = F.interpolate(places, size=(grid, grid), mode="bicubic", align_corners=align_corners)
    places = places.permute(0, 2, 3, 1).reshape(1, grid**2, -1).to(table.dtype)
    return torch.cat([table[:, :kept], places], dim=1)
