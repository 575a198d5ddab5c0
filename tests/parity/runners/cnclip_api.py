"""Chinese-CLIP's Python API on the pictures of a whole project and the four words of its README."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from compat.chinese_clip import image_transform, tokenize
from compat.chinese_clip_weights import half_rounded
from compat.weights import tensors_of
from models.clip_face import ClipFace
from tests.parity.runners.chinese_clip_model import build_model
from tests.parity.runners.common import assert_close
from utils.checkpoint import read_weights

WORDS = ["\u6770\u5c3c\u9f9f", "\u5999\u86d9\u79cd\u5b50", "\u5c0f\u706b\u9f99", "\u76ae\u5361\u4e18"]


@torch.no_grad()
def check_api(folder: Path) -> None:
    """With weights rounded to half precision, as the original's API loads them on a CPU."""
    expected = load_file(folder / "expected/api.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    transform, count = image_transform(config["image_resolution"]), len(expected["pixels"])
    lines = (folder / "dataset/valid_imgs.tsv").read_text(encoding="ascii").splitlines()[:count]
    files = [io.BytesIO(base64.b64decode(line.partition("\t")[2])) for line in lines]
    pixels = torch.stack([transform(Image.open(file)) for file in files])
    assert_close(pixels, expected["pixels"], "pixels")
    tokens = tokenize(WORDS)
    assert torch.equal(tokens, expected["tokens"])
    state = half_rounded(tensors_of(read_weights(folder / "checkpoint.pt")))
    face = ClipFace(build_model(config, state)).eval()
    of_image, of_text = face.get_similarity(pixels, tokens)
    found = {
        "image_features": face.encode_image(pixels),
        "text_features": face.encode_text(tokens),
        "logits_per_image": of_image,
        "logits_per_text": of_text,
        "probs": of_image.softmax(dim=-1),
    }
    for name, value in found.items():
        assert_close(value, expected[name], name)
