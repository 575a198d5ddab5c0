"""The layouts of Chinese-CLIP's weights as one: files of transformers and of flash attention <-> the original's names,
and the sizes that a file's shapes tell.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from compat.layout import State

_HEAD_WIDTHS = {1280: 80}  # of the image tower by its width; 64 for all others
_HEAD_WIDTH = 64
_QKV = ("query", "key", "value")
# transformers' names and the original's, as regular expressions both ways; the first that matches holds.
_TO_TRANSFORMERS = (
    (r"^bert\.", "text_model."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # spelt so there
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
)
_IN_LAYER = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)


def is_original(state: State) -> bool:
    """Whether the names are the original's."""
    return "text_projection" in state and any(name.startswith("bert.encoder.layer.0.") for name in state)


def is_transformers(state: State) -> bool:
    """Whether the names are those of transformers' ChineseCLIPModel (its CLIP has no text_model.encoder.layer)."""
    return "visual_projection.weight" in state and any(name.startswith("text_model.encoder.layer.") for name in state)


def standard(state: State) -> tuple[State, dict[str, str]]:
    """The state in the original's names, and what was left out with the reason."""
    left_out: dict[str, str] = {}
    if is_transformers(state):
        state, left_out = from_transformers(state)
    return without_flash(state), left_out


def from_transformers(state: State) -> tuple[State, dict[str, str]]:
    """The original's state, and what it has no place for."""
    theirs: State = {}
    left_out = {name: "a counter 0, 1, 2, ..." for name in state if name.endswith("position_ids")}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        if name in left_out:
            continue
        if found := re.match(r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$", name):
            packed = f"visual.transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}"
            parts.setdefault(packed, {})[found[2]] = value
            continue
        theirs[_original_name(name)] = value.T.contiguous() if name.endswith("_projection.weight") else value
    for name, thirds in parts.items():
        if len(thirds) == 3:  # a missing one is told by the name of the whole
            theirs[name] = torch.cat([thirds[part] for part in "qkv"])
    return theirs, left_out


def _original_name(name: str) -> str:
    for original, transformers in _TO_TRANSFORMERS:
        beginning = original.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if name == transformers or (transformers.endswith(".") and name.startswith(transformers)):
            name = beginning + name[len(transformers) :]
            break
    if name.startswith("visual.transformer."):
        for original, transformers in _IN_LAYER:
            name = name.replace(transformers, original)
    return name


def to_transformers(state: State) -> State:
    """transformers' state of an original's; ValueError for a ResNet, which it does not have."""
    if "visual.proj" not in state:
        raise ValueError("transformers' ChineseCLIPModel has no ResNet; export it as chinese_clip")
    theirs: State = {}
    for name, value in state.items():
        if found := re.match(r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$", name):
            layer = f"vision_model.encoder.layers.{found[1]}.self_attn"
            for part, third in zip("qkv", value.chunk(3), strict=True):
                theirs[f"{layer}.{part}_proj.{found[2]}"] = third.contiguous()
            continue
        turned = value.T.contiguous() if name in ("text_projection", "visual.proj") else value
        theirs[_transformers_name(name)] = turned
    return theirs


def _transformers_name(name: str) -> str:
    if name.startswith("visual.transformer."):
        for original, transformers in _IN_LAYER:
            name = name.replace(original, transformers)
    for original, transformers in _TO_TRANSFORMERS:
        if re.search(original, name):
            return re.sub(original, transformers, name)
    return name


def without_flash(state: State) -> State:
    """The state with the names of --use-flash-attention's layout brought to the standard ones."""
    theirs: State = {}
    for name, value in state.items():
        if found := re.match(r"(bert\..*\.attention\.self)\.Wqkv\.(weight|bias)$", name):
            for part, third in zip(_QKV, value.chunk(3), strict=True):
                theirs[f"{found[1]}.{part}.{found[2]}"] = third
        elif found := re.match(r"(visual\..*\.attn)\.Wqkv\.(weight|bias)$", name):
            theirs[f"{found[1]}.in_proj_{found[2]}"] = value
        elif name.startswith("bert."):
            theirs[name.replace(".attention.self.out_proj.", ".attention.output.dense.")] = value
        else:
            theirs[name] = value
    return theirs


def with_other_attention(state: State) -> State:
    """The state in flash attention's names where it is in the standard ones, in the standard ones where it is not."""
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    prefix = "module." if any(name.startswith("module.") for name in state) else ""
    is_flash = any(".Wqkv." in name for name in bare)
    changed = without_flash(bare) if is_flash else _with_flash(bare)
    return {prefix + name: value for name, value in changed.items()}


def _with_flash(state: State) -> State:
    theirs: State = {}
    for name, value in state.items():
        if found := re.match(r"(bert\..*\.attention\.self)\.query\.(weight|bias)$", name):
            thirds = [state[f"{found[1]}.{part}.{found[2]}"] for part in _QKV]
            theirs[f"{found[1]}.Wqkv.{found[2]}"] = torch.cat(thirds)
        elif re.match(r"bert\..*\.attention\.self\.(key|value)\.", name):
            continue
        elif found := re.match(r"(visual\..*\.attn)\.in_proj_(weight|bias)$", name):
            theirs[f"{found[1]}.Wqkv.{found[2]}"] = value
        elif name.startswith("bert."):
            theirs[name.replace(".attention.output.dense.", ".attention.self.out_proj.")] = value
        else:
            theirs[name] = value
    return theirs


def sizes_of(state: State) -> dict[str, Any]:
    """The `model` settings that the shapes of a file tell; heads are 64 wide, in H/14's image tower 80."""
    state, _ = standard(state)
    word = state["bert.embeddings.word_embeddings.weight"]
    text_layers = _count(state, r"bert\.encoder\.layer\.(\d+)\.")
    text = {
        "vocab_size": len(word),
        "width": word.shape[1],
        "num_layers": text_layers,
        "num_heads": _heads(word.shape[1]),
        "mlp_width": len(state["bert.encoder.layer.0.intermediate.dense.bias"]),
        "max_positions": len(state["bert.embeddings.position_embeddings.weight"]),
        "num_token_types": len(state["bert.embeddings.token_type_embeddings.weight"]),
    }
    return {
        "image_encoder": _resnet_sizes(state) if "visual.proj" not in state else _vit_sizes(state),
        "text_encoder": text,
        "embed_dim": state["text_projection"].shape[1],
    }


def _vit_sizes(state: State) -> dict[str, Any]:
    width, _, patch_size, _ = state["visual.conv1.weight"].shape
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    return {
        "name": "vit",
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "width": width,
        "num_layers": _count(state, r"visual\.transformer\.resblocks\.(\d+)\."),
        "num_heads": _heads(width, _HEAD_WIDTHS.get(width, _HEAD_WIDTH)),
    }


def _resnet_sizes(state: State) -> dict[str, Any]:
    positions, width = state["visual.attnpool.positional_embedding"].shape
    return {
        "name": "resnet",
        "image_size": 32 * round((positions - 1) ** 0.5),
        "width": width // 32,
        "depths": [_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in range(1, 5)],
        "num_heads": _heads(width),
    }


def _heads(width: int, head_width: int = _HEAD_WIDTH) -> int:
    """How many heads a tower has, which no shape tells."""
    if width % head_width:
        raise ValueError(
            f"a tower {width} wide is no released one, and a file does not tell its number of heads; name a config "
            "whose model section does"
        )
    return width // head_width


def _count(state: State, pattern: str) -> int:
    return 1 + max((int(found[1]) for name in state if (found := re.match(pattern, name))), default=-1)
