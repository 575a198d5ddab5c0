"""What a ViT leaves out or does in place where no gradient is asked for does not change what it says."""

import pytest
import torch

from models.vit_parts import QuickGELU
from tests.tiny import build_model

VIT = {"name": "vit", "image_size": 32, "patch_size": 8, "width": 24, "num_layers": 3, "num_heads": 2}
SWIN = {"name": "swin", "image_size": 32, "window_size": 4, "width": 8, "depths": [1, 1], "num_heads": [1, 2]}
TOWERS = [VIT, VIT | {"is_clip": True}, VIT | {"class_token": False}, VIT | {"recomputes_layers": True}, SWIN]


@pytest.mark.parametrize("tower", TOWERS)
def test_embeddings_alone_are_those_of_the_whole_tower(tower):
    model = build_model(image_encoder=tower).eval()
    images = torch.randn(3, 3, 32, 32)
    expected = model.encode_image(images).embed
    torch.testing.assert_close(model.embed_image(images), expected, atol=1e-6, rtol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(model.embed_image(images), expected, atol=1e-6, rtol=1e-6)


def test_the_first_token_alone_has_the_gradient_of_the_whole_tower():
    model = build_model(image_encoder=VIT | {"is_clip": True})
    images, found = torch.randn(3, 3, 32, 32), []
    for embed in (model.encode_image(images).embed, model.embed_image(images)):
        found.append(torch.autograd.grad(embed.square().mul(torch.arange(embed.shape[1])).sum(), model.parameters(),
                                         allow_unused=True))  # fmt: skip
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)


def test_quick_gelu_writes_over_its_input_only_where_no_gradient_is_asked_for():
    part, x = QuickGELU().eval(), torch.randn(50)
    before = x.clone()
    expected = part(x)
    assert torch.equal(x, before)
    with torch.no_grad():
        found = part(x)
    torch.testing.assert_close(found, expected)
    assert found.data_ptr() == x.data_ptr()
