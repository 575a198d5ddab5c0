"""ZeroVL's released layout, and what a checkpoint may lack or hold besides."""

import json
from dataclasses import replace

import pytest
import torch

from compat.weights import recognise, to_original, translate
from models.model import Model
from rosetta import load_weights, renamed
from tests.parity.conftest import OWN_FIXTURES
from tests.parity.runners.zerovl_model import model_tree
from utils.config import build, to_tree

FULL = {
    "image_encoder": {"name": "vit"},
    "text_encoder": {"name": "bert", "vocab_size": 30522, "width": 768, "num_layers": 12, "num_heads": 12,
                     "mlp_width": 3072, "max_positions": 512, "num_token_types": 2, "pad_id": 0},
    "embed_dim": 512,
    "projection_form": {"kind": "simple"},
    "temperature": {"initial": 0.02, "clamps": "used"},
}  # fmt: skip
SMALL = model_tree(
    {"vit": {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 2},
     "bert": {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 16, "max_position_embeddings": 12},
     "projection_dim": 6},
    is_learned=True,
)  # fmt: skip


def small_model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(build(Model.Config, SMALL))


def test_full_size_model_has_the_released_keys_and_shapes():
    expected = json.loads((OWN_FIXTURES / "zerovl" / "manifest.json").read_text(encoding="utf-8"))
    expected = expected.get("keys", expected)
    with torch.device("meta"):
        model = Model(build(Model.Config, FULL))
    written = to_original(model.state_dict(), to_tree(model.config), "zerovl")
    assert {name: list(value.shape) for name, value in written.items()} == {n: v[0] for n, v in expected.items()}


@pytest.mark.parametrize("kind", ["simple", "complex"])
def test_layout_is_written_as_it_is_read(kind):
    tree = {**SMALL, "projection_form": {"kind": kind}}
    model = Model(build(Model.Config, tree))
    theirs = to_original(model.state_dict(), tree, "zerovl")
    assert recognise(theirs) == "zerovl"
    ours = translate(theirs, tree)
    assert not ours.missing and not ours.unexpected
    assert ours.state.keys() == model.state_dict().keys()


def test_counters_of_old_files_are_left_out_and_strange_keys_are_told():
    theirs = to_original(small_model().state_dict(), SMALL, "zerovl")
    theirs["text_encoder.model.model.embeddings.position_ids"] = torch.arange(12)[None]
    theirs["loss.other"] = torch.zeros(1)
    found = translate(theirs, SMALL)
    assert list(found.left_out) == ["text_encoder.model.model.embeddings.position_ids"]
    assert found.unexpected == ["loss.other"]


def test_constant_temperature_needs_no_key():
    theirs = to_original(small_model().state_dict(), SMALL, "zerovl")
    del theirs["loss.temperature"]
    tree = {**SMALL, "temperature": {"initial": 0.03, "is_learned": False, "clamps": "used"}}
    assert translate(theirs, tree).state["temperature.value"] == pytest.approx(0.03)
    assert translate(theirs, SMALL).missing == ["loss.temperature"]


def test_one_side_alone_is_loaded(tmp_path):
    source, model, untouched = small_model(1), small_model(2), small_model(2).state_dict()
    path = tmp_path / "step_checkpoint.pth"
    torch.save({"state_dict": to_original(source.state_dict(), SMALL, "zerovl"), "meta": {"epoch": 1}}, path)
    load_weights(model, path, only=["image_encoder", "image_projection"])
    for name, value in model.state_dict().items():
        expected = source.state_dict() if name.startswith("image_") else untouched
        assert torch.equal(value, expected[name]), name


def test_renaming_says_what_it_did_not_find():
    state = {"visual.a": torch.zeros(1)}
    assert list(renamed(state, {"visual.": "image_encoder."})) == ["image_encoder.a"]
    with pytest.raises(ValueError, match="no key begins with 'vision.'; keys are like visual.a"):
        renamed(state, {"vision.": "x."})


def test_temperature_outside_its_range_is_clamped_without_gradient():
    config = replace(build(Model.Config, SMALL).temperature, initial=0.02)
    temperature = type(small_model().temperature)(config)
    for value, used, gradient in ((0.0002, 0.001, 0.0), (0.9, 0.5, 0.0), (0.3, 0.3, 1.0)):
        temperature.value.data.fill_(value)
        temperature.value.grad = None
        found = temperature()
        found.backward()
        assert found.item() == pytest.approx(used) and temperature.value.grad.item() == gradient
        assert temperature.value.item() == pytest.approx(value)
