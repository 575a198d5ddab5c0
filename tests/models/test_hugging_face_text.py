"""Text towers of the transformers library: their own numbers, in training, from public files and ZeroVL's."""

import json
import re

import pytest
import torch
from transformers import AutoModel, DistilBertConfig

from compat.bert import read_text_encoder
from compat.weights import to_original, translate
from compat.zerovl_rules import our_match
from models.hugging_face_text import HuggingFaceText
from models.model import Model
from rosetta import load_public_weights
from tests.tasks.test_large_batch import TOWERS
from utils.config import ConfigError, build, to_tree

SMALL = {"model_type": "distilbert", "vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
         "max_position_embeddings": 20, "pad_token_id": 0, "dropout": 0.0, "attention_dropout": 0.0}  # fmt: skip
TEXT = {"name": "hugging_face", "architecture": SMALL}


def tower(**changes):
    torch.manual_seed(0)
    return HuggingFaceText(HuggingFaceText.Config(SMALL, **changes)).eval()


def model():
    torch.manual_seed(1)
    return Model(build(Model.Config, TOWERS | {"text_encoder": TEXT}))


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_every_text_is_encoded_as_if_it_were_alone(pooling):
    encoder, lengths = tower(pooling=pooling), [5, 2, 9]
    ids = torch.randint(1, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    for text, length in enumerate(lengths):
        ids[text, length:] = 0
    state = encoder(ids, lengths)
    for text, length in enumerate(lengths):
        alone = encoder.backbone(input_ids=ids[text : text + 1, :length]).last_hidden_state[0]  # (L, D)
        torch.testing.assert_close(state.padded()[text, :length], alone, atol=1e-5, rtol=1e-5)
        expected = alone[0] if pooling == "first" else alone.mean(dim=0)
        torch.testing.assert_close(encoder.pool(state)[text], expected, atol=1e-5, rtol=1e-5)


def test_every_parameter_gets_a_gradient():
    bert = SMALL | {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for architecture in (SMALL, bert):
        encoder = HuggingFaceText(HuggingFaceText.Config(architecture))
        encoder(torch.randint(1, 60, (2, 4)), [4, 3]).tokens.sum().backward()
        idle = [n for n, p in encoder.named_parameters() if p.grad is None and "token_type" not in n]
        assert not idle


def test_a_public_folder_fills_the_tower(tmp_path):
    torch.manual_seed(5)
    public = AutoModel.from_config(DistilBertConfig(**SMALL))
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    state = {f"distilbert.{name}": value for name, value in public.state_dict().items()}
    torch.save(state | {"vocab_projector.bias": torch.zeros(60)}, tmp_path / "pytorch_model.bin")
    assert read_text_encoder(tmp_path) == TEXT
    ours = model()
    load_public_weights(ours, text=str(tmp_path))
    loaded = ours.text_encoder.backbone.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in public.state_dict().items())


def test_a_zerovl_checkpoint_comes_and_goes():
    ours = model()
    tree = to_tree(ours.config)
    theirs = to_original(ours.state_dict(), tree, "zerovl")
    assert any(name.startswith("text_encoder.model.model.transformer.layer.1.") for name in theirs)
    back = translate(theirs, tree)
    assert not back.missing and not back.unexpected
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.state.items())
    assert back.state.keys() == ours.state_dict().keys()


def test_rules_of_names_reach_the_tower():
    tree = {"text_encoder": TEXT, "projection_form": {"kind": "simple"}, "temperature": {"is_learned": True}}
    match = our_match(r"text_encoder\.model\.model\.transformer.*bias", tree, "x.yaml")
    found = [name for name, _ in model().named_parameters() if re.search(match, f"model.{name}")]
    assert found and all(
        name.startswith("text_encoder.backbone.transformer") and name.endswith("bias") for name in found
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_encoder": {"name": "hugging_face"}}, "architecture needs model_type"),
        ({"text_encoder": {"name": "hugging_face", "architecture": {"model_type": "t5"}}}, "is no text encoder"),
        ({"text_encoder": {"name": "hugging_face", "architecture": {"model_type": "no-such"}}}, "no-such"),
    ],
)
def test_what_is_no_encoder_is_told(change, message):
    with pytest.raises(ConfigError, match=message):
        build(Model.Config, TOWERS | change)


def test_fusion_over_it_is_refused():
    with pytest.raises(ConfigError, match="text_fusion needs text_encoder bert"):
        build(Model.Config, TOWERS | {"text_encoder": TEXT, "text_fusion": {"num_layers": 1}})
