"""The network that a command is about: converted, dense or untrained, and frames for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaconvert.cli.options import as_usage, needed, rules_of, shape_of, usage_error
from deltaconvert.cli.show import note, working

if TYPE_CHECKING:
    from deltaconvert.model import DeltaModel
    from model_zoo import Recipe


def opened(
    file: Path | None,
    arch: str | None,
    input: str | None,
    threshold: list[str] | None,
    backend: str,
    device: str,
) -> tuple[DeltaModel, Recipe | None]:
    """The network of a file, or an untrained one by name; and how images become its input, if known."""
    if (file is None) == (arch is None):
        raise usage_error("give either a converted FILE or --arch", "FILE")
    shape = None if input is None else shape_of(input)
    rules = rules_of(threshold)
    import deltaconvert
    import model_zoo
    from deltaconvert import checkpoint, container, feed

    if file is not None:
        if not file.exists() and str(file) in model_zoo.names():
            raise usage_error(f"there is no file {file}: the network of that name is --arch {file}", "FILE")
        expect_nodes(file, threshold)
        with working(f"loading {file}"):
            model = deltaconvert.load(file, backend=backend, device=device)
        recipe = feed.from_json(model.info["recipe"]) if "recipe" in model.info else None
        if shape is not None or threshold:
            frame = example_frame(recipe, shape or model.example[0][0], None)
            chosen = rules if threshold else dict(model.rules)
            args, _ = model.signature.call([frame])
            model = model.with_thresholds(chosen, *args)
        return model, recipe
    with as_usage("--arch"):
        network = checkpoint.build(arch or "")
    recipe = feed.recipe_for(arch or "", shape or (1, 0, 0, 0))
    if shape is None and 0 in recipe.input_size:
        raise usage_error("is needed for a network that is not of model_zoo", "--input")
    place = container.device_named(device)
    frame = example_frame(recipe, shape or (1, *recipe.input_size), None).to(place)
    with working(f"converting {arch}"):
        return deltaconvert.convert(network.to(place), frame, threshold=rules, backend=backend), recipe


def expect_nodes(file: Path, threshold: list[str] | None) -> None:
    """A network may take half a minute to load: that it has no node of the name in a rule is said before, where the
    file alone tells."""
    from deltaconvert import container
    from deltaconvert.thresholds import KINDS, refuse_unknown

    named = [rule.rpartition("=")[0].strip() for rule in threshold or () if "=" in rule]
    exact = [name for name in named if name not in KINDS and not set(name) & set("*?[(")]
    if not exact:
        return
    paths = container.paths_in(file)
    alone = [name for name in exact if not any(name.startswith(f"{path}.") for path in paths)]
    with as_usage("--threshold"):
        refuse_unknown(alone, paths, "threshold")


def network_of(
    file: Path | None,
    arch: str | None,
    shape: tuple[int, ...] | None,
    trust: bool = False,
    entry: str | None = None,
) -> tuple[Any, str, tuple[Any, ...]]:
    """The dense network, its name, and an example call of the right shapes."""
    from deltaconvert.formats import NETWORKS, Kind, kind_of, load_network

    kind = Kind.WEIGHTS if file is None else kind_of(file)
    if file is not None and kind is not Kind.WEIGHTS:
        for given, option in ((arch, "--arch"), (entry, "--entry")):
            if given is not None and kind in NETWORKS:
                raise usage_error(f"{file} holds its network itself: leave the option out", option)
        network, call = load_network(file, input=shape, trust=trust)
        return network, file.name, call
    which = "these are weights, of which network" if file else "which network"
    names = "`deltaconvert zoo` lists some, yours is package.module:factory"
    arch = needed(arch, "--arch", f": {which}? {names}")
    shape = needed(shape, "--input", ", such as 1x3x720x1280")
    import torch

    from deltaconvert import checkpoint

    with as_usage("--arch"):
        dense = checkpoint.build(arch)
    if file is not None:
        weights = checkpoint.read_weights(file, entry)
        checkpoint.load_into(dense, weights.state, file)
        if weights.others:
            ways = " or ".join(f"--entry {other}" for other in weights.others)
            note(f"{file}: the weights are those of its entry {weights.entry}; it has others: {ways}")
    return dense, arch, (torch.empty(shape, device="meta"),)


def example_frame(recipe: Recipe | None, shape: tuple[int, ...], video: Path | None) -> Any:
    """A frame of that size: of a video, or of noise; its batch is that many copies."""
    import torch

    from deltaconvert.feed import image_of
    from deltaconvert.video import read
    from deltaconvert.watching.watch import resize

    if video is not None and recipe is not None and len(shape) == 4:
        with read(video, limit=1) as reader:
            frame = resize(next(reader), (shape[3], shape[2]))
        prepared = recipe.prepare(frame)
        return prepared.expand(shape[0], -1, -1, -1).contiguous()
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return noise if recipe is None or len(shape) != 4 else image_of(recipe, noise)


def pixels_of(model: DeltaModel, asked: tuple[int, int] | None) -> tuple[int, int] | None:
    """(width, height) that frames are resized to: as asked, else the network's only size; None: the video's."""
    only = model.signature.pixels
    if asked is not None and only is not None and asked != only:
        raise usage_error(
            f"the network was captured for {_text(only)} alone, not {_text(asked)}: leave the option out, or convert "
            "the network at that size",
            "--size",
        )
    return asked or only


def _text(size: tuple[int, int]) -> str:
    return "{}x{}".format(*size)
