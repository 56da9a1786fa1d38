"""The networks and clips of benchmarks/streams.py, and the thresholds that suit them.

python benchmarks/cameras.py --thresholds FOLDER [--networks resnet50,...] [--device cuda] [--size HxW]    calibrates
python benchmarks/cameras.py --thresholds FOLDER --networks fastestdet_pets --found FILE    from accuracy_best.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
sys.path[:0] = [str(ROOT), str(DATA)]

import deltaconvert
import model_zoo
from benchmarks import gpu_dense
from benchmarks.tasks.detection import sure_boxes
from benchmarks.tasks.frames import clip_of
from deltaconvert.calibrate import Search
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.gate import Gate
from deltaconvert.metrics import relative_l2
from deltaconvert.nodes import names_of
from deltaconvert.thresholds import Thresholds

VIDEOS = DATA / "videos"
CLIPS = ("pets_vtest_480x360.mp4", "sam2_05_default_juggle.mp4", "sam2_04_coffee.mp4", "bgs_video.avi")
SIZES = {"fastestdet": (736, 960), "fastestdet_pets": (736, 960)}
SIZE = (1080, 1920)
WAY_OUT = (
    "benchmarks/README.md says what lies there. Without it: --networks resnet50 --clips VIDEO ..., whose weights are "
    "random, on videos of yours"
)
# Frames of each clip for calibration: some far apart, to show what changes slowly, and most of them in a row, as in
# play. Played are the frames from a case's `first` on.
CALIBRATED, CHECKED = ((*range(first, first + 28, 7), *range(first + 28, first + 38)) for first in (60, 20))
GATES = (
    Gate(),
    Gate(dilate=8, weak=0.25),
    Gate(smooth=3, peak=6.0, dilate=4),
    Gate(smooth=9, peak=18.0, dilate=4),
    Gate(smooth=9, peak=18.0, dilate=8),
    Gate(smooth=9, peak=18.0, dilate=12),
    Gate(smooth=9, peak=9.0, dilate=12, weak=0.25),
)  # those of calibrate's gates that kernels know


INPUTS = (0.01, 0.02, 0.04, 0.08, 0.16)  # of the frame's mean magnitude
SCALES = (0.3, 1.2, 4.8)  # of the layers


class OfBytes(nn.Module):
    """Turns uint8 frames (N, H, W, 3) into inputs of the network: times `scale`, minus `shift`, by channel."""

    def __init__(self, network: nn.Module, scale: Sequence[float], shift: Sequence[float]):
        super().__init__()
        self.network = network
        self.register_buffer("scale", torch.tensor(scale).view(-1, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(-1, 1, 1))

    def forward(self, frames: Tensor) -> Any:
        return self.network(frames.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale - self.shift)


@dataclass(frozen=True)
class Case:
    """A network, and how its thresholds are calibrated.

    sites: layers with thresholds, besides the input. They are few and lie where masks have grown, since behind each of
    them lists are made anew. narrow: instead of any such layer, masks grow in the gate alone, so that layers of one
    size share their lists. budget: relative L2 of the outputs, or of what `features` makes of them. head: the part of
    the network that is left out: the mean over the map and what follows. Its scores hardly depend on what moves, so
    thresholds would grow too large. slots: as many as a pool on a GPU of 80 GB holds. files, first: the clips, and the
    first frame that is played.
    """

    make: Callable[[], nn.Module]
    budget: float
    sites: Sequence[str] = ()
    narrow: bool = False
    head: Sequence[str] = ()
    features: Callable[[Any], Any] | None = None
    bgr: bool = False
    slots: int = 128
    files: Sequence[str] = CLIPS
    first: int = 0


def resnet50() -> nn.Module:
    recipe = model_zoo.recipe("resnet50")
    scale = [recipe.scale / std for std in recipe.std]
    shift = [mean / std for mean, std in zip(recipe.mean, recipe.std, strict=True)]
    return OfBytes(model_zoo.create("resnet50", seed=0), scale, shift)


def trained(name: str, scale: float, shift: float) -> nn.Module:
    try:
        import zoo
    except ImportError:
        raise SystemExit(f"{name}'s weights: there is no module zoo in {DATA}. {WAY_OUT}") from None
    return OfBytes(zoo.load(name), [scale] * 3, [shift] * 3)


# What each block of MobileNetV2 passes to the next: a sum or a convolution with few channels to compare.
SUMS = {block: f"add_{n}".removesuffix("_0") for n, block in enumerate((3, 5, 6, 8, 9, 10, 12, 13, 15, 16))}
BLOCKS = {block: SUMS.get(block, f"conv.{1 if block == 1 else 2}.0") for block in range(1, 18)}
CASES = {
    "resnet50": Case(
        resnet50,
        0.02,
        ["network.relu", *(f"network.layer{n}.{last}.relu3" for n, last in ((1, 2), (2, 3), (3, 2), (3, 5)))],
        head=("avgpool", "fc"),
        slots=76,
    ),
    "mobilenetv2": Case(
        lambda: trained("mobilenetv2", 1 / 127.5, 1.0),
        0.07,
        ["network.features.0.1", *(f"network.features.{block}.{end}" for block, end in BLOCKS.items())],
        slots=128,
    ),
    "fastestdet": Case(
        lambda: trained("fastestdet", 1 / 255, 0.0),
        0.1,
        narrow=True,
        features=sure_boxes(range(80)),
        bgr=True,
        slots=512,
    ),
}
# The clip of a street from its 400th frame on, with the thresholds that docs/accuracy.md has scored on these frames.
CASES["fastestdet_pets"] = replace(
    CASES["fastestdet"], files=("pets_vtest_480x360.mp4",), first=400, slots=1024
)


def expect_clips(names: Iterable[str], own: Sequence[Path]) -> None:
    """Exit with a message if videos are missing. own: videos to play instead of the networks' clips."""
    for path in own or [VIDEOS / file for name in names for file in CASES[name].files]:
        if not path.exists():
            raise SystemExit(f"there is no {path}" + (f". {WAY_OUT}" if not own else ""))


def clips(
    name: str, size: str | None, device: str, numbers: Sequence[int], own: Sequence[Path] = ()
) -> list[list[Tensor]]:
    """Frames (1, H, W, 3) of every clip, as a decoder leaves them: in the memory of the host, pinned for a GPU.

    own: videos to play instead, from their beginning.
    """
    pixels = tuple(map(int, size.split("x"))) if size else SIZES.get(name, SIZE)
    case, found = CASES[name], []
    expect_clips([name], own)
    if not own:
        numbers = [case.first + number for number in numbers]
    for file in [str(path.resolve()) for path in own] or case.files:
        frames = (frame.flip(2) if case.bgr else frame for frame in clip_of(file)(numbers))
        found.append([scaled(frame, pixels, device) for frame in frames])
        if not found[-1]:
            raise SystemExit(f"{file} has no frame of those that are to be played")
    return found


def scaled(frame: Tensor, size: tuple[int, ...], device: str) -> Tensor:
    """Scaled bilinearly without smoothing: the codec's noise stays in a frame, as in a player."""
    image = F.interpolate(frame.permute(2, 0, 1)[None].to(device).float(), size, mode="bilinear")
    image = image.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
    return image.pin_memory() if device == "cuda" else image


def calibrate(name: str, options: argparse.Namespace) -> None:
    """Find thresholds within the budget on a batch of all clips, on other frames than are played, and write them."""
    case, device = CASES[name], options.device
    budget, costs = options.budget or case.budget, options.costs and json.loads(options.costs.read_text())
    model = case.make().eval().to(device)
    for part in case.head:
        setattr(model.network, part, nn.Identity().eval())
    frames = {}
    for numbers in (CALIBRATED, CHECKED):
        videos = clips(name, options.size, device, numbers)
        frames[numbers] = [[torch.cat(batch).to(device)] for batch in zip(*videos, strict=True)]

    def trials(numbers: Sequence[int]) -> Trials:
        delta = deltaconvert.convert(model, *frames[numbers][0], backend="reference")
        return trials_of(case, delta, frames[numbers], costs)

    alike = () if case.narrow else trials(CALIBRATED).alike()
    model = model.to(gpu_dense.TYPES[options.type])
    search, checks = Search(trials(CALIBRATED), budget), trials(CHECKED)
    outputs = [(case.features or nn.Identity())(output) for output in checks.dense]
    settings = found_for_frames(search) if case.narrow else found_by(search, alike, options.rounds)
    for setting in settings:
        outcome, checked = search.look(setting), checks(setting)
        found = {"budget": budget, "loss": outcome.loss, "work": outcome.work, "trials": len(search.tried)}
        found["on frames that are played"] = {
            "loss": checked.loss,
            "work": checked.work,
            "loss of the first output, kept": relative_l2(outputs[:1] * len(outputs), outputs),
            "loss of the output before": relative_l2(outputs[-9:-1], outputs[-8:]),
        }
        print(name, found, flush=True)
        made = search.trials.thresholds(setting)
        options.thresholds.mkdir(parents=True, exist_ok=True)
        file = options.thresholds / f"{name}.json"
        rules = {**made.rules, "activation": 0.0, "linear": 0.0}
        if case.narrow:
            (frames,) = search.inputs
            alone = setting.shares[frames] * search.trials.sites[frames].scale
            rules = {"input": alone, "activation": "0 narrow", "linear": "0 narrow"}
        Thresholds(rules, made.gate).write(file, found=found)


def of_bytes(found: Thresholds, scale: float) -> Thresholds:
    """Thresholds for the same network on bytes: those of the input divided by `scale`, and narrow changes instead of
    the layers' thresholds."""
    rules = {"input": float(found.rules["input_0"]) / scale, "activation": "0 narrow", "linear": "0 narrow"}
    return Thresholds(rules, found.gate)


def found_by(search: Search, alike: Sequence[float], rounds: int) -> Iterator[Setting]:
    """Yields the best thresholds so far: first one for all layers, under each gate and threshold of the input; then one
    for each layer. It is `allocate` without the paper's way from front to back, which would take half of the trials."""
    start, (place,) = Setting(tuple(alike)), search.inputs
    lines = [
        [replace(start.times(scale), gate=gate).at(place, share) for scale in SCALES]
        for gate in GATES
        for share in INPUTS
    ]
    search.scaled(search.at_the_budget(lines)[:3], 5, but=[place], start=2.5)
    yield search.best()
    for _ in range(rounds):
        search.settled([search.best()], GATES, 1)
        yield search.best()
    yield search.spent()


def found_for_frames(search: Search) -> Iterator[Setting]:
    """Yields a threshold for the frames and none behind it: changes stay as wide as the gate made them."""
    alone, (place,) = replace(search.exact(), narrow=search.trials.narrowing), search.inputs
    lines = [[replace(alone, gate=gate).at(place, share) for share in INPUTS] for gate in GATES]
    search.scaled(search.at_the_budget(lines)[:4], 6, start=1.5)
    yield search.best()


def trials_of(
    case: Case,
    delta: deltaconvert.DeltaModel,
    frames: Sequence[list[Tensor]],
    costs: Mapping[str, float] | None = None,
) -> Trials:
    """Trials on a clip with the case's sites alone. costs: work of each layer on a whole map, by path."""

    def cost(node: fx.Node) -> float:
        return sum((costs or {}).get(name, 0.0) for name in names_of(node))

    trials = Trials(delta, frames, relative_l2, decode=case.features, cost=cost if costs else None)
    wanted = trials.sites
    if not case.narrow:
        wanted = [site for site in wanted if site.kind == "input" or set(site.names) & set(case.sites)]
        assert len(wanted) == 1 + len(case.sites), [site.names for site in trials.sites]
    # Kernels compare with one threshold for all channels.
    trials.sites = [replace(site, shares=None) for site in wanted]
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(CASES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--type", choices=tuple(gpu_dense.TYPES), default="float")
    parser.add_argument("--size", help="HxW instead of 1080x1920")
    parser.add_argument(
        "--costs", type=Path, help="microseconds of whole maps, by path: what is to be saved instead of work"
    )
    parser.add_argument("--budget", type=float, help="instead of the case's")
    parser.add_argument(
        "--rounds", type=int, default=0, help="in which each threshold is looked at by itself"
    )
    parser.add_argument("--thresholds", type=Path, required=True, help="a folder, for NETWORK.json")
    parser.add_argument("--found", type=Path, help="a file of accuracy_best.py, instead of calibrating")
    options = parser.parse_args()
    for name in options.networks.split(","):
        if options.found:
            facts, scale = json.loads(options.found.read_text()).get("found"), CASES[name].make().scale[0]
            found = of_bytes(Thresholds.read(options.found), float(scale))
            found.write(options.thresholds / f"{name}.json", frames_as=facts)
        else:
            calibrate(name, options)


if __name__ == "__main__":
    main()
