"""Groups by rule, and AdamW as the originals compute it."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from configs.schema import load_settings
from optim import OptimConfig, counted_updates, freeze, is_decayed, make_groups, make_optimizer, set_learning_rate
from utils.precision import guarded_step

ROOT = Path(__file__).resolve().parent.parent


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.head = nn.Linear(2, 1)
        self.bias_table = nn.Parameter(torch.ones(2, 2))
        self.temperature = nn.Parameter(torch.tensor(0.07))


def names_by_rate(config: OptimConfig, fresh: set[str] = frozenset()) -> dict[tuple[float, float], list[str]]:
    groups = make_groups(Tiny(), config, fresh)
    return {(group["lr"], group["weight_decay"]): [name for name, _ in group["params"]] for group in groups}


def test_only_matrices_are_decayed_by_default() -> None:
    groups = names_by_rate(OptimConfig(lr=1.0, weight_decay=0.1))
    assert groups[1.0, 0.1] == ["tower.0.weight", "head.weight"]
    assert len(groups[1.0, 0.0]) == 6


def test_rules_can_decay_norms_and_scalars_as_an_original_did() -> None:
    groups = names_by_rate(OptimConfig(lr=1.0, weight_decay=0.1, no_decay=["bias"], decays_vectors=True))
    assert groups[1.0, 0.1] == ["temperature", "tower.0.weight", "tower.1.weight", "head.weight"]


def test_fresh_parameters_and_named_ones_get_their_multiplier() -> None:
    config = OptimConfig(lr=1.0, weight_decay=0.0, fresh_lr_multiplier=2.0, lr_multipliers={"temperature": 5.0})
    groups = names_by_rate(config, {"head.weight", "temperature"})
    assert groups[2.0, 0.0] == ["head.weight"] and groups[5.0, 0.0] == ["temperature"]


def test_frozen_parameters_are_in_no_group() -> None:
    module = Tiny()
    assert freeze(module, ["^tower"]) == [name for name, _ in module.named_parameters() if name.startswith("tower")]
    assert sum(len(group["params"]) for group in make_groups(module, OptimConfig())) == 4
    with pytest.raises(ValueError, match="no parameter matches 'towr'"):
        freeze(module, ["towr"])


def test_hf_flavour_equals_its_plain_formula_with_a_changing_rate() -> None:
    torch.manual_seed(0)
    config = OptimConfig(lr=0.05, weight_decay=0.3, eps=1e-3, flavour="hf")
    module = nn.Linear(3, 4, bias=False).double()
    optimizer = make_optimizer(module, config)
    p, m, v = module.weight.detach().clone(), 0.0, 0.0
    for step, factor in enumerate((0.0, 0.5, 1.0, 0.2)):
        gradient = torch.randn_like(p)
        module.weight.grad = gradient.clone()
        set_learning_rate(optimizer, config, factor, step)
        optimizer.step()
        m, v, lr = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2, config.lr * factor
        p = p - lr * (1 - 0.98 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1)) * m / (v**0.5 + config.eps)
        p = p - lr * config.weight_decay * p
        torch.testing.assert_close(module.weight.data, p, rtol=1e-12, atol=1e-14)


def test_a_guarded_step_divides_the_gradient_and_skips_a_bad_one() -> None:
    module = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, fused=True)
    before = module.weight.item()
    module.weight.grad = torch.full((1, 1), 3.0)
    guarded_step(optimizer, torch.tensor(2.0), torch.tensor(1.0))
    assert module.weight.item() == before
    module.weight.grad = torch.full((1, 1), 3.0)
    guarded_step(optimizer, torch.tensor(2.0), torch.tensor(0.0))
    assert module.weight.item() == pytest.approx(before - 1.5)


@pytest.mark.parametrize("settings", [{"betas": [0.9]}, {"lr": -1.0}, {"no_decay": ["("]}])
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError):
        OptimConfig(**settings)


def test_hf_flavour_counts_the_updates_of_every_parameter_for_itself() -> None:
    torch.manual_seed(0)
    config = OptimConfig(lr=0.05, weight_decay=0.3, eps=1e-3, flavour="hf")
    module = nn.ModuleList([nn.Linear(3, 4, bias=False).double(), nn.Linear(3, 4, bias=False).double()])
    optimizer, num_updates = make_optimizer(module, config), Counter()
    plain = [[linear.weight.detach().clone(), 0.0, 0.0, 0] for linear in module]
    for step, reached in enumerate(([0], [0, 1], [0], [0, 1])):
        for k in reached:
            gradient = torch.randn_like(module[k].weight)
            module[k].weight.grad = gradient.clone()
            p, m, v, count = plain[k]
            m, v, count = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2, count + 1
            p = p - 0.05 * (1 - 0.98**count) ** 0.5 / (1 - 0.9**count) * m / (v.sqrt() + 1e-3)
            plain[k] = [p - 0.05 * 0.3 * p, m, v, count]
        set_learning_rate(optimizer, config, 1.0, step)
        with counted_updates(optimizer, config, num_updates):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for linear, (p, *_) in zip(module, plain, strict=True):
        torch.testing.assert_close(linear.weight.detach(), p, rtol=1e-12, atol=1e-12)
    assert num_updates == {"0.weight": 4, "1.weight": 2}


def test_cclm_decays_no_norm_of_any_image_tower():
    config = load_settings(ROOT / "configs/cclm/pretrain_3m.yaml").optim
    gain = nn.Parameter(torch.ones(2))
    norms = ("norm.weight", "norm_pre.weight", "blocks.0.norm1.weight", "blocks.0.norm2.weight")
    assert not any(is_decayed(f"model.image_encoder.backbone.{name}", gain, config) for name in norms)
    assert is_decayed("model.match_head.1.weight", gain, config)  # as the original does
