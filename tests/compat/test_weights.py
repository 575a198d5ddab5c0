"""The door for weights: what it recognises, what it explains, what it refuses."""

import pytest
import torch

from compat.weights import recognise, tensors_of, to_original, translate
from tests.tiny import build_model, model_tree
from utils.config import to_tree

SWIN = {"name": "swin", "image_size": 32, "window_size": 4, "width": 8, "depths": [2, 2], "num_heads": [1, 2]}


def swin_model(**changes):
    return build_model(image_encoder=SWIN, **changes)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_original_layout_round_trip_keeps_every_weight(stage):
    model = swin_model(has_masked_language_head=stage == "pretrain")
    tree = to_tree(model.config)
    original = to_original(model.state_dict(), tree, f"ccrk_{stage}")
    assert recognise(original) == "cclm"
    assert ("text_encoder.cls.predictions.decoder.weight" in original) == (stage == "pretrain")
    translation = translate(original, tree)
    assert not translation.missing and not translation.unexpected
    assert all(torch.equal(value, translation.state[name]) for name, value in model.state_dict().items())


def test_pretrained_file_fills_a_fine_tuning_model_and_says_what_is_left_out():
    pretrained = swin_model()
    original = to_original(pretrained.state_dict(), to_tree(pretrained.config), "cclm_pretrain")
    translation = translate(original, to_tree(swin_model(has_masked_language_head=False).config))
    assert not translation.missing and not translation.unexpected
    assert {name for name in original if ".cls." in name} <= set(translation.left_out)


def test_unknown_key_is_reported_not_dropped():
    model = swin_model()
    tree = to_tree(model.config)
    original = to_original(model.state_dict(), tree, "cclm_pretrain") | {"text_encoder.surprise": torch.zeros(1)}
    assert translate(original, tree).unexpected == ["text_encoder.surprise"]


def test_foreign_layout_is_refused_with_its_first_keys():
    with pytest.raises(ValueError, match="no layout that is known.*visual.conv1"):
        translate({"visual.conv1.weight": torch.zeros(1)}, model_tree())


def test_files_may_wrap_the_state_dict_and_prefix_its_keys():
    assert list(tensors_of({"model": {"module.temp": torch.zeros(1)}, "epoch": 3})) == ["temp"]
    with pytest.raises(ValueError, match="no tensors"):
        tensors_of({"epoch": 3})


def test_public_file_of_any_timm_tower_fills_the_tower_without_its_classifier():
    import timm

    from compat.weights import image_tower

    file = timm.create_model("resnet18", pretrained=False).state_dict()
    ours = image_tower(file, {"image_encoder": {"name": "timm", "model": "resnet18", "image_size": 32}}).state
    model = build_model(image_encoder={"name": "timm", "model": "resnet18", "image_size": 32})
    assert set(ours) == {name for name in model.state_dict() if name.startswith("image_encoder.backbone.")}
