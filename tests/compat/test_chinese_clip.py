"""Chinese-CLIP's Python API on files of its own, without anything downloaded."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import compat.chinese_clip as clip
from compat.chinese_clip_sizes import TEXT_MODELS, VISION_MODELS
from models.clip_face import ClipFace
from tests.parity.conftest import OWN_FIXTURES
from tests.parity.runners.chinese_clip_model import build_model

FIXTURES = OWN_FIXTURES / "chinese_clip"


@pytest.fixture
def face():
    folder = FIXTURES / "vit_tiny"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ClipFace(build_model(config, load_file(folder / "state_dict.safetensors"))).eval()


@pytest.fixture
def inputs():
    return load_file(FIXTURES / "vit_tiny/inputs.safetensors")


@pytest.fixture
def tiny_names(monkeypatch):
    """The tiny towers of the fixtures under names."""
    config = json.loads((FIXTURES / "vit_tiny/config.json").read_text(encoding="utf-8"))
    monkeypatch.setitem(VISION_MODELS, "tiny", {k: v for k, v in config.items() if "vision" in k or "image" in k})
    monkeypatch.setitem(TEXT_MODELS, "tiny-text", {k: v for k, v in config.items() if "text" in k or k == "vocab_size"})
    monkeypatch.setattr("compat.chinese_clip_sizes.EMBED_DIM", {"tiny": config["embed_dim"]})


def test_the_released_names_in_their_order():
    assert clip.available_models() == ["ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "RN50"]


@torch.no_grad()
def test_the_methods_give_what_the_original_s_give(face, inputs):
    expected = load_file(FIXTURES / "vit_tiny/outputs.safetensors")
    image, text, scale = face(inputs["images"], inputs["texts"])
    found = {"image_features": image, "text_features": text, "logit_scale_exp": scale}
    found |= {"only_image": face(inputs["images"], None), "only_text": face(None, inputs["texts"])}
    found["logits_per_image"], found["logits_per_text"] = face.get_similarity(inputs["images"], inputs["texts"])
    for name, value in found.items():
        assert torch.allclose(value, expected[name], atol=1e-5, rtol=1e-5), name


@torch.no_grad()
def test_a_model_in_half_precision_takes_pixels_as_they_come(face, inputs):
    half = face.half()
    assert half.dtype == torch.float16
    assert half.encode_image(inputs["images"]).dtype == half.encode_text(inputs["texts"]).dtype == torch.float16


def test_nothing_to_encode_is_an_error(face):
    with pytest.raises(ValueError, match="give images, texts or both"):
        face(None, None)


@torch.no_grad()
def test_masked_patches_change_one_call_only(face, inputs):
    whole = face.encode_image(inputs["images"])
    masked = face.encode_image(inputs["images"], mask_ratio=0.5)
    assert not torch.allclose(whole, masked) and torch.equal(face.encode_image(inputs["images"]), whole)


@torch.no_grad()
def test_a_text_of_padding_alone_is_legal(face):
    assert face.encode_text(torch.zeros(2, 20, dtype=torch.int64)).isfinite().all()


@torch.no_grad()
def test_a_file_is_loaded_with_the_names_of_its_towers(face, inputs, tiny_names, tmp_path):
    state = load_file(FIXTURES / "vit_tiny/state_dict.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "own.pt")
    model, preprocess = clip.load_from_name(tmp_path / "own.pt", "cpu", None, "tiny", "tiny-text", 32)
    assert torch.equal(model.encode_image(inputs["images"]), face.encode_image(inputs["images"]))
    assert preprocess(Image.new("RGB", (50, 20))).shape == (3, 32, 32) and not model.training
    with pytest.raises(ValueError, match="give vision_model_name, text_model_name and input_resolution"):
        clip.load_from_name(tmp_path / "own.pt", "cpu")


def test_an_absent_released_file_is_named_with_its_source(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"clip_cn_rn50\.pt from https://huggingface\.co/OFA-Sys/chinese-clip-rn"
    ):
        clip.load_from_name("RN50", "cpu", tmp_path)
    with pytest.raises(FileNotFoundError, match="AI-ModelScope/chinese-clip-vit-huge-patch14"):
        clip.load_from_name("ViT-H-14", "cpu", tmp_path, use_modelscope=True)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="available: ViT-B-16, ViT-L-14"):
        clip.load_from_name("ViT-B-61")


@pytest.mark.parametrize("texts, rows", [("cat", 1), (["cat", "dog"], 2)])
def test_texts_become_padded_ids(texts, rows):
    ids = clip.tokenize(texts)
    assert ids.shape == (rows, 52) and ids.dtype == torch.int64
    assert ids[0, 0] == 101 and ids[0, 2] == 102 and not ids[0, 3:].any()
    assert clip.tokenize("a " * 99, context_length=8).tolist()[0][-1] == 102


def test_a_palette_is_resized_before_it_is_rgb():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).quantize(4)
    found = clip.image_transform(16)(image)
    resized = np.asarray(image.resize((16, 16)).convert("RGB")) / 255
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    assert np.allclose(found.permute(1, 2, 0).numpy(), (resized - mean) / std, atol=1e-5)


def test_a_layout_is_converted_both_ways():
    standard = load_file(FIXTURES / "vit_tiny/state_dict.safetensors")
    flash = load_file(FIXTURES / "flash_layout/state_dict.safetensors")
    converted = clip.convert_state_dict({f"module.{name}": value for name, value in standard.items()})
    assert converted.keys() == flash.keys() and all(torch.equal(converted[name], flash[name]) for name in flash)
    again = clip.convert_state_dict(converted)
    assert all(torch.equal(again[f"module.{name}"], value) for name, value in standard.items())


def test_a_start_from_clip_and_bert_fills_both_towers(face, tmp_path):
    given = load_file(FIXTURES / "init_from_clip_and_bert/inputs.safetensors")
    for name in ("clip", "bert_file"):
        part = {n.removeprefix(f"{name}."): v for n, v in given.items() if n.startswith(f"{name}.")}
        torch.save(part, tmp_path / f"{name}.pt")
    kept = face.model.text_projection.weight.clone()
    clip.load(face, "cpu", tmp_path / "clip.pt", tmp_path / "bert_file.pt")
    assert torch.equal(face.logit_scale, given["clip.logit_scale"])
    assert torch.equal(face.model.image_projection.weight, given["clip.visual.proj"].T)
    assert torch.equal(face.model.text_encoder.word.weight, given["bert_file.bert.embeddings.word_embeddings.weight"])
    assert torch.equal(face.model.text_projection.weight, kept)
