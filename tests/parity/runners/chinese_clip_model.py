"""Chinese-CLIP's towers, weights and layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from compat.chinese_clip_sizes import model_section
from compat.chinese_clip_weights import half_rounded, image_weights
from compat.vit import interpolate_positions
from compat.weights import tensors_of, text_tower, to_original, translate
from models.model import Model
from tests.parity.runners.common import Case, assert_close, read_case
from utils.checkpoint import read_weights
from utils.config import build, to_tree

# Of the fixtures' README: towers 1e-5 absolute.
PAD_ID = 0


def build_model(config: dict[str, Any], state: dict[str, Tensor]) -> Model:
    """The model of a case with an original state dict; what it writes back is what it read."""
    tree = model_section(config)
    model = Model(build(Model.Config, tree))
    translation = translate(state, tree)
    assert not translation.missing and not translation.unexpected, translation
    model.load_state_dict(translation.state)
    return model.eval()


def own_state(folder: Path, case: Case) -> dict[str, Tensor]:
    """The state dict of a case, or of the neighbour that its config names."""
    if case.state:
        return case.state
    neighbour = case.config.get("_state_dict_of_case") or case.config["_base_state_dict_of_case"]
    return load_file(folder.parent / neighbour / "state_dict.safetensors")


def written(model: Model, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Tensors of the model under the original's names, its weights by default."""
    return to_original(model.state_dict() if tensors is None else tensors, to_tree(model.config), "chinese_clip")


def lengths_of(texts: Tensor) -> list[int]:
    return (texts != PAD_ID).sum(dim=1).tolist()


def raw_image(model: Model, images: Tensor) -> Tensor:
    return model.project_image(model.image_encoder(images))


def raw_text(model: Model, texts: Tensor) -> Tensor:
    return model.project_text(model.text_encoder(texts, lengths_of(texts)))


@torch.no_grad()
def run_features(folder: Path) -> None:
    case = read_case(folder)
    images, texts, outputs = case.inputs["images"], case.inputs["texts"], case.outputs
    model = build_model(case.config, case.state)
    assert_same(written(model), case.state)
    check_parts(model, images, texts, outputs)
    check_features(model, images, texts, outputs)
    rounded = build_model(case.config, half_rounded(case.state))
    assert_close(raw_image(rounded, images), outputs["api_cpu_image_features_raw"], "rounded images")
    assert_close(raw_text(rounded, texts), outputs["api_cpu_text_features_raw"], "rounded texts")
    if "trainmode_image_features_raw" in outputs:
        model.train()
        assert_close(raw_image(model, images), outputs["trainmode_image_features_raw"], "batch statistics")
        state = written(model)
        for key, value in outputs.items():
            if key.startswith("trainmode_after."):
                assert_close(state[key.removeprefix("trainmode_after.")], value, key)


def check_features(model: Model, images: Tensor, texts: Tensor, outputs: dict[str, Tensor]) -> None:
    for name, found in (("image", raw_image(model, images)), ("text", raw_text(model, texts))):
        assert_close(found, outputs[f"{name}_features_raw"], f"{name}_features_raw")
        assert_close(found, outputs[f"only_{name}"], f"only_{name}")
    image, text = model.encode_image(images).embed, model.encode_text(texts, lengths_of(texts)).embed
    assert_close(image, outputs["image_features"], "image_features")
    assert_close(text, outputs["text_features"], "text_features")
    scale = 1 / model.temperature()
    assert_close(scale, outputs["logit_scale_exp"], "logit_scale_exp")
    assert_close(scale * image @ text.T, outputs["logits_per_image"], "logits_per_image")
    assert_close(scale * text @ image.T, outputs["logits_per_text"], "logits_per_text")


def check_parts(model: Model, images: Tensor, texts: Tensor, outputs: dict[str, Tensor]) -> None:
    """What the towers compute on their way."""
    backbone, found = model.image_encoder.backbone, {}

    def note(name: str):
        return lambda part, inputs, value: found.__setitem__(name, value)

    if hasattr(backbone, "blocks"):
        parts = {"vision_patch_tokens": backbone.patch_embed, "vision_after_ln_pre": backbone.norm_pre}
        parts |= {f"vision_block_{number}": block for number, block in enumerate(backbone.blocks)}
    else:
        parts = {f"vision_layer{number + 1}": stage for number, stage in enumerate(backbone.stages)}
    hooks = [part.register_forward_hook(note(name)) for name, part in parts.items()]
    model.image_encoder(images)
    for hook in hooks:
        hook.remove()
    for name, value in found.items():
        assert_close(value, outputs[name], name)
    assert {name for name in outputs if name.startswith("vision_")} == set(found)
    lengths = lengths_of(texts)
    state = model.text_encoder(texts, lengths)
    real = texts != PAD_ID
    embedded = type(state)(model.text_encoder.embed(texts, state.packing), state.packing)
    for name, each in (("bert_embeddings", embedded), ("bert_last_hidden_state", state)):
        assert_close(each.padded(texts.shape[1])[real], outputs[name][real], name)  # padding is never computed


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@torch.no_grad()
def run_flip(folder: Path) -> None:
    case = read_case(folder)
    for number, ratio in enumerate(case.inputs["ratios"].tolist()):
        tree = model_section(case.config)
        tree["image_encoder"]["mask_ratio"] = ratio
        model = Model(build(Model.Config, tree)).train()
        model.load_state_dict(translate(own_state(folder, case), tree).state)
        masking, noise = model.image_encoder.backbone.patch_drop, case.inputs["noise"]
        masking.draw = lambda *size, noise=noise: noise
        expected = {n.removeprefix(f"r{number}."): v for n, v in case.outputs.items() if n.startswith(f"r{number}.")}
        kept = masking.num_kept(noise.shape[1])
        assert kept == int(expected["len_keep"])
        assert torch.equal(noise.argsort(dim=1)[:, :kept], expected["kept_patch_index"])
        seen = []
        hook = masking.register_forward_hook(lambda part, inputs, value, seen=seen: seen.append(value))
        found = raw_image(model, case.inputs["images"])
        hook.remove()
        assert_close(seen[0], expected["tokens_before_ln_pre"], "tokens_before_ln_pre")
        assert_close(found, expected["image_features_raw"], "image_features_raw")
        assert_close(model.encode_image(case.inputs["images"]).embed, expected["image_features"], "image_features")
        assert model.eval().image_encoder(case.inputs["images"]).shape[1] == 1 + noise.shape[1]


def run_pos_embed_resize(folder: Path) -> None:
    inputs, outputs = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs"))
    for key, old in inputs.items():
        if key.endswith(".old"):
            name = key.removesuffix(".old")
            found = interpolate_positions(old[None], int(inputs[f"{name}.new_grid"]), 1, align_corners=True)
            assert_close(found, outputs[f"{name}.new"], name)


def run_init(folder: Path) -> None:
    """OpenAI's and BERT's files; the original's went through fp16."""
    case = read_case(folder)
    tree = model_section(case.config)
    base = translate(own_state(folder, case), tree).state
    parts = {
        prefix: {n.removeprefix(f"{prefix}."): v for n, v in case.inputs.items() if n.startswith(f"{prefix}.")}
        for prefix in ("clip", "bert_file")
    }
    image = image_weights(half_rounded(parts["clip"]), tree)
    text = text_tower(half_rounded(parts["bert_file"]), tree)
    model = Model(build(Model.Config, tree))
    model.load_state_dict(base | image.state | text.state)
    assert {"text_projection", "token_embedding.weight", "context_length"} <= set(image.left_out)
    found = half_rounded(written(model))
    assert set(found) == set(case.outputs)
    for name, value in case.outputs.items():
        assert_close(found[name], value, name)


def run_flash_layout(folder: Path) -> None:
    case = read_case(folder)
    neighbour = read_case(folder.parent / case.config["_of_case"])
    model = build_model(neighbour.config, tensors_of(case.state))
    assert_same(written(model), neighbour.state)


def run_legacy_checkpoint(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    content = read_weights(next(iter(sorted(folder.glob("*.pt")))))
    assert list(content) == expected["top_level_keys"]
    assert (content["epoch"], content["step"]) == (expected["epoch"], expected["step"])
    assert str(type(content["optimizer"]["param_groups"][0]["lr"])) == expected["lr_type"]
    check_wrapper(content, expected)


@torch.no_grad()
def run_transformers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    case, neighbour = read_case(folder), read_case(folder.parent / "vit_tiny")
    model = build_model(original_config(config), case.state)
    assert_same(to_original(model.state_dict(), to_tree(model.config), "chinese_clip_hf"), case.state)
    images, texts = neighbour.inputs["images"], neighbour.inputs["texts"]
    image, text = model.encode_image(images).embed, model.encode_text(texts, lengths_of(texts)).embed
    assert_close(image, case.outputs["image_embeds"], "image_embeds")
    assert_close(text, case.outputs["text_embeds"], "text_embeds")
    assert_close(image @ text.T / model.temperature(), case.outputs["logits_per_image"], "logits_per_image")


def original_config(config: dict[str, Any]) -> dict[str, Any]:
    """The original's settings of a config.json of transformers."""
    vision, text = config["vision_config"], config["text_config"]
    return {
        "embed_dim": config["projection_dim"],
        "image_resolution": vision["image_size"],
        "vision_layers": vision["num_hidden_layers"],
        "vision_width": vision["hidden_size"],
        "vision_patch_size": vision["patch_size"],
        "vision_head_width": vision["hidden_size"] // vision["num_attention_heads"],
        "vocab_size": text["vocab_size"],
        "text_hidden_size": text["hidden_size"],
        "text_intermediate_size": text["intermediate_size"],
        "text_max_position_embeddings": text["max_position_embeddings"],
        "text_num_attention_heads": text["num_attention_heads"],
        "text_num_hidden_layers": text["num_hidden_layers"],
        "text_type_vocab_size": text["type_vocab_size"],
    }


def check_wrapper(content: dict[str, Any], expected: dict[str, Any]) -> None:
    """The weights in a file of a training run, whatever wraps them."""
    state = tensors_of(content)
    assert tensors_of(content["state_dict"]).keys() == state.keys()
    assert {f"module.{name}" for name in state} >= set(expected["optimizer_param_order"])


KINDS = {
    ("chinese_clip", "features"): run_features,
    ("chinese_clip", "flash_layout"): run_flash_layout,
    ("chinese_clip", "flip"): run_flip,
    ("chinese_clip", "hf_transformers"): run_transformers,
    ("chinese_clip", "init_from_clip_and_bert"): run_init,
    ("chinese_clip", "legacy_checkpoint"): run_legacy_checkpoint,
    ("chinese_clip", "pos_embed_resize"): run_pos_embed_resize,
}
