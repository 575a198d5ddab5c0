"""Features beside the libraries that users come from, on random weights, both ways."""

import pytest
import torch
from safetensors.torch import save_file

import rosetta
from compat.chinese_clip_sizes import model_section
from compat.weights import to_original
from models.clip_face import ClipFace
from models.model import Model
from utils.config import build, to_tree

SIZES = {"embed_dim": 24, "image_resolution": 48, "vision_layers": 2, "vision_width": 64, "vision_patch_size": 16,
         "vision_head_width": 64, "vocab_size": 99, "text_hidden_size": 64, "text_intermediate_size": 96,
         "text_max_position_embeddings": 30, "text_num_attention_heads": 1, "text_num_hidden_layers": 2,
         "text_type_vocab_size": 2}  # fmt: skip


@pytest.fixture
def ours():
    torch.manual_seed(0)
    model = Model(build(Model.Config, model_section(SIZES))).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 99, (3, 12), generator=generator)
    ids[1, 5:] = ids[2, 9:] = 0
    return torch.randn(3, 3, 48, 48, generator=generator), ids


def peer_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.ChineseCLIPModel(
        transformers.ChineseCLIPConfig(
            projection_dim=24,
            text_config={"vocab_size": 99, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                         "num_attention_heads": 1, "max_position_embeddings": 30, "type_vocab_size": 2},
            vision_config={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "image_size": 48,
                           "num_attention_heads": 1, "patch_size": 16, "projection_dim": 24},
        )
    ).eval()  # fmt: skip


def assert_equal_features(model, peer, images, ids):
    with torch.no_grad():
        found = peer(input_ids=ids, pixel_values=images, attention_mask=(ids != 0).long())
        image, text, scale = ClipFace(model)(images, ids)
    assert torch.allclose(found.image_embeds, image, atol=1e-5) and torch.allclose(found.text_embeds, text, atol=1e-5)
    assert torch.allclose(found.logits_per_image, scale * image @ text.T, atol=1e-4)


@pytest.mark.peer
def test_transformers_reads_what_we_write(ours, inputs):
    peer = peer_of_transformers()
    written = to_original(ours.state_dict(), to_tree(ours.config), "chinese_clip_hf")
    missing, unexpected = peer.load_state_dict(written, strict=False)
    assert not unexpected and all("pooler" in name or "position_ids" in name for name in missing)
    assert_equal_features(ours, peer, *inputs)


@pytest.mark.peer
def test_we_read_what_transformers_writes(inputs, tmp_path):
    peer = peer_of_transformers()
    save_file({name: value.contiguous() for name, value in peer.state_dict().items()}, tmp_path / "model.safetensors")
    assert_equal_features(rosetta.load(tmp_path / "model.safetensors").model, peer, *inputs)


@pytest.mark.peer
def test_the_original_reads_what_we_write(ours, inputs):
    original = pytest.importorskip("cn_clip.clip.model", reason="cn_clip is not installed")
    text = {name: value for name, value in SIZES.items() if name.startswith("text_")}
    peer = original.CLIP(**{k: v for k, v in SIZES.items() if k not in text}, **text, text_hidden_act="gelu",
                         text_attention_probs_dropout_prob=0.0, text_hidden_dropout_prob=0.0,
                         text_initializer_range=0.02).eval()  # fmt: skip
    peer.load_state_dict(to_original(ours.state_dict(), to_tree(ours.config), "chinese_clip"))
    with torch.no_grad():
        for found, expected in zip(ClipFace(ours)(*inputs), peer(*inputs), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)
