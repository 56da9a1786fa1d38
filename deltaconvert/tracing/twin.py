"""Copies of a network, for what must leave no trace in it."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

M = TypeVar("M", bound=nn.Module)


def twin(network: M) -> M:
    """A deep copy in the same modes (training or not). Tensors with a gradient history, as torch.nn.utils.weight_norm
    and pruning leave them, are copied as values: torch refuses to copy them otherwise."""
    results = [
        value
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    copied = copy.deepcopy(network, {id(value): value.detach().clone() for value in results})
    modes = {path: module.training for path, module in network.named_modules()}
    for path, module in copied.named_modules():
        mode = modes.get(path, network.training)
        if module.training != mode:  # torchvision's feature extractors copy themselves in training mode
            module.train(mode)
    return copied


def is_exported(model: nn.Module) -> bool:
    """The module of a program of torch.export: it always claims to be in training mode, and refuses eval()."""
    return isinstance(model, fx.GraphModule) and "eval" in vars(model)


def uncompiled(network: nn.Module) -> nn.Module:
    """The network without wrappers of torch.compile and data parallelism; a copy, if parts of it are wrapped."""
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return uncompiled(network.module)
    if "_orig_mod" in network._modules:
        return uncompiled(network._orig_mod)  # type: ignore[arg-type]
    if not any("_orig_mod" in module._modules for module in network.modules()):
        return network
    network = twin(network)
    for module in list(network.modules()):
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = child._modules.get("_orig_mod", child)
    return network


def with_plain_weights(network: M) -> M:
    """Changes the network: what weight_norm, spectral_norm, pruning and other parametrizations compute of its weights
    in every call becomes the weight.

    Not by torch's remove_parametrizations, which changes the class that all copies of a module share.
    """
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            made = {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in made.items():
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
    return network
