"""The tasks of accuracy.py: trained networks on clips of ../shared/data, and what they are scored against."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps

from benchmarks.tasks.detection import highway, pets
from benchmarks.tasks.frames import DATA
from benchmarks.tasks.labels import bottle, road
from benchmarks.tasks.poses import juggle
from benchmarks.tasks.restoration import denoise, upscale
from benchmarks.tasks.task import Task

sys.path.insert(0, str(DATA))  # zoo.py lies there, which has the networks

Maker = Callable[[int, int], Task]


def with_data(make: Maker) -> Maker:
    """A task, or one message where there is nothing to make it of."""

    @wraps(make)
    def task(calibration: int, test: int) -> Task:
        if not (DATA / "zoo.py").exists():
            raise SystemExit(
                f"{make.__name__}: there is no {DATA / 'zoo.py'}. Put the networks and clips there that "
                "benchmarks/README.md names. Without them, on a network and a video of yours: "
                "deltaconvert calibrate FILE --video CLIP"
            )
        return make(calibration, test)

    return task


TASKS: dict[str, Maker] = {
    make.__name__: with_data(make) for make in (pets, highway, juggle, road, bottle, upscale, denoise)
}
