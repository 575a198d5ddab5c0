import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.resnet import AttentionPool, ResNet
from utils.config import build


def tower(**changes):
    torch.manual_seed(0)
    sizes = {"image_size": 64, "width": 4, "depths": [1, 1, 1, 2], "num_heads": 4}
    return ResNet(build(ResNet.Config, sizes | changes))


def test_pooling_agrees_with_attention_of_every_token_of_which_the_first_is_read():
    torch.manual_seed(0)
    pool, tokens = AttentionPool(16, 4, 3), torch.randn(2, 9, 16)
    x = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + pool.position
    plain = nn.MultiheadAttention(16, 4, batch_first=True)
    plain.in_proj_weight.data = torch.cat([pool.query.weight, pool.key_value.weight])
    plain.in_proj_bias.data = torch.cat([pool.query.bias, pool.key_value.bias])
    plain.out_proj.weight.data, plain.out_proj.bias.data = torch.eye(16), torch.zeros(16)
    assert torch.allclose(pool(tokens), plain(x, x, x)[0][:, :1], atol=1e-6)


def test_a_block_that_strides_averages_both_ways():
    block = tower().backbone.stages[1][0].eval()
    x = torch.randn(1, 16, 8, 8)
    inner = F.relu(block.second(F.relu(block.first(x))))
    expected = F.relu(block.third(F.avg_pool2d(inner, 2)) + block.shortcut(F.avg_pool2d(x, 2)))
    assert torch.equal(block(x), expected)


def test_a_frozen_tower_keeps_its_running_statistics():
    frozen, free = tower(is_frozen=True).train(), tower().train()
    for each, moves in ((frozen, False), (free, True)):
        before = each.backbone.stem[0][1].running_mean.clone()
        each(torch.randn(2, 3, 64, 64))
        assert (not torch.equal(each.backbone.stem[0][1].running_mean, before)) == moves


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 48}, "image_size 48 is not a multiple of 32"),
        ({"depths": [1, 2]}, "depths must be four numbers"),
        ({"num_heads": 5}, "a multiple of num_heads"),
        ({"recomputes_layers": True}, "twice in a ResNet's running statistics"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tower(**changes)
