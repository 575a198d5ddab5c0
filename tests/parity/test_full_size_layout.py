"""The released sizes: every key and shape of a full checkpoint is written from our model, built without memory."""

import json

import pytest
import torch

import rosetta
from compat.weights import released_config, to_original
from configs.schema import load_settings
from models.model import Model
from tests.parity.conftest import OWN_FIXTURES
from utils.config import build, to_tree

# Name in the system's manifest, layout to export, our configuration.
FILES = [
    ("ccrk", "pretrain_unialign_swinB_224", "ccrk_pretrain", "configs/ccrk/pretrain_3m.yaml"),
    ("ccrk", "finetune_retrieval_swinB_384", "ccrk_finetune", "configs/ccrk/retrieval_multi30k_en.yaml"),
    ("cclm", "cclm_base_pretrain_224", "cclm_pretrain", "configs/cclm/pretrain_3m.yaml"),
    ("cclm", "cclm_base_retrieval_384", "cclm_retrieval", "configs/cclm/retrieval_multi30k_en.yaml"),
    ("cclm", "cclm_base_xvnli_384", "cclm_xvnli", "configs/cclm/xvnli.yaml"),
    ("cclm", "cclm_base_gqa_384", "cclm_vqa", "configs/cclm/gqa.yaml"),
    ("cclm", "cclm_base_nlvr_384", "cclm_nlvr", "configs/cclm/nlvr.yaml"),
    ("cclm", "cclm_base_nlvr_domain_pretrain_224", "cclm_nlvr_pretrain", "configs/cclm/nlvr_pretrain.yaml"),
]


@pytest.mark.parametrize("system, name, layout, path", FILES, ids=[row[1] for row in FILES])
def test_full_size_checkpoint_has_the_original_s_keys_and_shapes(system, name, layout, path):
    manifest = json.loads((OWN_FIXTURES / system / "manifest.json").read_text(encoding="utf-8"))
    expected = manifest.get("models", manifest)[name]
    expected = expected.get("keys", expected)
    model = model_of(path)
    written = to_original(model.state_dict(), to_tree(model.config), layout)
    assert {key: list(value.shape) for key, value in written.items()} == {
        key: value[0] for key, value in expected.items()
    }
    if "trainable_parameters" in manifest:
        # What is known of CCLM's files counts every parameter, also those that a recipe freezes.
        assert sum(p.numel() for p in model.parameters()) == manifest["trainable_parameters"][name]
    if system == "cclm":
        assert to_tree(model_of(released_config(written)).config) == to_tree(model.config)


def model_of(path):
    """The model of one of our configurations, without memory."""
    config = build(Model.Config, to_tree(load_settings_of(path).model))
    with torch.device("meta"):
        return Model(config)


def load_settings_of(path):
    return load_settings(rosetta.ROOT / path)


def test_a_model_is_not_written_as_one_of_another_task():
    model = model_of("configs/cclm/xvnli.yaml")
    with pytest.raises(ValueError, match="a model for xvnli, which cannot be written as nlvr"):
        to_original(model.state_dict(), to_tree(model.config), "cclm_nlvr")
