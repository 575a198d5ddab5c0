"""Features beside the libraries that users come from, on random weights, both ways."""

import inspect

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import compat.chinese_clip as clip
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


RESNET = SIZES | {"image_resolution": 64, "vision_layers": [1, 1, 1, 1], "vision_width": 8}
TOWERS = pytest.mark.parametrize("sizes", [SIZES, RESNET], ids=["vit", "resnet"])


def random_model(sizes=SIZES):
    torch.manual_seed(0)
    model = Model(build(Model.Config, model_section(sizes))).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


def random_inputs(sizes=SIZES):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 99, (3, 12), generator=generator)
    ids[1, 5:] = ids[2, 9:] = 0
    return torch.randn(3, 3, *[sizes["image_resolution"]] * 2, generator=generator), ids


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


def peer_of_cn_clip(sizes):
    original = pytest.importorskip("cn_clip.clip.model", reason="pip install --no-deps -r requirements-peers.txt")
    torch.manual_seed(1)
    return original.CLIP(**sizes, text_hidden_act="gelu", text_attention_probs_dropout_prob=0.0,
                         text_hidden_dropout_prob=0.0, text_initializer_range=0.02).eval()  # fmt: skip


@torch.no_grad()
def assert_equal_to_cn_clip(model, peer, images, ids):
    """Vectors before and after they get their length, and both matrices of logits."""
    face = ClipFace(model)
    for name, given in (("encode_image", images), ("encode_text", ids)):
        torch.testing.assert_close(getattr(face, name)(given), getattr(peer, name)(given), atol=1e-5, rtol=1e-5)
    for name in ("forward", "get_similarity"):
        for found, expected in zip(getattr(face, name)(images, ids), getattr(peer, name)(images, ids), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.peer
def test_transformers_reads_what_we_write():
    ours, peer = random_model(), peer_of_transformers()
    written = to_original(ours.state_dict(), to_tree(ours.config), "chinese_clip_hf")
    missing, unexpected = peer.load_state_dict(written, strict=False)
    assert not unexpected and all("pooler" in name or "position_ids" in name for name in missing)
    assert_equal_features(ours, peer, *random_inputs())


@pytest.mark.peer
def test_we_read_what_transformers_writes(tmp_path):
    peer = peer_of_transformers()
    save_file({name: value.contiguous() for name, value in peer.state_dict().items()}, tmp_path / "model.safetensors")
    assert_equal_features(rosetta.load(tmp_path / "model.safetensors").model, peer, *random_inputs())


@pytest.mark.peer
@TOWERS
def test_cn_clip_reads_what_we_write(sizes):
    ours, peer = random_model(sizes), peer_of_cn_clip(sizes)
    peer.load_state_dict(to_original(ours.state_dict(), to_tree(ours.config), "chinese_clip"))
    assert_equal_to_cn_clip(ours, peer, *random_inputs(sizes))


@pytest.mark.peer
@TOWERS
def test_we_read_what_cn_clip_writes(sizes, tmp_path):
    peer = peer_of_cn_clip(sizes)
    weights = {f"module.{name}": value for name, value in peer.state_dict().items()}
    torch.save({"epoch": 15, "step": 0, "name": "released", "state_dict": weights}, tmp_path / "clip_cn.pt")
    assert_equal_to_cn_clip(rosetta.load(tmp_path / "clip_cn.pt").model, peer, *random_inputs(sizes))


@pytest.mark.peer
def test_tokens_and_pixels_are_those_of_cn_clip():
    original = pytest.importorskip("cn_clip.clip", reason="pip install --no-deps -r requirements-peers.txt")
    texts = ["杰尼龟 and Pikachu", "“引号”，标点。", "", "长" * 80]
    assert torch.equal(clip.tokenize(texts), original.tokenize(texts))
    assert torch.equal(clip.tokenize(texts[0], 8), original.tokenize(texts[0], 8))
    picture = Image.effect_mandelbrot((50, 37), (-2, -1, 1, 1), 20).convert("P")
    torch.testing.assert_close(clip.image_transform(32)(picture), original.image_transform(32)(picture))


@pytest.mark.peer
@pytest.mark.parametrize("name", ["available_models", "load_from_name", "tokenize", "image_transform", "load"])
def test_arguments_are_called_as_in_cn_clip(name):
    """The same names in the same order, so that a call by place or by name means the same."""
    original = pytest.importorskip("cn_clip.clip", reason="pip install --no-deps -r requirements-peers.txt")
    own, theirs = (inspect.signature(getattr(module, name)).parameters for module in (clip, original))
    assert list(own) == list(theirs)
    assert {key for key, one in own.items() if one.default is one.empty} <= {
        key for key, one in theirs.items() if one.default is one.empty
    }
