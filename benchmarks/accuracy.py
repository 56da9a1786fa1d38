"""What accuracy costs: trained networks on real clips of ../shared/data, thresholds calibrated on other frames.

    python benchmarks/accuracy.py --out FOLDER [--tasks pets,bottle] [--device cuda] [--frames 200] [--seconds 300]

For each task one row for each way and strength: the share of a dense frame's multiply-accumulates, counted by the
reference backend's masks, and the task's score on the test frames, against the truth where there is one and else
against the dense network. `ours` and `paper` are calibrated by the same metric to the same budgets and then scaled as
a whole; the other ways have a strength of their own. FOLDER/TASK.json gets the rows as they come, FOLDER/TASK_WAY.json
the thresholds for convert(threshold=...); a second run takes up where the first one stopped.

The rule, written down before any test frame was played: both ways see the same calibration frames, are judged by the
same smooth metric and get the same budget, half of what one threshold of `spent` for all layers costs (restoration:
half of the accepted loss, in dB); both are then scaled by the same factors. Gates, steps and all else that is chosen
follow from calibration frames. What a score counts follows from the dense network alone (see Task).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert  # noqa: E402
from benchmarks.accuracy_tasks import TASKS, Task  # noqa: E402
from benchmarks.cpu import environment  # noqa: E402
from deltaconvert.calibrate import GATES, Search  # noqa: E402
from deltaconvert.crew import side_by_side  # noqa: E402
from deltaconvert.gate import Gate  # noqa: E402
from deltaconvert.trials import Setting, Trials  # noqa: E402

UNIFORM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
WAYS = ("ours", "paper")
ROUNDS = 2  # of allocation
CHANCES = 3  # draws of noise of one grey level that tell what a score's chance is
DRAWS = 8  # of noise of one grey level, for what the dense network is sure of
SCORERS = 6  # processes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--factors", default="0.35,0.5,0.71,1,1.41,2,2.83,4,5.66,8")
    parser.add_argument("--budgets", default="0.5", help="times the task's own")
    parser.add_argument("--workers", type=int, default=1, help="processes, on the CPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="no part starts after so many")
    parser.add_argument("--simple", action="store_true", help="also the ways without thresholds of their own")
    parser.add_argument("--tried", action="store_true", help="keep every trial, to look at")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    for name in options.tasks.split(","):
        begin = time.time()
        with torch.no_grad():
            Run(TASKS[name](options.calibration, options.frames), options, until).all()
        print(f"{name}: {time.time() - begin:.0f} s", flush=True)


class Run:
    """All ways of one task, into its file."""

    def __init__(self, task: Task, options: argparse.Namespace, until: float):
        self.task, self.options, self.until = task, options, until
        self.folder, self.device = options.out, torch.device(options.device)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.out = self.folder / f"{task.name}.json"
        fresh = {**environment(), "rows": [], "settings": {}}
        self.kept = json.loads(self.out.read_text()) if self.out.exists() else fresh
        self.kept.setdefault("gpu", torch.cuda.get_device_name() if self.device.type == "cuda" else None)
        half = self.device.type == "cuda" and not task.precise
        self.type = torch.float16 if half else torch.float32
        task.network.eval().to(self.device, self.type)

    def all(self) -> None:
        task, options = self.task, self.options
        clip = [[x] for x in self._inputs(task.calibration)]
        delta = deltaconvert.convert(task.network, *clip[0], backend="reference")
        trials = Trials(
            delta,
            clip,
            task.metric,
            decode=task.features,
            guide=task.guide or task.metric,
            file=self.folder / f"{task.name}_trials.jsonl",
            workers=options.workers,
            streams=task.streams if self.device.type == "cuda" else 1,
        )
        everywhere = Setting((1.0,) * len(trials.sites))
        self.test = self._inputs(task.test)
        self.dense = self._dense(0)
        self.sure = self.dense
        if task.sure is not None:
            noisy = zip(*(self._dense(seed) for seed in range(1, 1 + DRAWS)), strict=True)
            self.sure = list(map(task.sure, self.dense, noisy))
        self.dense_scores = self._scores(self.dense)
        self._row("dense", 1.0, 1.0, self.dense_scores)
        if "noise" not in self.kept:
            losses = (self._losses(self._scores(self._dense(100 + seed))) for seed in range(CHANCES))
            self.kept["noise"] = [dict(zip(("loss", "plain_loss"), pair, strict=True)) for pair in losses]
        budget = task.budget or trials(everywhere.times(task.spent)).loss
        for share in map(float, options.budgets.split(",")):
            settings = {}
            for way in WAYS:
                found = self._calibrated(way, trials, budget, share)
                for factor in map(float, options.factors.split(",")):
                    settings[f"{way} {share:g}", factor] = found.times(factor)
            self._play(trials, settings)
        self._keep_best(trials)
        self._play(trials, {("one threshold", share): everywhere.times(share) for share in UNIFORM})
        if options.simple and time.monotonic() < self.until:
            self._simple()

    def _keep_best(self, trials: Trials) -> None:
        """The thresholds with the least work at the accepted loss, for convert(threshold=...)."""
        rows = [row for row in self.kept["rows"] if row["way"].startswith("ours")]
        rows = [row for row in rows if row["loss"] <= self.task.accepted]
        if rows:
            best = min(rows, key=lambda row: row["work"])
            setting = self._setting(self.kept["settings"][best["way"]]).times(best["strength"])
            trials.thresholds(setting).write(self.folder / f"{self.task.name}_best.json", found=best)

    @staticmethod
    def _setting(kept: dict[str, Any]) -> Setting:
        return Setting(tuple(kept["shares"]), kept["weighted"], Gate.of(kept["gate"]))

    def _simple(self) -> None:
        for count in (2, 3, 5):
            found = [self.dense[place - place % count] for place in range(len(self.dense))]
            self._row("skipped frames", count, 1 / count, self._scores(found))
        for scale in (0.9, 0.75, 0.5):
            self._row("lower resolution", scale, *self._smaller(self.test, scale))
        for share in (0.002, 0.005, 0.01, 0.02, 0.05):
            self._row("frame gate", share, *self._gated(share))

    def _calibrated(self, way: str, trials: Trials, budget: float, share: float) -> Setting:
        """Found once; the thresholds lie beside the rows, so that others can run them."""
        name = f"{way} {share:g}"
        kept = self.kept["settings"].get(name)
        if kept is None:
            begin, search = time.time(), Search(trials, budget * share)
            setting = search.front_to_back() if way == "paper" else search.allocate(GATES, rounds=ROUNDS)
            outcome = search.look(setting)
            kept = {
                "shares": list(setting.shares),
                "weighted": setting.weighted,
                "gate": setting.gate.to_json(),
                "trials": len(search.tried),
                "seconds": time.time() - begin,
                "budget": budget * share,
                **vars(outcome),
            }
            self.kept["settings"][name] = kept
            self._write()
            file = self.folder / f"{self.task.name}_{name.replace(' ', '_')}.json"
            trials.thresholds(setting).write(file, found=kept)
            told = f"loss {outcome.loss:.4g} of {budget * share:.4g}, work {outcome.work:.4f}, {kept['gate']}"
            print(f"{self.task.name} {name}: {kept['seconds']:.0f} s, {told}", flush=True)
            if self.options.tried:
                tried = [[s.shares, s.weighted, s.gate.to_json(), vars(o)] for s, o in search.tried.items()]
                file.with_name(f"{file.stem}_tried.json").write_text(json.dumps(tried))
        return self._setting(kept)

    def _play(self, trials: Trials, settings: dict[tuple[str, float], Setting]) -> None:
        """A row for each setting, as many at a time as the trials have streams."""
        if time.monotonic() > self.until:
            return
        todo = [(row, setting) for row, setting in settings.items() if not self._has(*row)]
        frames = [[x] for x in self.test]
        for first in range(0, len(todo), trials.streams):
            rows, group = zip(*todo[first : first + trials.streams], strict=True)
            played = list(trials.play(group, frames, decode=self.task.decode))
            works = [sum(work) / len(work) for work in zip(*(work for _, work in played[1:]), strict=True)]
            found = list(zip(*(outputs for outputs, _ in played), strict=True))
            scored = side_by_side(self._scores, found, SCORERS if self.task.on_host else 1)
            for stream, scores in scored:
                self._row(*rows[stream], works[stream], scores)

    def _dense(self, seed: int) -> list[Any]:
        """The dense network's answers; under uniform noise of one grey level where `seed` is not 0."""
        draw = torch.Generator().manual_seed(seed)
        return [
            self.task.decode(self.task.network(x))
            for x in self._inputs(self.task.test, draw if seed else None)
        ]

    def _scores(self, found: Sequence[Any]) -> tuple[float, float]:
        """The task's score, and the plain one, which is the same for most."""
        task, plain = self.task, self.task.plain or self.task.score
        score = task.score(list(found), self.sure, task.test)
        return score, score if task.plain is None else plain(list(found), self.dense, task.test)

    def _losses(self, scores: tuple[float, float]) -> tuple[float, float]:
        return self.dense_scores[0] - scores[0], self.dense_scores[1] - scores[1]

    def _smaller(self, clip: list[Tensor], scale: float) -> tuple[float, tuple[float, float]]:
        size = [max(32, round(side * scale / 32) * 32) for side in clip[0].shape[2:]]
        found = []
        for x in clip:
            small = F.interpolate(x, size, mode="bilinear", antialias=True)
            found.append(self.task.resized(self.task.network(small), tuple(x.shape[2:])))
        work = size[0] * size[1] / (clip[0].shape[2] * clip[0].shape[3])
        return work, self._scores(found)

    def _gated(self, share: float) -> tuple[float, tuple[float, float]]:
        """The whole frame or nothing: it runs where more than `share` of the pixels moved by over 15 levels."""
        last, found, ran = None, [], 0
        for place, picture in enumerate(self.task.frames(self.task.test)):
            moved = (
                last is None
                or float(((picture.int() - last.int()).abs().amax(2) > 15).float().mean()) > share
            )
            if moved:
                last, ran = picture, ran + 1
            found.append(self.dense[place] if moved else found[-1])
        return ran / len(found), self._scores(found)

    def _inputs(self, numbers: Sequence[int], noise: torch.Generator | None = None) -> list[Tensor]:
        found = []
        for frame in self.task.frames(numbers):
            picture = frame.permute(2, 0, 1)[None].float()
            if noise is not None:
                picture = picture + torch.rand(picture.shape, generator=noise) * 2 - 1
            found.append(self.task.prepare(picture.to(self.device)).to(self.type).contiguous())
        return found

    def _has(self, way: str, strength: float) -> bool:
        return any((row["way"], row["strength"]) == (way, strength) for row in self.kept["rows"])

    def _row(self, way: str, strength: float, work: float, scores: tuple[float, float]) -> None:
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
        self._write()
        told = f"work {work:.4f} score {scores[0]:.4f} loss {loss:+.4f} ({plain:+.4f})"
        print(f"{self.task.name:8s} {way:17s} {strength:<6g} {told}", flush=True)

    def _write(self) -> None:
        self.out.write_text(json.dumps(self.kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
