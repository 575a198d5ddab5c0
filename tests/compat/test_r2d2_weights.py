"""R2D2's and PRD2's checkpoints: full-size layouts, whose configuration they get, what is left out and why."""

import json

import pytest
import torch

from compat import r2d2_weights
from compat.weights import recognise, released_config, to_original, translate
from configs.schema import load_settings
from models.model import Model
from tests.parity.conftest import OWN_FIXTURES
from tests.tiny import build_model, model_tree
from utils.config import to_tree

FILES = {"r2d2_base": "flickr_cna_base", "r2d2_large": "flickr_cna_large", "prd2_large": "prd2_large"}
CLIP = {"is_clip": True, "final_norm": False, "layer_norm_eps": 1e-5}


@pytest.mark.parametrize("name", FILES)
def test_full_size_checkpoint_has_the_original_s_keys_and_finds_its_configuration(name):
    expected = json.loads((OWN_FIXTURES / "r2d2" / "manifest.json").read_text(encoding="utf-8"))[name]
    path = f"configs/r2d2/{FILES[name]}.yaml"
    with torch.device("meta"):
        model = Model(load_settings(path).model)
    written = to_original(model.state_dict(), to_tree(model.config), name.partition("_")[0])
    assert {key: list(value.shape) for key, value in written.items()} == {
        key: shape for key, (shape, _) in expected.items()
    }
    assert released_config(written) == path


def tiny(**changes):
    stacks = {"image_fusion": {"num_layers": 1}, "text_fusion": {"num_layers": 1}, "match_head": "linear"}
    image = model_tree()["image_encoder"] | CLIP
    return build_model(**(stacks | {"image_encoder": image, "has_masked_language_head": False} | changes))


def test_a_model_comes_back_from_its_original_layout():
    model = tiny()
    tree = to_tree(model.config)
    original = to_original(model.state_dict(), tree, "r2d2")
    assert recognise(original) == "r2d2"
    translation = translate(original, tree)
    assert not translation.missing and not translation.unexpected
    assert all(torch.equal(value, translation.state[name]) for name, value in model.state_dict().items())
    reasons = translation.left_out
    assert "text_joint_layer.embeddings.word_embeddings.weight" in reasons
    assert "visual_encoder.post_layernorm.weight" in reasons and "text_encoder.pooler.dense.bias" in reasons


def test_the_dual_part_of_r2d2_is_prd2():
    model = tiny()
    original = to_original(model.state_dict(), to_tree(model.config), "r2d2")
    dual = to_tree(tiny(image_fusion=None, text_fusion=None).config)
    translation = translate(original, dual)
    assert not translation.missing and not translation.unexpected
    assert translation.left_out["itm_head_i.weight"] == "this model has no such fusion stack"
    assert not any("fusion" in name for name in translation.state)


def test_state_of_pretraining_is_named_and_surprises_are_unexpected():
    model = tiny()
    original = to_original(model.state_dict(), to_tree(model.config), "r2d2")
    extra = {"text_queue": torch.zeros(1), "text_encoder_m.pooler.dense.bias": torch.zeros(1), "oddity": torch.zeros(1)}
    translation = r2d2_weights.from_checkpoint(original | extra, to_tree(model.config))
    assert translation.unexpected == ["oddity"]
    assert {"text_queue", "text_encoder_m.pooler.dense.bias"} <= translation.left_out.keys()


def test_a_model_without_the_second_stack_is_no_r2d2():
    model = tiny(image_fusion=None)
    with pytest.raises(ValueError, match="export it as prd2"):
        to_original(model.state_dict(), to_tree(model.config), "r2d2")


def test_a_position_table_that_is_no_grid_is_refused():
    model = tiny()
    original = to_original(model.state_dict(), to_tree(model.config), "r2d2")
    name = "visual_encoder.embeddings.position_embedding.weight"
    original[name] = torch.randn(1 + 7, original[name].shape[1])
    with pytest.raises(ValueError, match="8 rows"):
        translate(original, to_tree(model.config))
