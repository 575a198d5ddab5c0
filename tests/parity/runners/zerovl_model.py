"""ZeroVL's model: forward pass, projections, checkpoints, position embeddings, mixup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from compat import vit
from compat.weights import tensors_of, to_original, translate
from compat.zerovl_weights import from_checkpoint
from dataset.batch import ImageTextBatch, TextBatch
from models.model import Model
from models.projection import Projection
from objectives.contrastive import PairContrastive
from objectives.mixup import CoinFlipMixup
from objectives.step import Mix, Step
from rosetta import load_weights, renamed
from tests.parity.runners.common import OUTPUT_TOLERANCE, assert_close, bert_tree, read_case
from utils.checkpoint import read_weights
from utils.config import build, to_tree


def model_tree(config: dict[str, Any], temperature: float = 0.02, *, is_learned: bool = False) -> dict[str, Any]:
    """The `model` section of our config for a fixture's `model`."""
    image, text = config["vit"], config["bert"]
    return {
        "image_encoder": {
            "name": "vit",
            "image_size": image["img_size"],
            "patch_size": image["patch_size"],
            "width": image["embed_dim"],
            "num_layers": image["depth"],
            "num_heads": image["num_heads"],
        },
        "text_encoder": {
            **bert_tree(text),
            "num_token_types": text.get("type_vocab_size", 2),
            "layer_norm_eps": 1e-12,
            "dropout": text.get("hidden_dropout_prob", 0.0),
            "attention_dropout": text.get("attention_probs_dropout_prob", 0.0),
            "pad_id": 0,
        },
        "embed_dim": config["projection_dim"],
        "projection_form": {"kind": "simple"},
        "temperature": {"initial": temperature, "clamps": "used", "is_learned": is_learned},
    }


def build_model(tree: dict[str, Any], state: dict[str, Tensor]) -> Model:
    """The model with an original state dict; what it writes back is what it read."""
    model = Model(build(Model.Config, tree))
    translation = translate(state, tree)
    assert not translation.missing and not translation.unexpected, translation
    if tree["temperature"]["is_learned"]:  # fixtures hold a place-holder
        translation.state["temperature.value"] = torch.tensor(tree["temperature"]["initial"])
    model.load_state_dict(translation.state)
    written = to_original(model.state_dict(), tree, "zerovl")
    assert set(state) - {"loss.temperature"} == set(written) - {"loss.temperature"}
    assert all(torch.equal(value, state[name]) for name, value in written.items() if name != "loss.temperature")
    return model


def make_batch(images: Tensor, ids: Tensor, mask: Tensor) -> ImageTextBatch:
    number = torch.arange(len(images))
    return ImageTextBatch(images, number, TextBatch(ids, mask.sum(1).tolist()), number, torch.zeros_like(number))


def encode(model: Model, batch: ImageTextBatch, mix: Mix | None = None) -> Step:
    images = model.encode_image(mix(batch.images) if mix is not None and mix.is_image else batch.images)
    text_mix = mix if mix is not None and not mix.is_image else None
    return Step(model, batch, images, model.encode_text(batch.texts.ids, batch.texts.lengths, text_mix), mix=mix)


def accuracy(image: Tensor, text: Tensor) -> Tensor:
    """Share () of images whose most similar text is their own."""
    return ((image @ text.T).argmax(1) == torch.arange(len(image))).float().mean()


def run_clip_forward(folder: Path) -> None:
    case = read_case(folder)
    model = build_model(model_tree(case.config["model"], case.config["temperature"]), case.state).eval()
    batch = make_batch(case.inputs["image"], case.inputs["input_ids"], case.inputs["attention_mask"])
    step = encode(model, batch)
    image, text = step.images.embed, step.texts.embed
    assert_close(step.images.tokens, case.outputs["image_tokens"], "image_tokens")
    assert_close(step.images.tokens[:, 0], case.outputs["image_features"], "image_features")
    real = case.inputs["attention_mask"].bool()  # padded positions are never computed
    tokens = step.texts.padded(real.shape[1])
    assert_close(tokens[real], case.outputs["text_hidden"][real], "text_hidden")
    assert_close(image, case.outputs["image_embeddings"], "image_embeddings")
    assert_close(text, case.outputs["text_embeddings"], "text_embeddings")
    assert_close(image @ text.T, case.outputs["similarity"], "similarity")
    assert_close(PairContrastive(PairContrastive.Config())(step), case.outputs["loss"], "loss")
    assert_close(accuracy(image, text), case.outputs["i2t_acc"], "i2t_acc")
    assert_close(accuracy(text, image), case.outputs["t2i_acc"], "t2i_acc")


def run_mixup_forward(folder: Path) -> None:
    case = read_case(folder)
    config, outputs = case.config, case.outputs
    model = build_model(model_tree(config["model"], config["temperature"]), case.state).eval()
    batch = make_batch(case.inputs["image"], case.inputs["input_ids"], case.inputs["attention_mask"])
    for side in ("image", "text"):
        step = encode(model, batch, Mix(config[f"{side}_alpha"], side == "image"))
        assert_close(step.images.embed, outputs[f"{side}_mix.image_embeddings"], f"{side}_mix images")
        assert_close(step.texts.embed, outputs[f"{side}_mix.text_embeddings"], f"{side}_mix texts")
    assert_close(model.temperature(), outputs["temperature"], "temperature")
    mixup = CoinFlipMixup(CoinFlipMixup.Config(objective=PairContrastive.Config(), beta=config["beta"]))
    draws = [mixup.draw(step) for step in range(config["draws"])]
    assert_close(torch.tensor([draw.share for draw in draws]), outputs["coin.alpha"], "coin.alpha")
    assert [draw.is_image for draw in draws] == [bool(value) for value in outputs["coin.is_image"]]
    for number in range(config["loss_draws"]):
        loss = mixup(encode(model, batch, mixup.draw(number)))
        assert_close(loss, outputs["plain.losses"][number], f"loss {number}")


def run_projections(folder: Path) -> None:
    case = read_case(folder)
    width, embed_dim = case.config["in"], case.config["out"]
    for kind in ("simple", "complex"):
        module = Projection.build(Projection.Config(kind=kind), width, embed_dim).eval()
        prefix = "simple.linear." if kind == "simple" else "complex."
        state = {n.removeprefix(prefix): v for n, v in case.state.items() if n.startswith(prefix)}
        module.load_state_dict(state)
        assert_close(module(case.inputs["x"]), case.outputs[kind], kind)
    assert_close(Projection.finish(Projection.Config("simple"), case.inputs["x"]), case.outputs["l2norm"], "l2norm")
    zero_row = Projection.finish(Projection.Config("simple"), case.inputs["z"])
    assert_close(zero_row, case.outputs["l2norm_zero_row"], "l2norm_zero_row")
    # `mlp` and `revgrad` are layers of the original that no model of it contains; ours has none of them.


def run_pos_embed(folder: Path) -> None:
    case = read_case(folder)
    for variant in case.config["variants"]:
        table = case.inputs[variant["src"]]
        found = vit.interpolate_positions(table, variant["new"], variant.get("extra", 1))
        assert_close(found, case.outputs[variant["name"]], variant["name"])


def run_checkpoint(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    inputs, outputs = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs"))
    path = next(iter(sorted(folder.glob("*.pth"))))
    content = read_weights(path)
    assert list(content) == expected["checkpoint_keys"]
    assert {name: content["meta"][name] for name in expected["meta"]} == expected["meta"]
    state = tensors_of(content)
    is_learned = "loss.temperature" in state
    tree = model_tree(expected["model"], is_learned=is_learned)
    model = Model(build(Model.Config, tree))
    assert load_weights(model, path) == []
    model.eval()
    batch = make_batch(inputs["image"], inputs["input_ids"], inputs["attention_mask"])
    step = encode(model, batch)
    assert_close(step.images.embed, outputs["image_embeddings"], "image_embeddings")
    assert_close(step.texts.embed, outputs["text_embeddings"], "text_embeddings")
    if "temperature" in outputs:
        assert_close(model.temperature(), outputs["temperature"], "temperature")
    written = to_original(model.state_dict(), to_tree(model.config), "zerovl")
    assert list(written) and all(torch.equal(written[name], value) for name, value in state.items())
    legacy = {"model_state_dict": {f"module.{name}": value for name, value in state.items()}}
    assert tensors_of(legacy).keys() == state.keys()
    check_partial_loading(expected["external_resume"], state, tree)
    tree["image_encoder"]["image_size"] = expected["target_img_size"]
    resized = from_checkpoint(state, tree).state["image_encoder.backbone.pos_embed"]
    interpolated = load_file(folder / "interpolated.safetensors")["pos_embed"]
    assert_close(resized, interpolated, "interpolated pos_embed", OUTPUT_TOLERANCE)


# The original's options as ours (init.only, init.rename).
ONLY = {"only_load_image_encoder": ("image_encoder", "image_projection"),
        "only_load_text_encoder": ("text_encoder", "text_projection")}  # fmt: skip


def check_partial_loading(options: dict[str, Any], state: dict[str, Tensor], tree: dict[str, Any]) -> None:
    """As many keys match as in the original, for every option."""
    for name, counts in options.items():
        if name in ONLY:
            ours = {n: v for n, v in translate(state, tree).state.items() if n.startswith(ONLY[name])}
            found = to_original(ours, tree, "zerovl")
            assert len(found) == counts["matched"], name
            missing = {key.removeprefix("module.") for key in counts["missing"]}
            assert missing == set(state) - set(found), name
        elif "prefix_change" in name:
            moved = {f"old.{key}": value for key, value in state.items()}
            assert renamed(moved, {"old.": ""}).keys() == state.keys()
        elif name.startswith("full"):
            assert counts["matched"] == len(state)


KINDS = {
    ("zerovl", "checkpoint"): run_checkpoint,
    ("zerovl", "clip_forward"): run_clip_forward,
    ("zerovl", "mixup_forward"): run_mixup_forward,
    ("zerovl", "pos_embed"): run_pos_embed,
    ("zerovl", "projections"): run_projections,
}
