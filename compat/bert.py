"""BERT-family text weights: Hugging Face directories and the text encoders of CCLM and CCRK."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compat.layout import Entry, State, Translation, to_ours, with_weight_and_bias

_EMBEDDINGS = {"word": "word_embeddings", "position": "position_embeddings", "token_type": "token_type_embeddings"}


def embedding_entries(ours: str, theirs: str) -> list[Entry]:
    """Embedding tables and their norm."""
    tables = [
        Entry(f"{ours}.{name}.weight", (f"{theirs}.{their_name}.weight",)) for name, their_name in _EMBEDDINGS.items()
    ]
    return tables + with_weight_and_bias(f"{ours}.norm", f"{theirs}.LayerNorm")


def layer_entries(ours: str, theirs: str, *, has_cross_attention: bool, keys_from: str = "") -> list[Entry]:
    """One transformer layer; queries, keys and values of self-attention lie in one matrix of ours.

    keys_from: our layer whose projection to cross-attention's keys and values this one shares; theirs repeats it.
    """
    entries = with_weight_and_bias(
        f"{ours}.attention.qkv", *(f"{theirs}.attention.self.{part}" for part in ("query", "key", "value"))
    )
    entries += _after_attention(f"{ours}.attention", f"{theirs}.attention")
    if has_cross_attention:
        cross, their_cross = f"{ours}.cross_attention", f"{theirs}.crossattention"
        entries += with_weight_and_bias(f"{cross}.query", f"{their_cross}.self.query")
        key_value = f"{keys_from or ours}.cross_attention.key_value"
        entries += with_weight_and_bias(key_value, f"{their_cross}.self.key", f"{their_cross}.self.value")
        entries += _after_attention(cross, their_cross)
    entries += with_weight_and_bias(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
    entries += with_weight_and_bias(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
    return entries + with_weight_and_bias(f"{ours}.feed_forward.norm", f"{theirs}.output.LayerNorm")


def _after_attention(ours: str, theirs: str) -> list[Entry]:
    return [
        *with_weight_and_bias(f"{ours}.output", f"{theirs}.output.dense"),
        *with_weight_and_bias(f"{ours}.norm", f"{theirs}.output.LayerNorm"),
    ]


def masked_head_entries(ours: str, dense: str, norm: str, bias: str) -> list[Entry]:
    """The masked-language head without the decoder, which is the word embedding."""
    return [
        *with_weight_and_bias(f"{ours}.dense", dense),
        *with_weight_and_bias(f"{ours}.norm", norm),
        Entry(f"{ours}.bias", (bias,)),
    ]


def source_layers(num_source: int, num_wanted: int) -> list[int]:
    """Which layers of a deeper public model are kept: the last of every run of num_source / num_wanted (1, 3, ..., 23
    of 24).
    """
    if num_wanted > num_source or num_source % num_wanted:
        raise ValueError(f"text weights have {num_source} layers, which cannot be thinned evenly to {num_wanted}")
    step = num_source // num_wanted
    return [step * (place + 1) - 1 for place in range(num_wanted)]


def first_layers(num_source: int, num_wanted: int) -> list[int]:
    """The layers that Chinese-CLIP keeps of a deeper public model: the first ones, as RBT3 does of RoBERTa-wwm-ext."""
    if num_wanted > num_source:
        raise ValueError(f"text weights have {num_source} layers, the model has {num_wanted}")
    return list(range(num_wanted))


def from_public(
    state: State, model: dict[str, Any], choose: Callable[[int, int], list[int]] = source_layers
) -> Translation:
    """Weights of a public BERT, RoBERTa or XLM-R file under our names, for the model tree of a config; `choose` says
    which layers of a deeper file are kept.

    The kept layers fill the text tower first, then the fusion stack (whose cross-attention stays fresh); of a model
    with as many layers as the tower nothing is left for the stack (R2D2). What no part of the model uses is left out,
    with the reason; a missing masked-language head stays fresh. ValueError if layers are missing.
    """
    state = {_modern_name(name): value for name, value in state.items()}
    numbers = [int(found[1]) for name in state if (found := re.match(r"encoder\.layer\.(\d+)\.", name))]
    if not numbers:
        raise ValueError(f"no BERT-family layers among the text weights; first keys: {', '.join(list(state)[:4])}")
    num_text = model["text_encoder"]["num_layers"]
    num_fusion = (model.get("text_fusion") or {}).get("num_layers", 0)
    num_source = max(numbers) + 1
    kept = choose(num_source, num_text if num_source == num_text else num_text + num_fusion)
    required = embedding_entries("text_encoder", "embeddings")
    for place, number in enumerate(kept):
        ours = f"text_encoder.layers.{place}" if place < num_text else f"text_fusion.layers.{place - num_text}"
        required += layer_entries(ours, f"encoder.layer.{number}", has_cross_attention=False)
    ours, missing, unused = to_ours(state, required)
    if missing:
        raise ValueError(f"text weights lack {len(missing)} keys: {', '.join(missing[:5])}")
    if model.get("has_masked_language_head"):
        head, absent, _ = to_ours(
            state, masked_head_entries("masked_language_head", "head.dense", "head.norm", "head.bias")
        )
        ours |= {} if absent else head
        unused = [name for name in unused if absent or not re.match(r"head\.(dense|norm|bias)", name)]
    return Translation(ours, left_out=dict(_why_unused(name, kept) for name in unused))


def _why_unused(name: str, kept: list[int]) -> tuple[str, str]:
    """A name of the file, or what stands for its like, and why nothing reads it."""
    if found := re.match(r"encoder\.layer\.(\d+)\.", name):
        if int(found[1]) in kept:
            return name, "no part of a layer of the text encoder"
        return f"encoder.layer.{found[1]}.*", f"the layers {', '.join(map(str, kept))} are kept"
    if name.startswith("pooler."):
        return "pooler.*", "a pooler that nothing reads"
    if name.startswith(("head.", "cls.", "lm_head.")):
        return f"{name.partition('.')[0]}.*", "a head that this model does not have"
    return name, "a counter 0, 1, 2, ..." if name.endswith("position_ids") else "no part of the text encoder"


def _modern_name(name: str) -> str:
    """Public names without the model's prefix, old and new spellings brought to one."""
    name = re.sub(r"^(roberta|bert|xlm_roberta|model)\.", "", name)
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    name = re.sub(r"^(cls\.predictions\.transform|lm_head)\.dense\.", "head.dense.", name)
    name = re.sub(r"^(cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm)\.", "head.norm.", name)
    return re.sub(r"^(cls\.predictions|lm_head)\.bias$", "head.bias", name)


FOREIGN_TOWER = "text_encoder.backbone."  # names of the transformers library stay as they are behind it


def foreign_tower(state: State) -> State:
    """Our keys of any encoder of the transformers library, without what stands before its embeddings' names, its
    pooler and its heads.
    """
    first = next((name for name in state if ".embeddings." in f".{name}"), "")
    beginning = first[: f".{first}".index(".embeddings.")] if first else ""
    names = {name: name.removeprefix(beginning) for name in state if name.startswith(beginning)}
    return {f"{FOREIGN_TOWER}{own}": state[name] for name, own in names.items() if not is_idle(own)}


def is_idle(name: str) -> bool:
    """Whether nothing reads a tensor of an encoder: its pooler, and counters 0, 1, 2, ..."""
    return name.startswith("pooler.") or name.endswith("position_ids")


def read_text_encoder(directory: str | Path) -> dict[str, Any]:
    """`model.text_encoder` of a Hugging Face directory: ours for BERT's family, the library's for any other."""
    path = Path(directory) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.get("model_type", "bert") in ("bert", "roberta", "xlm-roberta", "camembert"):
        return {"name": "bert", **text_tree(directory)}
    return {"name": "hugging_face", "architecture": config}


def text_tree(directory: str | Path) -> dict[str, Any]:
    """`model.text_encoder` settings of a Hugging Face directory, from its config.json."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found; model.text_encoder.path must name a Hugging Face directory with a config.json"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    family = config.get("model_type", "bert")
    if "hidden_size" not in config or config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(
            f"{path}: model_type '{family}' is not of the BERT family with absolute positions "
            "(bert, roberta, xlm-roberta)"
        )
    pad_id = config.get("pad_token_id", 0)
    return {
        "vocab_size": config["vocab_size"],
        "width": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_width": config["intermediate_size"],
        "max_positions": config["max_position_embeddings"],
        "position_offset": pad_id + 1 if "roberta" in family or family == "camembert" else 0,
        "num_token_types": config.get("type_vocab_size", 1),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "pad_id": pad_id,
    }
