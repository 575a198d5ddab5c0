"""The released sizes: every key and shape of a full checkpoint is written from our model, built without memory."""

import json

import pytest
import torch

from compat.weights import to_original
from models.model import Model
from tests.parity.conftest import OWN_FIXTURES
from utils.config import build, to_tree

MANIFEST = OWN_FIXTURES / "ccrk" / "manifest.json"
SIZES = {"pretrain_unialign_swinB_224": (224, 7, "pretrain"), "finetune_retrieval_swinB_384": (384, 12, "finetune")}


@pytest.mark.parametrize("name", SIZES)
def test_full_size_checkpoint_has_the_original_s_keys_and_shapes(name):
    image_size, window, stage = SIZES[name]
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    expected = manifest.get("models", manifest)[name]
    expected = expected.get("keys", expected)
    tree = {
        "image_encoder": {"name": "swin", "image_size": image_size, "window_size": window},
        "text_encoder": {"name": "bert"},
        "text_fusion": {"num_layers": 6},
        "has_masked_language_head": stage == "pretrain",
    }
    with torch.device("meta"):
        model = Model(build(Model.Config, tree))
    written = to_original(model.state_dict(), to_tree(model.config), f"ccrk_{stage}")
    assert {key: list(value.shape) for key, value in written.items()} == {
        key: value[0] for key, value in expected.items()
    }
