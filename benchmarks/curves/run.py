"""One task: its frames, the dense network's answers to them, and the rows of all ways to save work, in its file."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import deltaconvert
from benchmarks.cpu import environment
from benchmarks.tasks import TASKS, Task
from deltaconvert.calibration.crew import side_by_side
from deltaconvert.calibration.setting import Setting
from deltaconvert.calibration.trials import Trials

RECORDS = Path(__file__).resolve().parents[1] / "results" / "accuracy"
CHANCES = 3  # draws of noise of one grey level that tell what a score's chance is
DRAWS = 8  # of noise of one grey level, for what the dense network is sure of
SCORERS = 6  # processes


def played_here(options: argparse.Namespace) -> argparse.Namespace:
    """The options of a script that plays what a Run kept: on this processor, in single precision, by one process."""
    options.device, options.single, options.workers, options.eager = "cpu", True, 1, True
    return options


def played_on(device: str, options: argparse.Namespace) -> argparse.Namespace:
    """The options of a script that plays tasks on a device, each in the type that it takes there, by one process."""
    options.device, options.single, options.workers, options.eager = device, False, 1, False
    return options


def between(numbers: Sequence[int]) -> list[int]:
    """The frames that lie between some, and are none of them."""
    return sorted(set(range(min(numbers), max(numbers))) - set(numbers))


class Run:
    """One task as it is played: `kept` is what its file holds, the rows and the settings that they are of."""

    def __init__(self, task: Task, options: argparse.Namespace, until: float):
        self.task, self.options, self.until = task, options, until
        self.folder, self.device = options.out, torch.device(options.device)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pictures: dict[tuple[int, ...], list[Tensor]] = {}
        self.out = self.folder / f"{task.name}.json"
        before = json.loads(self.out.read_text()) if self.out.exists() else {"rows": [], "settings": {}}
        self.kept = before | environment()
        self.kept.setdefault("gpu", torch.cuda.get_device_name() if self.device.type == "cuda" else None)
        half = self.device.type == "cuda" and not task.precise and not options.single
        self.type = torch.float16 if half else torch.float32
        task.network.eval().to(self.device, self.type)

    @classmethod
    def of_record(cls, options: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
        """A run that plays again, as `played_here`, what accuracy.py recorded of a task; and that record.

        options.out: a file. The run's own folder, `unused`, is made beside it.
        """
        task = TASKS[options.task](options.calibration, options.frames)
        here = argparse.Namespace(**{**vars(options), "out": options.out.parent / "unused"})
        record = json.loads((RECORDS / f"{task.name}.json").read_text())
        return cls(task, played_here(here), until=0), record

    def trials(self) -> Trials:
        task = self.task
        clip = [[x] for x in self.inputs(task.calibration)]
        return Trials(
            deltaconvert.convert(task.network, *clip[0], backend="reference"),
            clip,
            task.metric,
            decode=task.features,
            guide=task.guide or task.metric,
            file=self.folder / f"{task.name}_trials.jsonl",
            workers=self.options.workers,
            streams=task.streams if self.device.type == "cuda" else 1,
            replay=not self.options.eager,
        )

    def look_at_dense(self) -> None:
        """The dense network's answers to the test's frames, what of them is sure, and what chance does to the score."""
        task = self.task
        self.test = self.inputs(task.test)
        self.dense = self._dense()
        self.sure = self.dense
        if task.sure is not None:
            noisy = zip(*map(self._noisy, range(1, 1 + DRAWS)), strict=True)
            self.sure = list(map(task.sure, self.dense, noisy))
        self.dense_scores = self.scores(self.dense)
        self.add("dense", 1.0, 1.0, self.dense_scores)
        if "noise" not in self.kept:
            losses = (self._losses(self.scores(self._noisy(100 + seed))) for seed in range(CHANCES))
            self.kept["noise"] = [dict(zip(("loss", "plain_loss"), pair, strict=True)) for pair in losses]

    def keep_best(self, trials: Trials) -> None:
        """The thresholds with the least work at the accepted loss, for convert(threshold=...)."""
        found = self.best(trials)
        if found is not None:
            row, setting = found
            trials.thresholds(setting).write(self.folder / f"{self.task.name}_best.json", found=row)

    def best(self, trials: Trials) -> tuple[dict[str, Any], Setting] | None:
        """That setting, and its row; of curves that were scaled as a whole none."""
        within = []
        for row in self.kept["rows"]:
            setting = self.setting(row) if row["way"] not in self.kept.get("scaled", {}) else None
            if setting is not None and row["way"].startswith("ours") and row["loss"] <= self.task.accepted:
                within.append((row, setting.padded(len(trials.sites))))
        return min(within, key=lambda found: found[0]["work"], default=None)

    def setting(self, row: dict[str, Any]) -> Setting | None:
        """What a row was played with, where it is kept. `scaled`: curves whose strength is a factor of one setting."""
        name, scaled = f"{row['way']} {row['strength']:g}", self.kept.get("scaled", {})
        if name in self.kept["settings"]:
            return Setting.of(self.kept["settings"][name])
        return Setting.of(scaled[row["way"]]).times(row["strength"]) if row["way"] in scaled else None

    def play(self, trials: Trials, settings: dict[tuple[str, float], Setting], replay: bool = False) -> None:
        """A row for each setting, as many at a time as the trials have streams; frame by frame, or replayed."""
        if time.monotonic() > self.until:
            return
        todo = [(row, setting) for row, setting in settings.items() if not self._has(*row)]
        groups = [todo[first : first + trials.streams] for first in range(0, len(todo), trials.streams)]
        if not replay:
            trials.replay = None
        scorers = SCORERS if self.task.on_host and trials.streams > 1 else 1
        frames = [[x] for x in self.test]

        def played(group: Sequence[tuple[Any, Setting]]) -> list[tuple[float, tuple[float, float]]]:
            shown = list(trials.play([setting for _, setting in group], frames, decode=self.task.decode))
            works = [sum(work) / len(work) for work in zip(*(work for _, work in shown[1:]), strict=True)]
            found = list(zip(*(outputs for outputs, _ in shown), strict=True))
            scores = dict(side_by_side(self.scores, found, scorers))
            return [(work, scores[stream]) for stream, work in enumerate(works)]

        for place, results in side_by_side(played, groups, self.options.workers):
            for (row, _), result in zip(groups[place], results, strict=True):
                self.add(*row, *result)
            if time.monotonic() > self.until:
                return

    def _dense(self) -> list[Any]:
        """The dense network's answers."""
        return [self.task.decode(self.task.network(x)) for x in self.inputs(self.task.test)]

    def _noisy(self, seed: int) -> list[Any]:
        """The same under uniform noise of one grey level; in batches, since there are many draws."""
        task, found = self.task, list[Any]()
        inputs = self.inputs(task.test, seed)
        for first in range(0, len(inputs), task.streams):
            some = inputs[first : first + task.streams]
            output = task.network(torch.cat(some))
            for place in range(len(some)):
                found.append(task.decode(pytree.tree_map_only(Tensor, _image(place), output)))
        return found

    def scores(self, found: Sequence[Any]) -> tuple[float, float]:
        """The task's score, and the plain one, which is the same for most."""
        task, plain = self.task, self.task.plain or self.task.score
        score = task.score(list(found), self.sure, task.test)
        return score, score if task.plain is None else plain(list(found), self.dense, task.test)

    def _losses(self, scores: tuple[float, float]) -> tuple[float, float]:
        return self.dense_scores[0] - scores[0], self.dense_scores[1] - scores[1]

    def inputs(self, numbers: Sequence[int], noise: int | None = None) -> list[Tensor]:
        """noise: the seed of uniform noise of one grey level, drawn where the pictures are prepared: a processor takes
        longer to draw it than a GPU to run the network."""
        found, key = [], tuple(numbers)
        if key not in self.pictures:
            self.pictures = {key: list(self.task.frames(numbers))}  # the test's, again and again
        where = torch.device("cpu") if self.options.single else self.device
        draw = None if noise is None else torch.Generator(where).manual_seed(noise)
        for frame in self.pictures[key]:
            picture = frame.permute(2, 0, 1)[None].to(where).float().contiguous()
            if draw is not None:
                picture += torch.rand(picture.shape, generator=draw, device=where) * 2 - 1
            found.append(self.task.prepare(picture).to(self.device, self.type).contiguous())
        return found

    def _has(self, way: str, strength: float) -> bool:
        return any((row["way"], row["strength"]) == (way, strength) for row in self.kept["rows"])

    def add(self, way: str, strength: float, work: float, scores: tuple[float, float]) -> None:
        if self._has(way, strength):
            return
        loss, plain = self._losses(scores)
        row = {
            "task": self.task.name,
            "way": way,
            "strength": strength,
            "work": work,
            "score": scores[0],
            "loss": loss,
            "plain_loss": plain,
            "frames": len(self.task.test),
            "truth": self.task.truth,
            "accepted": self.task.accepted,
        }
        self.kept["rows"].append(row)
        self.write()
        told = f"work {work:.4f} score {scores[0]:.4f} loss {loss:+.4f} ({plain:+.4f})"
        print(f"{self.task.name:8s} {way:17s} {strength:<6g} {told}", flush=True)

    def write(self) -> None:
        self.out.write_text(json.dumps(self.kept, indent=1) + "\n")


def _image(place: int) -> Callable[[Tensor], Tensor]:
    return lambda leaf: leaf[place : place + 1]
