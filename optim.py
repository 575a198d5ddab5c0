"""Which parameter is trained how: groups by rules on names, and the optimizer over them."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW, Optimizer

from utils.lars import Lars


@dataclass
class GroupRule:
    """What parameters get whose names match, whatever else is said about them; None leaves it."""

    match: str
    lr: float | None = None
    weight_decay: float | None = None


@dataclass
class OptimConfig:
    """The optimizer and its groups. Rules on names are regular expressions, searched anywhere in a parameter's name."""

    name: Literal["adamw", "lars"] = "adamw"  # LARS has momentum, AdamW betas, eps and flavour
    momentum: float = 0.9
    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-8
    # torch: bias correction of the denominator before eps, decay before the update; hf: as the originals' optimizer.
    flavour: Literal["torch", "hf"] = "torch"
    no_decay: list[str] = field(default_factory=lambda: [r"bias", r"temperature", r"log_scale$"])
    decays_vectors: bool = False  # whether gains of norms and other parameters below two dimensions may be decayed
    fresh_lr_multiplier: float = 1.0  # for parameters that no public weights initialise
    lr_multipliers: dict[str, float] = field(default_factory=dict)  # name rule -> factor; the last that matches wins
    frozen: list[str] = field(default_factory=list)  # name rules of parameters that are not trained
    rules: list[GroupRule] = field(default_factory=list)  # the last that matches and names a value wins

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in 0 ... 1, found {self.betas}")
        for name in ("lr", "weight_decay", "eps", "momentum", "fresh_lr_multiplier"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        for rule in [*self.no_decay, *self.lr_multipliers, *self.frozen, *(rule.match for rule in self.rules)]:
            try:
                re.compile(rule)
            except re.error as error:
                raise ValueError(f"'{rule}' is not a regular expression: {error}") from error


def freeze(module: nn.Module, rules: Iterable[str]) -> list[str]:
    """Exclude parameters whose names match a rule from training; their names. A rule must match something."""
    names = [name for name, _ in module.named_parameters()]
    frozen = []
    for rule in rules:
        matched = [name for name in names if re.search(rule, name)]
        if not matched:
            raise ValueError(f"optim.frozen: no parameter matches '{rule}'; names are like {', '.join(names[:3])}")
        frozen += matched
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    return frozen


def is_decayed(name: str, parameter: nn.Parameter, config: OptimConfig) -> bool:
    """Whether weight decay acts on a parameter."""
    if parameter.ndim < 2 and not config.decays_vectors:
        return False
    return not any(re.search(rule, name) for rule in config.no_decay)


def lr_multiplier(name: str, fresh: set[str], config: OptimConfig) -> float:
    """What the learning rate of a parameter is multiplied by."""
    factor = config.fresh_lr_multiplier if name in fresh else 1.0
    for rule, value in config.lr_multipliers.items():
        if re.search(rule, name):
            factor = value
    return factor


def make_groups(module: nn.Module, config: OptimConfig, fresh: set[str] = frozenset()) -> list[dict[str, Any]]:
    """Parameter groups of equal decay and learning rate, with `params` as (name, parameter) and the base values."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = config.lr * lr_multiplier(name, fresh, config)
        decay = config.weight_decay if is_decayed(name, parameter, config) else 0.0
        for rule in config.rules:
            if re.search(rule.match, name):
                lr = lr if rule.lr is None else rule.lr
                decay = decay if rule.weight_decay is None else rule.weight_decay
        group = groups.setdefault((lr, decay), {"params": [], "base_lr": lr, "base_weight_decay": decay})
        group["params"].append((name, parameter))
    return [group | {"lr": group["base_lr"], "weight_decay": group["base_weight_decay"]} for group in groups.values()]


def make_optimizer(module: nn.Module, config: OptimConfig, fresh: set[str] = frozenset()) -> Optimizer:
    """Fused AdamW, or LARS, over the module's trained parameters."""
    groups = make_groups(module, config, fresh)
    if not groups:
        raise ValueError("nothing to train: every parameter is frozen")
    if config.name == "lars":
        return Lars(groups, lr=config.lr, momentum=config.momentum)
    return AdamW(groups, lr=config.lr, betas=tuple(config.betas), eps=config.eps, fused=True)


def set_learning_rate(optimizer: Optimizer, config: OptimConfig, factor: float, step: int) -> None:
    """Prepare the optimizer for a step, counted from 0: base rates times factor, in the terms of the flavour."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
        if config.name == "adamw" and config.flavour == "hf":
            group.update(hf_as_torch(group["lr"], group["base_weight_decay"], config.eps, config.betas[1], step + 1))


def hf_as_torch(lr: float, weight_decay: float, eps: float, beta2: float, count: int) -> dict[str, float]:
    """torch's AdamW settings that make update number `count` (from 1) equal to the originals' AdamW.

    There eps is added to the uncorrected root, and the decay p -= lr * wd * p acts on the updated parameter, so
    p (1 - lr wd) - lr (1 - lr wd) m^ / (sqrt(v^) + eps / sqrt(1 - beta2^count)). A skipped update still counts.
    """
    kept = 1 - lr * weight_decay
    return {"lr": lr * kept, "weight_decay": weight_decay / kept, "eps": eps / (1 - beta2**count) ** 0.5}


@contextmanager
def counted_updates(optimizer: Optimizer, config: OptimConfig, num_updates: Counter[str]) -> Iterator[None]:
    """Around an optimizer step: counts the update of every parameter that has a gradient, in num_updates by name.

    The hf flavour's eps depends on a parameter's own count: inside, parameters that were updated more often than
    others (streams need not reach all of them) are in groups of their own.
    """
    whole, split = optimizer.param_groups, []
    for group in whole:
        by_count: dict[int, list[nn.Parameter]] = {}
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if parameter.grad is not None:
                num_updates[name] += 1
                by_count.setdefault(num_updates[name], []).append(parameter)
        for count, parameters in by_count.items():
            eps = config.eps / (1 - config.betas[1] ** count) ** 0.5
            split.append(group | {"params": parameters, "eps": eps})
    if config.name == "adamw" and config.flavour == "hf":
        optimizer.param_groups = split
    try:
        yield
    finally:
        optimizer.param_groups = whole
