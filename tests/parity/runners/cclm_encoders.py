"""CCLM's encoders alone: Swin, ViT and CLIP-ViT with and without regions; the text and cross-modal stack in every
mode.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compat import cclm_weights, swin
from compat.cclm_sizes import model_section
from compat.layout import to_ours
from models import IMAGE_ENCODERS
from models.model import Model
from models.packing import pack
from models.text_encoder import TextState
from objectives.masked_lm import vocabulary_loss
from tests.parity.runners.common import Case, assert_close, assert_gradient_norms, assert_loss, read_case
from utils.config import build


def swin_encoder(folder: Path) -> None:
    case = read_case(folder)
    args = case.config["args"]
    sizes = {name: args[name] for name in ("window_size", "depths", "num_heads")}
    check_tower(case, {"name": "swin", "image_size": args["img_size"], "width": args["embed_dim"], **sizes})


def vit_encoder(folder: Path) -> None:
    case = read_case(folder)
    args = case.config["args"]
    sizes = {"width": "embed_dim", "num_layers": "depth", "num_region_layers": "local_attn_depth"}
    same = {name: args[name] for name in ("patch_size", "num_heads", "mlp_ratio") if name in args}
    tree = {"name": "vit", "image_size": args["img_size"], **same}
    check_tower(case, tree | {ours: args[theirs] for ours, theirs in sizes.items()})


def clip_vit_encoder(folder: Path) -> None:
    case = read_case(folder)
    args = case.config["args"]
    keys = {"use_clip_vit": True, "image_res": args["image_size"], "patch_size": args["patch_size"]}
    check_tower(case, model_section(keys, args, {}, is_pretraining=True)["image_encoder"])


def check_tower(case: Case, tree: dict[str, Any]) -> None:
    """All tokens, the tokens of regions, and the original's names there and back."""
    tower_class = IMAGE_ENCODERS.load(tree["name"])
    tower = tower_class(build(tower_class.Config, tree)).eval()
    ours = cclm_weights.vision_to_timm(case.state, tree)
    tower.backbone.load_state_dict(ours)
    for name, value in cclm_weights.vision_to_original(ours, tree).items():
        assert name.endswith(swin.BUFFERS) or torch.equal(value, case.state[name]), name
    inputs, outputs = case.inputs, case.outputs
    with torch.no_grad():
        assert_close(tower(inputs["image"]), outputs["tokens"], "tokens")
        regions = tower.encode_regions(inputs["image"], inputs["idx_to_group_img"], inputs["image_atts"].bool())
    assert_close(regions.tokens, outputs["region_tokens"], "region_tokens")
    assert_close(regions.full, outputs["region_fullatts_tokens"], "region_fullatts_tokens")


def text_cross_encoder(folder: Path) -> None:
    case = read_case(folder)
    inputs, outputs = case.inputs, case.outputs
    model, tree = text_model(case)
    image_mask, mask = inputs["image_atts"].bool(), inputs["text_atts"]
    packing = pack(mask.sum(dim=1).tolist())
    keys = model.text_fusion.project(inputs["image_embeds"], image_mask)
    texts = model.text_encoder.encode_packed(inputs["text_ids"], packing)
    rows = torch.arange(len(mask))
    found = {
        "embeddings": embeddings(model, inputs["text_ids"], packing),
        "text_hidden": texts,
        "multimodal_hidden": replace(texts, tokens=model.text_fusion(texts, keys, rows)),
        "no_cross_hidden": replace(texts, tokens=model.text_fusion(texts, None, None)),
    }
    found["fusion_hidden"] = found["multimodal_hidden"]
    for name, state in found.items():
        real = mask[..., None]
        assert_close(state.padded(mask.shape[1]) * real, outputs[name] * real, name)
    masked = inputs["text_ids_masked"], inputs["masked_pos"], inputs["masked_ids"]
    loss = check_words(model, masked, packing, keys, outputs)
    assert_loss(loss, outputs["mlm_loss"], "mlm_loss")
    assert_gradient_norms(gradient_norms(model, tree, loss), folder / "grad_norms.mlm_loss.json")


def text_model(case: Case) -> tuple[Model, dict[str, Any]]:
    """The stacks behind an image tower that is never run; its width is that of the recorded image tokens."""
    text, overrides = case.config["text_config"], case.config["overrides"]
    keys = {"text_num_hidden_layers": overrides["num_hidden_layers"], "use_swin": False}
    fusion = {"fusion_layer": overrides["fusion_layer"]}
    tree = model_section(keys, {}, text | fusion, is_pretraining=True)
    tree["image_encoder"] |= {"width": overrides["encoder_width"], "num_layers": 1, "num_heads": 1}
    model = Model(build(Model.Config, tree)).eval()
    state = {f"text_encoder.{name}": value for name, value in case.state.items()}
    ours, missing, unused = to_ours(state, cclm_weights.entries(tree, "pretrain"))
    assert not [name for name in missing if name.startswith("text_encoder.")]
    assert all("position_ids" in name or ".decoder." in name for name in unused), unused
    absent = model.load_state_dict(ours, strict=False)
    assert not [name for name in absent.missing_keys if name.startswith(("text_encoder.", "text_fusion.", "masked"))]
    return model, tree


def embeddings(model: Model, ids: Tensor, packing: Any) -> TextState:
    """The text tower without its layers."""
    layers, model.text_encoder.layers = model.text_encoder.layers, torch.nn.ModuleList()
    state = model.text_encoder.encode_packed(ids, packing)
    model.text_encoder.layers = layers
    return state


def check_words(
    model: Model, masked: tuple[Tensor, ...], packing: Any, keys: list, outputs: dict[str, Tensor]
) -> Tensor:
    """The loss of the masked words, whose logits are those recorded."""
    ids, positions, targets = masked
    texts = model.encode_masked(ids, packing, torch.arange(len(ids)))
    tokens, target = model.masked_tokens(texts, positions, targets, keys)
    weight, bias = model.text_encoder.word.weight, model.masked_language_head.bias
    order = packing.order
    is_real = targets[order] >= 0
    assert torch.equal(target, targets[order][is_real])
    assert_close(F.linear(tokens, weight, bias), outputs["mlm_logits"][order][is_real], "mlm_logits")
    return vocabulary_loss(tokens, weight, bias, target)


def gradient_norms(model: Model, tree: dict[str, Any], loss: Tensor) -> dict[str, Tensor]:
    """Norms by the names of the stack alone."""
    loss.backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    written = cclm_weights.to_checkpoint(gradients, tree, "pretrain")
    prefix = "text_encoder."
    return {
        name.removeprefix(prefix): value.norm()
        for name, value in written.items()
        if name.startswith(prefix) and value.is_floating_point()
    }


KINDS = {
    ("cclm", "swin_encoder"): swin_encoder,
    ("cclm", "vit_encoder"): vit_encoder,
    ("cclm", "clip_vit_encoder"): clip_vit_encoder,
    ("cclm", "text_cross_encoder"): text_cross_encoder,
}
