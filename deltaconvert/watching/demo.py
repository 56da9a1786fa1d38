"""`deltaconvert demo`: renders a clip, runs a converted network on it beside the dense one, and writes an overlay."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

import model_zoo
from deltaconvert import container, feed, video
from deltaconvert.convert import convert
from deltaconvert.watching.measure import environment
from deltaconvert.watching.scene import render_clip
from deltaconvert.watching.watch import watch_video

# Untrained: its outputs mean nothing, but it costs as much as a trained network.
NETWORK = "resnet18"
# Sensor noise reaches 5 of 255 (3 sigma); after the network's normalisation that is 5 / 255 / 0.225 = 0.09.
THRESHOLD: dict[str, float | str] = {"input": 0.09, "activation": "20%"}


def run_demo(
    folder: str | Path,
    *,
    network: str = NETWORK,
    backend: str = "auto",
    size: tuple[int, int] = (640, 360),
    seconds: float = 4,
    say: Callable[[str], None] = print,
    progress: Callable[[Iterable[Tensor]], Iterable[Tensor]] = lambda frames: frames,
) -> tuple[dict[str, Any], str]:
    """Render the clip, convert a network, run both on it, and write overlay.mp4 and summary.json to `folder`.

    size, seconds: of the clip, if it has to be rendered.
    say: called with what happens.
    Returns what summary.json holds, and the same as text.
    """
    begin = time.perf_counter()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clip, file, shown = folder / "clip.mp4", folder / f"{network}.delta", folder / "overlay.mp4"
    if not clip.exists():
        say(f"rendering {clip}: {seconds:g} s of {size[0]}x{size[1]} video")
        render_clip(clip, size=size, seconds=seconds)
    recipe = model_zoo.recipe(network)
    with video.read(clip) as reader:
        example = recipe.prepare(reader.peek())
        say(f"converting {network} (untrained weights: its answers mean nothing, its cost is real)")
        model = convert(model_zoo.create(network, seed=0), example, threshold=THRESHOLD, backend=backend)
        model.info = {"arch": network, "weights": None, "recipe": feed.to_json(recipe)}
        container.save(model, file)
        model = container.load(file, backend=backend)
        say(f"running {file} on {clip}, beside the dense network")
        summary = watch_video(model, reader, recipe.prepare, compare=True, out=shown, progress=progress)
    facts = {
        "network": network,
        "weights": "untrained",
        "threshold": THRESHOLD,
        "backend": model.backend,
        **summary.to_json(),
        "files": {"clip": str(clip), "converted": str(file), "overlay": str(shown)},
        "seconds": round(time.perf_counter() - begin, 1),
        **environment(),
    }
    (folder / "summary.json").write_text(json.dumps(facts, indent=2) + "\n")
    rules = ", ".join(f"{where} {amount}" for where, amount in THRESHOLD.items())
    title = (
        f"{network}, untrained weights, thresholds for the clip's noise ({rules}), backend {model.backend}"
    )
    following = (
        f"watch {shown}: what changed is orange\n  on a video of yours: deltaconvert run {file} --video VIDEO"
    )
    text = f"{title}: {summary}\n  {following}"
    return facts, text
