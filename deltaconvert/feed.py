"""How images become the input of a converted network: a recipe that travels in its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from torch import Tensor

import model_zoo
from deltaconvert.errors import InputError
from model_zoo import Recipe


def recipe_for(arch: str, input_size: tuple[int, ...], **options: Any) -> Recipe:
    """The recipe of a network: model_zoo's where it has one, else plain RGB in 0..1.

    options: fields of the recipe to set, those that are None left as they are.
    """
    size = (input_size[-3], input_size[-2], input_size[-1]) if len(input_size) > 2 else (3, 0, 0)
    plain = Recipe(name=arch, summary="", task="classify", input_size=size, checkpoint="")
    found = model_zoo.recipe(arch) if arch in model_zoo.names() else plain
    return _checked(replace(found, **{key: value for key, value in options.items() if value is not None}))


def to_json(recipe: Recipe) -> dict[str, Any]:
    return {
        key: value for key, value in asdict(recipe).items() if key not in ("summary", "task", "checkpoint")
    }


def from_json(value: Any) -> Recipe:
    """The recipe in a file's `info`; InputError if it has none or a wrong one."""
    if not isinstance(value, Mapping):
        raise InputError("the file does not say how images become its input: convert the network again")
    numbers: dict[str, Any] = {key: value.get(key) for key in ("mean", "std", "input_size")}
    if not all(isinstance(v, list) and len(v) == 3 and all(map(_is_number, v)) for v in numbers.values()):
        raise InputError(
            "the file says how images become its input in an unknown way: convert the network again"
        )
    channels: Literal["rgb", "bgr"] = "bgr" if value.get("channels") == "bgr" else "rgb"
    scale: Any = value.get("scale")
    multiple: Any = value.get("multiple")
    if not _is_number(scale) or type(multiple) is not int:
        raise InputError("the file's recipe has no scale or multiple: convert the network again")
    lists = {key: tuple(v) for key, v in numbers.items()}
    name = str(value.get("name"))
    return _checked(
        Recipe(
            name, "", "classify", checkpoint="", channels=channels, scale=scale, multiple=multiple, **lists
        )
    )


def image_of(recipe: Recipe, image: Tensor) -> Tensor:
    """Images (N, 3, H, W) in 0..1, RGB, as the network takes them; other channel counts stay as they are."""
    if image.shape[1] != 3:
        return image
    mean, std = (torch.tensor(v, dtype=image.dtype).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    image = image.flip(1) if recipe.channels == "bgr" else image
    return (image * 255 * recipe.scale - mean) / std


def _checked(recipe: Recipe) -> Recipe:
    if len(recipe.mean) != 3 or len(recipe.std) != 3 or 0 in recipe.std:
        raise InputError(
            f"mean and std are three numbers each, std not zero; found {recipe.mean} and {recipe.std}"
        )
    if recipe.channels not in ("rgb", "bgr"):
        raise InputError(f"channels is {recipe.channels!r}: choose from rgb, bgr")
    if not 1 <= recipe.multiple <= 1024:
        raise InputError(f"multiple is {recipe.multiple}: it is a number of pixels from 1 to 1024")
    return recipe


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
