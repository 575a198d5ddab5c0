"""Another system's checkpoint is named, with the command that takes it, whatever model it was given to."""

import itertools

import pytest
import torch

import rosetta
from compat.weights import EXPORTS, NAMES, SYSTEMS, recognise, released_config, to_original
from configs.schema import load_settings
from models.model import Model
from utils.config import to_tree

LAYOUTS = {"cclm": "cclm_finetune", "r2d2": "r2d2", "zerovl": "zerovl", "chinese_clip": "chinese_clip"}
CONFIGS = {
    "cclm": "configs/cclm/retrieval_multi30k_all.yaml",
    "r2d2": "configs/r2d2/flickr_cna_base.yaml",
    "zerovl": "configs/zerovl/zerovl_14m_eval.yaml",
    "chinese_clip": "configs/chinese_clip/rn50.yaml",
}


@pytest.fixture(scope="module")
def models():
    """A model of every system without memory."""
    with torch.device("meta"):
        return {name: Model(load_settings(rosetta.ROOT / path).model) for name, path in CONFIGS.items()}


def test_every_system_has_a_name_and_a_case():
    assert set(NAMES) == set(SYSTEMS) == set(CONFIGS) and set(LAYOUTS.values()) <= set(EXPORTS)


@pytest.mark.parametrize("given, wanted", list(itertools.permutations(CONFIGS, 2)))
def test_another_system_s_file_is_named_with_its_command(models, given, wanted, monkeypatch):
    state = to_original(models[given].state_dict(), to_tree(models[given].config), LAYOUTS[given])
    assert recognise(state) == given
    monkeypatch.setattr("utils.checkpoint.read_weights", lambda path: {"model": state})
    with pytest.raises(ValueError) as told:
        rosetta.load_weights(models[wanted], "found.pt")
    command = f"for: run.py --config {released_config(state)} --checkpoint found.pt"
    assert f"these are weights of {NAMES[given]}, {command}" in str(told.value)
    assert (rosetta.ROOT / released_config(state)).is_file()
