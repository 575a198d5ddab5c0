"""A module spread over processes: DDP or FSDP2 around it, and its whole state out of and back into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from utils.distributed import world_size

Wrap = Literal["ddp", "fsdp2", "none"]


def shard(module: nn.Module) -> None:
    """Spread the parameters over the processes, layer by layer: every entry of a ModuleList is gathered on its own.

    An entry with a `sharded_units()` is gathered by these parts: other methods than its forward use them.
    """
    _without_scalars(module)
    for part in list(module.modules()):
        if isinstance(part, nn.ModuleList):
            for layer in part:
                units = layer.sharded_units() if hasattr(layer, "sharded_units") else [layer]
                for unit in units:
                    if not isinstance(unit, FSDPModule):  # two layers may share one
                        fully_shard(unit)
    fully_shard(module)


def _without_scalars(module: nn.Module) -> None:
    """Make parameters of no dimension vectors of one number, which can be sharded; the modules that own them allow
    both.
    """
    module.stored_as_vectors = {name for name, parameter in module.named_parameters() if parameter.dim() == 0}
    for name in module.stored_as_vectors:
        owner, _, last = name.rpartition(".")
        scalar = module.get_parameter(name)
        vector = nn.Parameter(scalar.detach().reshape(1), requires_grad=scalar.requires_grad)
        setattr(module.get_submodule(owner), last, vector)


def _reshaped(module: nn.Module, weights: dict[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The same weights, those that are stored as vectors in another shape."""
    names = module.stored_as_vectors
    return {name: value.reshape(shape) if name in names else value for name, value in weights.items()}


def wrap_module(module: nn.Module, wrap: Wrap, device: torch.device, *, find_unused: bool) -> nn.Module:
    """What training calls in place of the module. Sharding changes the module itself, before the optimizer is made."""
    if world_size() == 1 or wrap == "none":
        return module
    if wrap == "fsdp2":
        shard(module)
        return module
    ignored = [
        f"{prefix}.{name}"
        for prefix, part in module.named_modules()
        if getattr(part, "is_replicated", False)  # what is equal everywhere need not be sent at every step
        for name, _ in (*part.named_parameters(), *part.named_buffers())
    ]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=find_unused)


@contextmanager
def gradient_exchange(wrapped: nn.Module, is_wanted: bool) -> Iterator[None]:
    """Whether gradients travel between processes in the backward pass inside: only in the last one of a step."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(is_wanted)
        yield
    elif isinstance(wrapped, DistributedDataParallel) and not is_wanted:
        with wrapped.no_sync():
            yield
    else:
        yield


@contextmanager
def whole_parameters(module: nn.Module) -> Iterator[None]:
    """Calls of the module's methods other than forward see whole parameters inside."""
    if isinstance(module, FSDPModule):
        module.unshard()
    yield
    if isinstance(module, FSDPModule):
        module.reshard()


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_FROM_WHOLE = StateDictOptions(full_state_dict=True)


def whole_state(module: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of the module and the optimizer as one process would hold them; complete on the main process."""
    if isinstance(module, FSDPModule):
        weights = get_model_state_dict(module, options=_WHOLE)
        return _reshaped(module, weights, ()), get_optimizer_state_dict(module, optimizer, options=_WHOLE)
    return module.state_dict(), optimizer.state_dict()


def load_whole_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put whole weights back; every name must be there."""
    if isinstance(module, FSDPModule):
        set_model_state_dict(module, _reshaped(module, weights, (1,)), options=_FROM_WHOLE)
    else:
        module.load_state_dict(weights)


def load_whole_optimizer(module: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put the optimizer's state back; the groups must hold the same parameters as when it was saved."""
    if isinstance(module, FSDPModule):
        set_optimizer_state_dict(module, optimizer, state, options=_FROM_WHOLE)
        return
    found = [group["param_names"] for group in optimizer.param_groups]
    if [group.get("param_names") for group in state["param_groups"]] != found:
        raise ValueError("the checkpoint's parameter groups are not those of the settings; start over with --restart")
    # Rates and decays come from the configuration, moments from the checkpoint.
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def load_moments(module: nn.Module, optimizer: Optimizer, moments: dict[str, dict[str, Tensor]], count: int) -> None:
    """Put AdamW's moments after `count` updates into the optimizer, by parameter; every trained one must have some."""
    if isinstance(module, FSDPModule):
        raise ValueError("moments of another program are for whole parameters; allowed for wrap: ddp, none")
    state, names = {}, [name for group in optimizer.param_groups for name in group["param_names"]]
    absent = [name for name in names if name not in moments]
    if absent:
        raise ValueError(
            f"the checkpoint's optimizer has no state of {len(absent)} parameters: {', '.join(absent[:4])}"
        )
    for number, name in enumerate(names):
        for kind, value in moments[name].items():
            if value.shape != module.get_parameter(name).shape:
                raise ValueError(f"{kind} of {name} is {list(value.shape)}, the parameter has another shape")
        state[number] = {"step": torch.tensor(float(count)), **moments[name]}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
