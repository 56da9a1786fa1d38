"""The tasks of accuracy.py: trained networks on clips of ../shared/data, and what they are scored against."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.tasks.detection import highway, pets
from benchmarks.tasks.frames import DATA
from benchmarks.tasks.labels import bottle, road
from benchmarks.tasks.poses import juggle
from benchmarks.tasks.restoration import denoise, upscale
from benchmarks.tasks.task import Task

sys.path.insert(0, str(DATA))  # zoo.py lies there, which has the networks

TASKS: dict[str, Callable[[int, int], Task]] = {
    task.__name__: task for task in (pets, highway, juggle, road, bottle, upscale, denoise)
}
