"""Checkpoints of Chinese-CLIP <-> our state dict, in every layout that they are found in.

Names as in the original: `visual.` (CLIP's ViT or ResNet), `bert.`, `text_projection`, `logit_scale`. Files of the
transformers library hold the same numbers under other names; files written with flash attention hold queries, keys and
values of a text layer in one matrix. Both are brought to the original's names first (compat/chinese_clip_layouts.py).
"""

from __future__ import annotations

import re
from typing import Any, Literal

from torch import Tensor

from compat import chinese_clip_layouts as layouts
from compat.bert import embedding_entries, layer_entries
from compat.chinese_clip_sizes import CONFIGS, model_section, named_config
from compat.layout import Entry, State, Translation, to_ours, to_theirs, with_weight_and_bias
from compat.vit import interpolate_positions

Stage = Literal["original", "transformers"]
_BACKBONE = "image_encoder.backbone."
_POSITIONS = f"{_BACKBONE}pos_embed"
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_PROJECTIONS = ("text_projection", "visual.proj")
# Tables that lie flat in the original and have more dimensions in ours.
_LEADING = {f"{_BACKBONE}cls_token": 2, _POSITIONS: 1}
_CLS_TOKEN = f"{_BACKBONE}cls_token"
_SCALE = Entry("temperature.log_scale", ("logit_scale",))


def recognise(state: State) -> bool:
    """Whether a state dict has Chinese-CLIP's names, the original's or those of transformers."""
    return layouts.is_original(state) or layouts.is_transformers(state)


def released_config(state: State) -> str:
    """Our configuration of the released model of these sizes, or of the one that is most like it."""
    sizes = layouts.sizes_of(state)
    is_resnet = sizes["image_encoder"]["name"] == "resnet"
    rows = {path: model_section(named_config(*towers)) for *towers, path in CONFIGS}
    same = (path for path, tree in rows.items() if _holds(tree, sizes))
    return next(same, f"configs/chinese_clip/{'rn50' if is_resnet else 'vit_b_16'}.yaml")


def released_sizes(state: State) -> dict[str, Any]:
    """The `model` settings that the file's own shapes tell, to be laid over its configuration."""
    return layouts.sizes_of(state)


def _holds(tree: dict[str, Any], part: dict[str, Any]) -> bool:
    """Whether every setting of a part stands in the tree."""
    return all(
        _holds(tree.get(key, {}), value) if isinstance(value, dict) else tree.get(key) == value
        for key, value in part.items()
    )


def entries(model: dict[str, Any]) -> list[Entry]:
    """The table for the model tree of a config."""
    table = [_SCALE, Entry("text_projection.weight", ("text_projection",))]
    table += visual_entries(model["image_encoder"])
    table += embedding_entries("text_encoder", "bert.embeddings")
    for number in range(model["text_encoder"]["num_layers"]):
        ours, theirs = f"text_encoder.layers.{number}", f"bert.encoder.layer.{number}"
        table += layer_entries(ours, theirs, has_cross_attention=False)
    return table


def visual_entries(image: dict[str, Any]) -> list[Entry]:
    """The image tower and its projection."""
    if image["name"] == "resnet":
        return _resnet_entries(image["depths"])
    table = [
        Entry("image_projection.weight", ("visual.proj",)),
        Entry(_CLS_TOKEN, ("visual.class_embedding",)),
        Entry(_POSITIONS, ("visual.positional_embedding",)),
        Entry(f"{_BACKBONE}patch_embed.proj.weight", ("visual.conv1.weight",)),
        *with_weight_and_bias(f"{_BACKBONE}norm_pre", "visual.ln_pre"),
        *with_weight_and_bias(f"{_BACKBONE}norm", "visual.ln_post"),
    ]
    for number in range(image["num_layers"]):
        ours, theirs = f"{_BACKBONE}blocks.{number}", f"visual.transformer.resblocks.{number}"
        table += [Entry(f"{ours}.attn.qkv.{kind}", (f"{theirs}.attn.in_proj_{kind}",)) for kind in ("weight", "bias")]
        table += with_weight_and_bias(f"{ours}.attn.proj", f"{theirs}.attn.out_proj")
        for our_name, their_name in (("norm1", "ln_1"), ("norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                                     ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
            table += with_weight_and_bias(f"{ours}.{our_name}", f"{theirs}.{their_name}")
    return table


def _resnet_entries(depths: list[int]) -> list[Entry]:
    table = with_weight_and_bias("image_projection", "visual.attnpool.c_proj")
    table += with_weight_and_bias("image_encoder.pool.query", "visual.attnpool.q_proj")
    table += with_weight_and_bias("image_encoder.pool.key_value", *(f"visual.attnpool.{k}_proj" for k in "kv"))
    table.append(Entry("image_encoder.pool.position", ("visual.attnpool.positional_embedding",)))
    for place in range(3):
        table += _conv_norm(f"{_BACKBONE}stem.{place}", f"visual.conv{place + 1}", f"visual.bn{place + 1}")
    for stage, depth in enumerate(depths):
        for number in range(depth):
            ours, theirs = f"{_BACKBONE}stages.{stage}.{number}", f"visual.layer{stage + 1}.{number}"
            for place, name in enumerate(("first", "second", "third"), start=1):
                table += _conv_norm(f"{ours}.{name}", f"{theirs}.conv{place}", f"{theirs}.bn{place}")
            if number == 0:  # the first block of every stage changes the number of channels
                table += _conv_norm(f"{ours}.shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    return table


def _conv_norm(ours: str, convolution: str, norm: str) -> list[Entry]:
    table = [Entry(f"{ours}.0.weight", (f"{convolution}.weight",))]
    return table + [Entry(f"{ours}.1.{kind}", (f"{norm}.{kind}",)) for kind in _NORM]


def from_checkpoint(state: State, model: dict[str, Any]) -> Translation:
    """Our state for the model tree of a config; a ViT's positions are interpolated to its grid."""
    state, left_out = layouts.standard(state)
    ours, missing, unexpected = to_ours(_transposed(state), entries(model))
    translation = Translation(_with_leading(ours, model["image_encoder"]), missing, left_out)
    for name in unexpected:
        if reason := _why_unused(name):
            translation.left_out[name] = reason
        else:
            translation.unexpected.append(name)
    return translation


def to_checkpoint(state: State, model: dict[str, Any], stage: Stage = "original") -> State:
    """A state dict in the original's names, or in those of transformers, which has no ResNet."""
    if not is_chinese_clip(model):
        raise ValueError(
            "Chinese-CLIP's files hold a CLIP tower, a BERT, plain projections and a log-scale; this model is another"
        )
    flat = dict(state)
    for name, dimensions in _LEADING.items():
        if name in flat:
            flat[name] = flat[name].flatten(0, dimensions)
    theirs = _transposed(to_theirs(flat, entries(model)))
    return theirs if stage == "original" else layouts.to_transformers(theirs)


def file_content(state: State, stage: Stage) -> dict[str, Any]:
    """A file as the original's programs ask for it, finished epochs and prefix included; transformers' are bare."""
    if stage == "transformers":
        return state
    wrapped = {f"module.{name}": value for name, value in state.items()}
    return {"epoch": 0, "step": 0, "name": "rosetta-vl", "state_dict": wrapped}


def image_weights(state: State, model: dict[str, Any]) -> Translation:
    """Our state of the image side of an OpenAI CLIP file: the tower, and its projection and temperature for a model
    that has CLIP's; the texts' side is left out. ValueError where the tower is another one.
    """
    image, is_clip = model["image_encoder"], is_chinese_clip(model)
    if image["name"] not in ("vit", "resnet"):
        raise ValueError(f"the file holds CLIP's image tower; model.image_encoder is {image['name']}")
    own = {name: value for name, value in state.items() if name.startswith("visual.") or name == "logit_scale"}
    table = [entry for entry in [*visual_entries(image), _SCALE] if is_clip or entry.ours.startswith("image_encoder.")]
    ours, missing, unexpected = to_ours(_transposed(own), table)
    missing = [name for name in missing if name != "logit_scale"]
    if missing:
        raise ValueError(f"CLIP's image weights do not fit model.image_encoder; missing: {', '.join(missing[:5])}")
    translation = Translation(_with_leading(ours, image))
    translation.left_out = {name: "no part of CLIP's image side" for name in state if name not in own}
    translation.left_out |= {name: "this model has no place for it" for name in unexpected}
    return translation


def half_rounded(state: State) -> State:
    """The original's names with values as its Python API leaves them: matrices and all of BERT went through fp16."""
    return {name: value.half().float() if _is_rounded(name, value) else value for name, value in state.items()}


def _is_rounded(name: str, value: Tensor) -> bool:
    if not value.is_floating_point() or name == "logit_scale":
        return False
    is_norm = re.search(r"\.(ln_\w+|bn\d|downsample\.1)\.", name) is not None
    return not (is_norm or name.endswith(("class_embedding", "positional_embedding")))


def is_chinese_clip(model: dict[str, Any]) -> bool:
    """Whether a model tree is that of a CLIP with its projections and temperature."""
    image = model["image_encoder"]
    is_clip = image["name"] == "resnet" or (image["name"] == "vit" and image.get("is_clip", False))
    form = (model.get("projection_form") or {}).get("kind")
    return is_clip and form == "plain" and (model.get("temperature") or {}).get("stored_as") == "log_scale"


def _transposed(state: State) -> State:
    """The projections turned: rows are inputs in the original and outputs in ours."""
    return {name: value.T.contiguous() if name in _PROJECTIONS else value for name, value in state.items()}


def _with_leading(ours: State, image: dict[str, Any]) -> State:
    """Class token and positions in timm's shapes, positions for the grid of the image tree."""
    for name, dimensions in _LEADING.items():
        if name in ours:
            ours[name] = ours[name][(None,) * dimensions]
    if _POSITIONS in ours:
        grid = image["image_size"] // image["patch_size"]
        ours[_POSITIONS] = interpolate_positions(ours[_POSITIONS], grid, 1, align_corners=True)
    return ours


def _why_unused(name: str) -> str:
    if name.startswith("bert.pooler."):
        return "a pooler that nothing reads"
    return "a counter 0, 1, 2, ..." if name.endswith("position_ids") else ""
