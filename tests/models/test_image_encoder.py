import pytest
import timm
import torch
from torch import nn

from models.image_encoder import PatchProjection, Swin, Timm, ViT, is_patch_projection
from utils.config import ConfigError, build


def test_patch_projection_equals_the_convolution():
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, 4, 4)
    images = torch.randn(2, 3, 12, 8)
    expected = convolution(images)
    torch.testing.assert_close(PatchProjection.like(convolution)(images), expected, atol=1e-6, rtol=1e-5)
    assert not is_patch_projection(nn.Conv2d(3, 5, 3, 1)) and not is_patch_projection(nn.Conv2d(3, 5, 4, 4, padding=1))


def test_pixels_are_normalised_as_floats_would_be():
    tower = ViT(build(ViT.Config, {"image_size": 32, "width": 24, "num_layers": 1, "num_heads": 2})).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(x)[:, None, None] for x in (tower.config.mean, tower.config.std))
    torch.testing.assert_close(tower(pixels), tower((pixels / 255 - mean) / std), atol=1e-5, rtol=1e-5)


def test_a_clip_tower_may_have_plain_gelus():
    sizes = {"image_size": 32, "width": 24, "num_layers": 1, "num_heads": 2, "is_clip": True}
    towers = {name: ViT(build(ViT.Config, sizes | {"activation": name})).eval() for name in ("gelu", "quick_gelu")}
    towers["gelu"].load_state_dict(towers["quick_gelu"].state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(towers["gelu"](images), towers["quick_gelu"](images))
    towers["quick_gelu"].backbone.blocks[0].mlp.act = nn.GELU()
    assert torch.equal(towers["gelu"](images), towers["quick_gelu"](images))


def test_swin_puts_the_mean_of_its_tokens_first():
    config = {"image_size": 32, "window_size": 4, "width": 8, "depths": [2, 1], "num_heads": [1, 2]}
    tokens = Swin(build(Swin.Config, config)).eval()(torch.randn(2, 3, 32, 32))
    assert tokens.shape == (2, 1 + 16, 16)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(dim=1))


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_lite0"])
def test_any_timm_tower_gives_tokens_with_a_global_one_first(model):
    tower = Timm(build(Timm.Config, {"model": model, "image_size": 64})).eval()
    tokens = tower(torch.randn(1, 3, 64, 64))
    assert tokens.shape[0] == 1 and tokens.shape[2] == tower.width and tokens.shape[1] > 1
    if not model.startswith("vit"):
        torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tower", "config", "message"),
    [
        (Swin, {"image_size": 200}, "not a multiple of window_size"),
        (ViT, {"image_size": 100}, "not a multiple of patch_size"),
        (Timm, {"model": "resnet1800"}, "no model 'resnet1800'"),
        (ViT, {"std": [1, 1, 0]}, "std above 0"),
    ],
)
def test_impossible_sizes_are_refused_before_building(tower, config, message):
    with pytest.raises(ConfigError, match=message):
        build(tower.Config, config)


def test_timm_names_are_those_of_the_library():
    assert timm.is_model(Timm.Config().model)


def test_frozen_batch_norms_stay_as_loaded():
    found = {}
    for kind in ("local", "frozen"):
        encoder = Timm(Timm.Config(model="resnet10t", image_size=32, batch_norm=kind)).train()
        before = {name: value.clone() for name, value in encoder.named_buffers() if "running" in name}
        encoder(torch.randn(2, 3, 32, 32))
        found[kind] = all(torch.equal(value, before[name]) for name, value in encoder.named_buffers() if name in before)
    assert found == {"local": False, "frozen": True}


def test_synced_batch_norms_keep_their_names():
    plain, synced = (Timm(Timm.Config(model="resnet10t", image_size=32, batch_norm=b)) for b in ("local", "synced"))
    assert plain.state_dict().keys() == synced.state_dict().keys()
    assert any(isinstance(part, torch.nn.SyncBatchNorm) for part in synced.modules())
