"""How images become the input of a converted network: a recipe that travels in its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

import model_zoo
from deltaconvert.errors import InputError
from model_zoo import Recipe


def recipe_for(arch: str, input_size: tuple[int, ...], **options: Any) -> Recipe:
    """The recipe of a network: model_zoo's where it has one, else plain RGB, or grey for one channel, in 0..1.

    arch: as checkpoint.build takes it, also resnet18(classes=10).
    options: fields of the recipe to set, those that are None left as they are.
    """
    size = (input_size[-3], input_size[-2], input_size[-1]) if len(input_size) > 2 else (3, 0, 0)
    plain = Recipe(name=arch, summary="", task="classify", input_size=size, checkpoint="")
    if size[0] == 1:
        plain = replace(plain, channels="grey", mean=(0.0,), std=(1.0,))
    name = arch.partition("(")[0].strip()
    found = model_zoo.recipe(name) if name in model_zoo.names() else plain
    return _checked(replace(found, **{key: value for key, value in options.items() if value is not None}))


def told(recipe: Recipe) -> str:
    """RGB in 0..1, less 0.485,0.456,0.406, over 0.229,0.224,0.225: what the network gets of an image."""
    kind = "grey" if recipe.channels == "grey" else recipe.channels.upper()
    parts = [f"{kind} in 0..{255 * recipe.scale:.6g}"]
    if any(recipe.mean):
        parts.append(f"less {_listed(recipe.mean)}")
    if set(recipe.std) != {1.0}:
        parts.append(f"over {_listed(recipe.std)}")
    if recipe.multiple > 1:
        parts.append(f"cut to multiples of {recipe.multiple} pixels")
    return ", ".join(parts)


def doubted(recipe: Recipe) -> str | None:
    """What cannot be meant: a mean of images in another range than the scale makes. None where nothing is wrong."""
    top, mean = 255 * recipe.scale, max(map(abs, recipe.mean))
    said = f"images are in 0..{top:.6g}, the mean is {_listed(recipe.mean)}"
    if mean > top or max(map(abs, recipe.std)) > 2 * top:
        return f"{said}, the deviation {_listed(recipe.std)}: --scale 1 leaves them in 0..255"
    if top > 100 and 0 < mean <= 1:
        return (
            f"{said}, as of images in 0..1: leave --scale out, or give the --mean and --std of 0..{top:.6g}"
        )
    return None


def to_json(recipe: Recipe) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(recipe).items()
        if key not in ("summary", "task", "checkpoint")
    }


def from_json(value: Any) -> Recipe:
    """The recipe in a file's `info`; InputError if it has none or a wrong one."""
    if not isinstance(value, Mapping):
        raise InputError(
            "the file does not say how images become its input, as those of `deltaconvert convert` do: in Python set "
            'delta.info["recipe"] = feed.to_json(feed.recipe_for(NAME, (1, 3, H, W))) before delta.save(FILE)'
        )
    numbers: dict[str, Any] = {key: value.get(key) for key in ("mean", "std", "input_size")}
    channels: Any = value.get("channels")
    lists = all(isinstance(v, list) and all(map(_is_number, v)) for v in numbers.values())
    if not lists or len(numbers["input_size"]) != 3:
        raise InputError(
            "the file says how images become its input in an unknown way: convert the network again"
        )
    scale: Any = value.get("scale")
    multiple: Any = value.get("multiple")
    if not _is_number(scale) or type(multiple) is not int:
        raise InputError("the file's recipe has no scale or multiple: convert the network again")
    name, fields = str(value.get("name")), {key: tuple(v) for key, v in numbers.items()}
    return _checked(
        Recipe(
            name, "", "classify", checkpoint="", channels=channels, scale=scale, multiple=multiple, **fields
        )
    )


def image_of(recipe: Recipe, image: Tensor) -> Tensor:
    """Images (N, C, H, W) in 0..1, RGB or grey as the recipe has it, as the network takes them.

    Another number of channels than the recipe's stays as it is.
    """
    if image.shape[1] != len(recipe.mean):
        return image
    mean, std = (torch.tensor(v, dtype=image.dtype).view(-1, 1, 1) for v in (recipe.mean, recipe.std))
    image = image.flip(1) if recipe.channels == "bgr" else image
    return (image * 255 * recipe.scale - mean) / std


def _checked(recipe: Recipe) -> Recipe:
    if recipe.channels not in ("rgb", "bgr", "grey"):
        raise InputError(f"channels is {recipe.channels!r}: choose from rgb, bgr, grey")
    count = 1 if recipe.channels == "grey" else 3
    if len(recipe.mean) != count or len(recipe.std) != count or 0 in recipe.std:
        raise InputError(
            f"mean and std of {recipe.channels} images have length {count}, std is not zero; "
            f"found {recipe.mean} and {recipe.std}"
        )
    if not 1 <= recipe.multiple <= 1024:
        raise InputError(f"multiple is {recipe.multiple}: it is a number of pixels from 1 to 1024")
    return recipe


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
