"""Networks by their names, and the recipes that make inputs of images."""

import sys
from pathlib import Path

import pytest
import torch
from oracle import leaves
from torch import Tensor, nn

import model_zoo
from model_zoo import registry

every_network = pytest.mark.parametrize("name", model_zoo.names())


def test_seeded_weights_repeat_and_leave_the_global_generator() -> None:
    before = torch.get_rng_state()
    one, same, other = (model_zoo.create("fastestdet", seed=seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    key = "SPP.output.0.weight"
    assert torch.equal(one[key], same[key])
    assert not torch.equal(one[key], other[key])


def test_create_passes_arguments_to_the_factory() -> None:
    model = model_zoo.create("resnet18", classes=7)
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize("ask", [model_zoo.create, model_zoo.recipe])
def test_an_unknown_name_lists_close_ones(ask) -> None:
    with pytest.raises(KeyError) as caught:
        ask("resnet51")
    assert isinstance(caught.value, model_zoo.UnknownNetwork)
    assert str(caught.value).startswith("model_zoo has no network 'resnet51'; did you mean resnet50")
    with pytest.raises(model_zoo.UnknownNetwork, match=f"known: {', '.join(model_zoo.names())}"):
        ask("qqqq")


def test_a_new_module_is_found_and_a_taken_name_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
from torch import nn
from model_zoo import Recipe, network

@network(Recipe(name="tiny", summary="", task="segment", input_size=(3, 8, 8), checkpoint=""))
def tiny() -> nn.Module:
    return nn.Conv2d(3, 1, 1)
"""
    (tmp_path / "tiny_for_test.py").write_text(source)
    monkeypatch.setattr(model_zoo, "__path__", [*model_zoo.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(registry, "_RECIPES", dict(registry._RECIPES))
    registry._discover.cache_clear()
    try:
        assert "tiny" in model_zoo.names()
    finally:
        sys.modules.pop("model_zoo.tiny_for_test", None)
        vars(model_zoo).pop("tiny_for_test", None)
    with pytest.raises(ValueError, match=r"'tiny' is taken by model_zoo\.tiny_for_test"):
        model_zoo.network(model_zoo.recipe("tiny"))(nn.Identity)


@every_network
def test_recipe_describes_the_network(name: str) -> None:
    recipe = model_zoo.recipe(name)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.checkpoint
    assert (
        recipe.input_size[0] == len(recipe.mean) == len(recipe.std) == (1 if recipe.channels == "grey" else 3)
    )
    assert all(side % recipe.multiple == 0 for side in recipe.input_size[1:])


@every_network
def test_prepare_crops_orders_and_normalises(name: str) -> None:
    recipe = model_zoo.recipe(name)
    frame = torch.randint(0, 256, (45, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = recipe.prepare(frame)
    height, width = (32, 64) if recipe.multiple == 32 else (45, 70)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert tuple(x.shape) == (1, recipe.input_size[0], height, width)
    red, green, blue = frame[height - 1, width - 1].tolist()
    values = {
        "rgb": (red, green, blue),
        "bgr": (blue, green, red),
        "grey": (0.299 * red + 0.587 * green + 0.114 * blue,),
    }
    for channel, value in enumerate(values[recipe.channels]):
        value *= recipe.scale
        expected = (value - recipe.mean[channel]) / recipe.std[channel]
        assert x[0, channel, -1, -1].item() == pytest.approx(expected, abs=1e-5)
    with torch.inference_mode():
        assert all(leaf.isfinite().all() for leaf in leaves(model_zoo.create(name, seed=0)(x)))


def test_prepare_of_known_pixels() -> None:
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).expand(32, 32, 3)
    assert model_zoo.recipe("fastestdet").prepare(red)[0, :, 0, 0].tolist() == [0, 0, 1]
    assert model_zoo.recipe("unet").prepare(red)[0, :, 0, 0].tolist() == [1, 0, 0]
    imagenet = model_zoo.recipe("resnet50").prepare(red)[0, :, 0, 0].tolist()
    assert imagenet == pytest.approx([2.2489, -2.0357, -1.8044], abs=1e-4)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            torch.zeros(32, 32, 3),
            r"fastestdet: prepare takes one uint8 RGB frame \(H, W, 3\), not float32 \(32, 32, 3\)",
        ),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), r"not uint8 \(3, 32, 32\)"),
        (torch.zeros(31, 64, 3, dtype=torch.uint8), "a 31x64 frame is smaller than 32 pixels on a side"),
    ],
)
def test_prepare_refuses_what_is_no_frame(frame: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_zoo.recipe("fastestdet").prepare(frame)
