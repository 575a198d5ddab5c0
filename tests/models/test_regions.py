"""Regions of images: which tokens see which, and what a tower does only once."""

import pytest
import torch

from models.image_encoder import Swin, Timm, ViT
from utils.config import ConfigError, build

SWIN = {"image_size": 32, "window_size": 4, "width": 8, "depths": [2, 1], "num_heads": [1, 2]}
VIT = {"image_size": 32, "patch_size": 8, "width": 24, "num_layers": 3, "num_heads": 2, "num_region_layers": 2}
TIMM = {"model": "vit_tiny_patch16_224", "image_size": 64}
TOWERS = [(Swin, SWIN), (ViT, VIT), (ViT, VIT | {"is_clip": True}), (ViT, VIT | {"class_token": False}), (Timm, TIMM)]
IDS = ["swin", "vit", "clip", "vit-without-class-token", "timm"]
IMAGE_OF_REGION = torch.tensor([0, 1, 1])


def make_tower(kind, tree):
    torch.manual_seed(0)
    tower = kind(build(kind.Config, tree)).eval()
    return tower, torch.randn(2, 3, tree["image_size"], tree["image_size"])


def make_mask(num_tokens: int) -> torch.Tensor:
    mask = torch.zeros(3, num_tokens, dtype=torch.bool)
    mask[:, :3] = True
    return mask


@pytest.mark.parametrize(("kind", "tree"), TOWERS, ids=IDS)
def test_full_tokens_are_those_without_regions(kind, tree):
    tower, images = make_tower(kind, tree)
    expected = tower(images)
    found = tower.encode_regions(images, IMAGE_OF_REGION, make_mask(expected.shape[1]))
    torch.testing.assert_close(found.full, expected, atol=1e-5, rtol=1e-5)
    assert found.tokens.shape == (3, *expected.shape[1:])


@pytest.mark.parametrize(("kind", "tree"), TOWERS[:3], ids=IDS[:3])
def test_a_region_of_everything_is_its_image(kind, tree):
    tower, images = make_tower(kind, tree)
    expected = tower(images)
    everything = torch.ones(3, expected.shape[1], dtype=torch.bool)
    found = tower.encode_regions(images, IMAGE_OF_REGION, everything)
    torch.testing.assert_close(found.tokens, expected[IMAGE_OF_REGION], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tree", [VIT, VIT | {"is_clip": True}], ids=["vit", "clip"])
def test_in_the_last_layers_a_region_does_not_see_what_lies_outside(tree):
    tower, images = make_tower(ViT, tree | {"num_layers": 2})  # both layers are region layers
    mask = make_mask(17)
    before = tower.encode_regions(images, IMAGE_OF_REGION, mask).tokens
    images[:, :, 16:] += 1  # the lower half: none of the patches inside the regions
    after = tower.encode_regions(images, IMAGE_OF_REGION, mask).tokens
    torch.testing.assert_close(after[mask], before[mask], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[~mask], before[~mask])


def test_without_region_layers_a_region_is_its_image():
    tower, images = make_tower(ViT, VIT | {"num_region_layers": 0})
    found = tower.encode_regions(images, IMAGE_OF_REGION, make_mask(17))
    torch.testing.assert_close(found.tokens, tower(images)[IMAGE_OF_REGION], atol=1e-5, rtol=1e-5)


def test_a_negative_number_of_region_layers_is_refused():
    with pytest.raises(ConfigError, match="num_region_layers must not be negative, found -1"):
        build(ViT.Config, VIT | {"num_region_layers": -1})
