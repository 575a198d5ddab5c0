"""Weights of a pre-trained model in models with other parts: ours and the originals' layout give the same."""

import pytest
import torch

import rosetta
from compat.weights import to_original, translate
from tests.tiny import build_model
from utils.checkpoint import write_weights
from utils.config import to_tree

CLASSIFIER = {"projections": "none", "has_match_head": False, "has_masked_language_head": False}
NLVR = CLASSIFIER | {"text_fusion": {"num_layers": 2, "num_images": 2}, "classifier": {"num_classes": 2}}
DOMAIN = NLVR | {"projections": "image", "classifier": {"num_classes": 3, "num_layers": 1}}
SWIN = {
    "name": "swin",
    "image_size": 32,
    "window_size": 4,
    "width": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
}
CLIP = {
    "name": "vit",
    "image_size": 32,
    "patch_size": 16,
    "width": 24,
    "num_layers": 2,
    "num_heads": 2,
    "is_clip": True,
    "layer_norm_eps": 1e-5,
}


def start(source, target, layout):
    """Translation of a source model's weights for a target model."""
    state = source.state_dict()
    if layout == "original":
        state = to_original(state, to_tree(source.config), "cclm_pretrain")
    return translate(state, to_tree(target.config))


@pytest.mark.parametrize("image_encoder", [SWIN, CLIP], ids=["swin", "clip"])
@pytest.mark.parametrize("layout", ["ours", "original"])
def test_every_fusion_layer_is_copied_for_the_second_image(layout, image_encoder):
    source = build_model(image_encoder=image_encoder)
    target = build_model(image_encoder=image_encoder, **NLVR)
    found = start(source, target, layout)
    fusion = source.text_fusion.state_dict()
    for name, value in found.state.items():
        if not name.startswith("text_fusion."):
            continue
        _, _, layer, rest = name.split(".", 3)
        assert torch.equal(value, fusion[f"layers.{int(layer) // 2}.{rest}"]), name
    missing = {name for name in target.state_dict() if name not in found.state}
    assert {name.split(".")[0] for name in missing} == {"classifier"}
    assert not found.unexpected and set(found.state) <= set(target.state_dict())


@pytest.mark.parametrize("layout", ["ours", "original"])
def test_every_part_that_the_model_lacks_is_named_with_its_reason(layout):
    found = start(build_model(), build_model(**NLVR), layout)
    reasons = set(found.left_out.values())
    wanted = {"no masked-language head", "no matching head", "no projection of texts", "no temperature"}
    assert {f"this model has {words}" for words in wanted} <= reasons


def test_fine_tuning_takes_the_domain_model_as_it_is_but_for_its_head(tmp_path):
    source, target = build_model(seed=1, **DOMAIN), build_model(seed=2, **NLVR)
    write_weights(source.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="6 missing: classifier.0.weight"):
        rosetta.load_weights(target, tmp_path / "model.safetensors")
    notes = rosetta.load_weights(target, tmp_path / "model.safetensors", ["classifier."])
    assert any("classifier.weight left out: this model has a classifier of another form" in note for note in notes)
    for name, value in target.text_fusion.state_dict().items():
        assert torch.equal(value, source.text_fusion.state_dict()[name]), name


@pytest.mark.parametrize("image_encoder", [SWIN, CLIP], ids=["swin", "clip"])
@pytest.mark.parametrize("parts, layout", [(NLVR, "cclm_nlvr"), (DOMAIN, "cclm_nlvr_pretrain")])
def test_a_written_file_is_read_back_whole(parts, layout, image_encoder):
    model = build_model(image_encoder=image_encoder, **parts)
    tree = to_tree(model.config)
    written = to_original(model.state_dict(), tree, layout)
    first, second = (f"text_encoder.encoder.layer.{n}.crossattention.self.key.weight" for n in (2, 3))
    assert torch.equal(written[first], written[second])
    found = translate(written, tree)
    assert not found.missing and not found.unexpected and found.state.keys() == model.state_dict().keys()
    assert all(torch.equal(found.state[name], value) for name, value in model.state_dict().items())


def test_a_file_whose_shared_projections_differ_is_refused():
    model = build_model(**NLVR)
    written = to_original(model.state_dict(), to_tree(model.config), "cclm_nlvr")
    name = "text_encoder.encoder.layer.3.crossattention.self.key.weight"
    written[name] = written[name] + 1
    with pytest.raises(ValueError, match=f"{name}.*not equal to the other copy"):
        translate(written, to_tree(model.config))
