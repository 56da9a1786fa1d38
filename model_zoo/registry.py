"""The list of networks: this package's modules are found by file, and each adds its own by `@network`."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

LUMA = (0.299, 0.587, 0.114)

Factory = Callable[..., nn.Module]

_FACTORIES: dict[str, Factory] = {}
_RECIPES: dict[str, "Recipe"] = {}


class UnknownNetwork(KeyError):
    """No network has this name; the message lists close ones."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(name)
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
        self.message = f"model_zoo has no network {name!r}; {hint}"

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Recipe:
    """How video frames become the input of a network, and where its public weights come from.

    mean and std are in the network's own channel order, one number a channel, and apply after `scale`.
    A grey network takes the luma of a frame (ITU-R BT.601) as its only channel.
    """

    name: str
    summary: str
    task: Literal["classify", "segment", "detect", "pose", "denoise", "superres"]
    input_size: tuple[int, int, int]
    checkpoint: str
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    channels: Literal["rgb", "bgr", "grey"] = "rgb"
    scale: float = 1 / 255
    multiple: int = 1

    def prepare(self, frame: Tensor) -> Tensor:
        """A decoded frame, uint8 (H, W, 3) in RGB, to the network's input, float32 (1, 3, H', W') or (1, 1, H', W').

        H' and W' are H and W cut at the bottom and right to the network's multiple, so that positions in the
        output need no shift. Nothing is resized; the device stays.
        """
        if not isinstance(frame, Tensor):
            raise ValueError(f"{self.name}: the frame is a {type(frame).__name__}: torch.from_numpy(frame)")
        if frame.dtype != torch.uint8 or frame.dim() != 3 or frame.shape[2] != 3:
            found = f"{str(frame.dtype).removeprefix('torch.')} {tuple(frame.shape)}"
            raise ValueError(f"{self.name}: prepare takes one uint8 RGB frame (H, W, 3), not {found}")
        height, width = (side - side % self.multiple for side in frame.shape[:2])
        if not height or not width:
            found = f"{frame.shape[0]}x{frame.shape[1]}"
            raise ValueError(f"{self.name}: a {found} frame is smaller than {self.multiple} pixels on a side")
        image = frame[:height, :width].permute(2, 0, 1).contiguous()  # while it is bytes
        image = (image.flip(0) if self.channels == "bgr" else image).float()
        if self.channels == "grey":
            image = (image * torch.tensor(LUMA, device=frame.device).view(3, 1, 1)).sum(0, keepdim=True)
        mean, std = (torch.tensor(v, device=frame.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return image.mul_(self.scale).sub_(mean).div_(std).unsqueeze(0)  # in place: fresh memory costs more


def network(recipe: Recipe) -> Callable[[Factory], Factory]:
    """Registers the decorated factory under `recipe.name`; a name taken by another factory is refused."""

    def register(factory: Factory) -> Factory:
        if recipe.name in _FACTORIES:
            taken = _FACTORIES[recipe.name].__module__
            raise ValueError(f"{factory.__module__}: the name {recipe.name!r} is taken by {taken}")
        _FACTORIES[recipe.name] = factory
        _RECIPES[recipe.name] = recipe
        return factory

    return register


@cache
def _discover() -> None:
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def names() -> list[str]:
    """Every network's name, sorted."""
    _discover()
    return sorted(_FACTORIES)


def recipe(name: str) -> Recipe:
    """The recipe of one network; UnknownNetwork lists close names."""
    if name not in names():
        raise UnknownNetwork(name, names())
    return _RECIPES[name]


def create(name: str, *, seed: int | None = None, **kwargs: Any) -> nn.Module:
    """A network with random weights in eval mode; kwargs go to its factory.

    With a seed the weights are always the same and torch's global generator is left as it was.
    """
    recipe(name)
    if seed is None:
        return _FACTORIES[name](**kwargs).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _FACTORIES[name](**kwargs).eval()
