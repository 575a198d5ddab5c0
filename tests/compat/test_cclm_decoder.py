"""The answer decoder's weights: made from a pre-trained model, written in the original layout and read back."""

import pytest
import torch

from compat.weights import released_config, to_original, translate
from models.model import Model
from rosetta import load_weights
from tests.tiny import build_model, model_tree
from utils.checkpoint import write_weights
from utils.config import build, to_tree

ANSWERING = {
    "answer_decoder": {"num_layers": 2},
    "projections": "none",
    "has_match_head": False,
    "has_masked_language_head": False,
}
SAME_WIDTH = {"image_encoder": model_tree()["image_encoder"] | {"width": 16}}


def answering_model(**changes):
    torch.manual_seed(9)
    return Model(build(Model.Config, model_tree(**ANSWERING, **changes)))


@pytest.mark.parametrize("layout", ["ours", "cclm_pretrain"])
def test_a_pretrained_model_gives_the_decoder_its_fusion_layers_words_and_head(layout, tmp_path):
    source, model = build_model(**SAME_WIDTH), answering_model(**SAME_WIDTH)
    state = source.state_dict()
    if layout != "ours":
        state = to_original(state, to_tree(source.config), layout)
    write_weights({name: value.contiguous() for name, value in state.items()}, tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    decoder = model.answer_decoder
    for name, value in source.text_fusion.layers.state_dict().items():
        assert torch.equal(decoder.layers.state_dict()[name], value), name
    assert torch.equal(decoder.word_weight, source.text_encoder.word.weight)
    assert torch.equal(decoder.embedding.norm.bias, source.text_encoder.norm.bias)
    assert torch.equal(decoder.head.bias, source.masked_language_head.bias)


@pytest.mark.parametrize("layout", ["ours", "cclm_pretrain"])
def test_keys_and_values_of_another_width_stay_fresh(layout, tmp_path):
    source, model = build_model(), answering_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = source.state_dict()
    if layout != "ours":
        state = to_original(state, to_tree(source.config), layout)
    write_weights({name: value.contiguous() for name, value in state.items()}, tmp_path / "weights.safetensors")
    notes = load_weights(model, tmp_path / "weights.safetensors")
    for name, value in model.answer_decoder.state_dict().items():
        is_fresh = torch.equal(value, before[f"answer_decoder.{name}"])
        assert is_fresh == (".cross_attention.key_value." in name), name
    assert any("answer_decoder.layers.1.cross_attention.key_value.weight" in note for note in notes)


def test_the_original_layout_is_recognised_and_read_back():
    model = answering_model()
    tree = to_tree(model.config)
    written = to_original(model.state_dict(), tree, "cclm_vqa")
    assert released_config(written) == "configs/cclm/gqa.yaml"
    translation = translate(written, tree)
    assert not translation.missing and not translation.unexpected and not translation.fresh
    for name, value in model.state_dict().items():
        assert torch.equal(translation.state[name], value), name


def test_a_decoder_that_the_model_lacks_is_left_out_and_said():
    written = to_original(answering_model().state_dict(), to_tree(answering_model().config), "cclm_vqa")
    tree = to_tree(build(Model.Config, model_tree(**(ANSWERING | {"answer_decoder": None}))))
    left_out = translate(written, tree).left_out
    assert "no answer decoder" in left_out["text_decoder.bert.embeddings.word_embeddings.weight"]
