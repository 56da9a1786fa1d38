"""What accuracy costs: trained networks on real clips of ../shared/data, thresholds calibrated on other frames.

    python benchmarks/accuracy.py --out FOLDER [--tasks pets,bottle] [--device cuda] [--frames 200] [--seconds 300]

For each task one row for each way and strength: the share of a dense frame's multiply-accumulates, counted by the
reference backend's masks, and the task's score on the test frames, against the truth where there is one and else
against the dense network. `ours` and `paper` are calibrated by the same metric to the same budgets, which is their
curve; the other ways have a strength of their own. FOLDER/TASK.json gets the rows as they come, FOLDER/TASK_WAY.json
the thresholds for convert(threshold=...); a second run takes up where the first one stopped.

The rule, written down before any test frame was played: both ways see the same calibration frames, are judged by the
same smooth metric and get budgets so many times what one threshold of `spent` for all layers costs (restoration: the
accepted loss, in dB), up to where they lose more than is accepted. Gates, steps and all else that is chosen follow from
calibration frames. What a score counts follows from the dense network alone (see Task). `--rehearse` plays frames
between those of the calibration instead of the test's: for choices.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deltaconvert  # noqa: E402
from benchmarks.cpu import environment  # noqa: E402
from benchmarks.tasks import TASKS, Task  # noqa: E402
from deltaconvert.calibration.crew import side_by_side  # noqa: E402
from deltaconvert.calibration.search import GATES, Search  # noqa: E402
from deltaconvert.calibration.setting import Outcome, Setting  # noqa: E402
from deltaconvert.calibration.trials import Trials  # noqa: E402
from deltaconvert.gate import Gate  # noqa: E402

UNIFORM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
WAYS = ("ours", "paper")
ROUNDS = 12  # of allocation
SPENDING = 4  # tries of a common scale, at the end
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
    parser.add_argument("--budgets", default="0.5,1,2", help="of calibrate, times the task's own")
    parser.add_argument("--paper-budgets", default="0.5,1,2,4", help="it spends less of them")
    parser.add_argument(
        "--single", action="store_true", help="in single precision, from the same bits anywhere"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, on the CPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="no part starts after so many")
    parser.add_argument(
        "--search-seconds",
        type=float,
        default=1e9,
        help="then calibrate keeps the best so far, and the paper's procedure nothing",
    )
    parser.add_argument("--simple", action="store_true", help="also the ways without thresholds of their own")
    parser.add_argument("--tried", action="store_true", help="keep every trial, to look at")
    parser.add_argument("--eager", action="store_true", help="record no frames of trials, on a GPU")
    parser.add_argument("--rehearse", action="store_true", help="play no test frame")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    if options.single:
        torch.backends.cudnn.allow_tf32 = False
    for name in options.tasks.split(","):
        begin = time.time()
        with torch.no_grad():
            task = TASKS[name](options.calibration, options.frames)
            if options.rehearse:
                task.test = between(task.calibration)[: options.frames]
            Run(task, options, until).all()
        print(f"{name}: {time.time() - begin:.0f} s", flush=True)


def between(numbers: Sequence[int]) -> list[int]:
    """The frames that lie between some, and are none of them."""
    return sorted(set(range(min(numbers), max(numbers))) - set(numbers))


def played_here(options: argparse.Namespace) -> argparse.Namespace:
    """The options of a script that plays what a Run kept: on this processor, in single precision, by one process."""
    options.device, options.single, options.workers, options.eager = "cpu", True, 1, True
    return options


class Run:
    """All ways of one task, into its file."""

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

    def all(self) -> None:
        task, options, trials = self.task, self.options, self.trials()
        everywhere = Setting(tuple(float(site.kind != "linear") for site in trials.sites))
        self.look_at_dense()
        budget = task.budget or trials(everywhere.times(task.spent)).loss
        lists = {"ours": options.budgets, "paper": options.paper_budgets}
        self._calibrate(
            trials,
            {(way, times): budget * times for way in WAYS for times in map(float, lists[way].split(","))},
        )
        found = {
            tuple(name.rsplit(" ", 1)): self.setting(kept) for name, kept in self.kept["settings"].items()
        }
        played = {(way, float(times)): setting for (way, times), setting in found.items()}
        self.play(trials, played | {("one threshold", share): everywhere.times(share) for share in UNIFORM})
        self.keep_best(trials)
        if options.simple and time.monotonic() < self.until:
            self._simple()

    def trials(self) -> Trials:
        task = self.task
        clip = [[x] for x in self._inputs(task.calibration)]
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
        self.test = self._inputs(task.test)
        self.dense = self._dense()
        self.sure = self.dense
        if task.sure is not None:
            noisy = zip(*map(self._noisy, range(1, 1 + DRAWS)), strict=True)
            self.sure = list(map(task.sure, self.dense, noisy))
        self.dense_scores = self._scores(self.dense)
        self._row("dense", 1.0, 1.0, self.dense_scores)
        if "noise" not in self.kept:
            losses = (self._losses(self._scores(self._noisy(100 + seed))) for seed in range(CHANCES))
            self.kept["noise"] = [dict(zip(("loss", "plain_loss"), pair, strict=True)) for pair in losses]

    def keep_best(self, trials: Trials) -> None:
        """The thresholds with the least work at the accepted loss, for convert(threshold=...)."""
        found = self.best(trials)
        if found is not None:
            row, setting = found
            trials.thresholds(setting).write(self.folder / f"{self.task.name}_best.json", found=row)

    def best(self, trials: Trials) -> tuple[dict[str, Any], Setting] | None:
        """That setting, and its row; curves that were scaled as a whole count too, but for those of searches that were
        made again since."""
        within: list[tuple[dict[str, Any], Setting]] = []
        played = {f"{row['way']} {row['strength']:g}" for row in self.kept["rows"]}
        for row in self.kept["rows"]:
            name, scale = f"{row['way']} {row['strength']:g}", 1.0
            if name not in self.kept["settings"] and row["way"] not in played:
                name, scale = row["way"], row["strength"]
            if not name.startswith("ours") or row["loss"] > self.task.accepted:
                continue
            if name in self.kept["settings"]:
                kept = dict(self.kept["settings"][name])
                # Searches of before convolutions without an activation were sites, the last of them.
                kept["shares"] = [*kept["shares"], *[0.0] * (len(trials.sites) - len(kept["shares"]))]
                within.append((row, self.setting(kept).times(scale)))
        return min(within, key=lambda found: found[0]["work"], default=None)

    @staticmethod
    def setting(kept: dict[str, Any]) -> Setting:
        return Setting(
            tuple(kept["shares"]), kept["weighted"], Gate.of(kept["gate"]), frozenset(kept.get("narrow", ()))
        )

    def _simple(self) -> None:
        for count in (2, 3, 5):
            found = [self.dense[place - place % count] for place in range(len(self.dense))]
            self._row("skipped frames", count, 1 / count, self._scores(found))
        for scale in (0.9, 0.75, 0.5):
            self._row("lower resolution", scale, *self._smaller(self.test, scale))
        for share in (0.002, 0.005, 0.01, 0.02, 0.05):
            self._row("frame gate", share, *self._gated(share))

    def _calibrate(self, trials: Trials, budgets: dict[tuple[str, float], float]) -> None:
        """Both ways to their budgets, side by side; the thresholds lie beside the rows, for others to run."""
        todo = [key for key in budgets if f"{key[0]} {key[1]:g}" not in self.kept["settings"]]
        if not todo:
            return
        begin, tried = time.time(), dict[Setting, Outcome]()
        until = time.monotonic() + self.options.search_seconds
        papers = [key for key in todo if key[0] == "paper"]
        ours = sorted((key for key in todo if key[0] == "ours"), key=lambda key: abs(math.log(key[1])))
        together = Together(trials, len(papers) + bool(ours))

        def paper(key: tuple[str, float]) -> Setting | None:
            """None where the time was over: half of the paper's way is not the paper's way."""
            with together.leaving(), suppress(TimeoutError):
                return Search(together, budgets[key], until).front_to_back()  # type: ignore[arg-type]
            return None

        def ourselves() -> None:
            with together.leaving():
                self._allocate(together, [budgets[key] for key in ours], tried)

        with ThreadPoolExecutor(len(todo)) as pool:
            running = {key: pool.submit(paper, key) for key in papers}
            if ours:
                pool.submit(ourselves).result()
            ended = {key: future.result() for key, future in running.items()}
        found = {key: setting for key, setting in ended.items() if setting is not None}
        together.searches = len(ours)

        def spent(key: tuple[str, float]) -> Setting:
            with together.leaving():
                search = Search(together, budgets[key])  # type: ignore[arg-type]
                search.tried = dict(tried)
                return search.spent(SPENDING)

        if ours:
            with ThreadPoolExecutor(len(ours)) as pool:
                found |= zip(ours, pool.map(spent, ours), strict=True)
        chosen = {}
        for (way, times), setting in found.items():
            chosen[f"{way} {times:g}"] = setting
            count = len(tried) if way == "ours" else 0
            self._keep(f"{way} {times:g}", setting, budgets[way, times], count, trials, time.time() - begin)
        for name, outcome in self._afresh(trials, chosen):
            self.kept["settings"][name]["afresh"] = vars(outcome)
            print(
                f"{self.task.name} {name} afresh: loss {outcome.loss:.4g}, work {outcome.work:.4f}",
                flush=True,
            )
        if self.options.tried:
            rows = [
                [s.shares, s.weighted, s.gate.to_json(), vars(o), sorted(s.narrow)] for s, o in tried.items()
            ]
            (self.folder / f"{self.task.name}_tried.json").write_text(json.dumps(rows))

    def _allocate(self, together: Together, budgets: Sequence[float], tried: dict[Setting, Outcome]) -> None:
        """The first budget gets twice the time of another; what was found for it, or by an earlier run, is where the
        others begin. What a search to one budget tried counts for all."""
        start, begin = time.monotonic(), list[Setting]()
        kept = self.kept["settings"].items()
        others = [self.setting(found) for name, found in kept if name.startswith("ours")]
        # `begun`: put there by hand, from a run that was cut off.
        others += [self.setting(found) for found in self.kept.get("begun", [])]
        for place, budget in enumerate(budgets):
            until = start + self.options.search_seconds * (place + 2) / (len(budgets) + 1)
            search = Search(together, budget, until)  # type: ignore[arg-type]
            search.tried = tried
            if begin or others:
                search.continued(begin or others, GATES, ROUNDS)
            else:
                search.allocate(GATES, ROUNDS)
            begin = [least(tried, budget)]

    def _afresh(self, trials: Trials, chosen: dict[str, Setting]) -> Iterator[tuple[str, Outcome]]:
        """What is reported has been played frame by frame; trials may have been replayed, or kept from another run."""
        names = list(chosen)
        for first in range(0, len(names), trials.streams):
            some = names[first : first + trials.streams]
            yield from zip(some, trials.afresh([chosen[name] for name in some]), strict=True)

    def _keep(
        self, name: str, setting: Setting, budget: float, count: int, trials: Trials, seconds: float
    ) -> None:
        outcome = trials(setting)
        kept = {
            "shares": list(setting.shares),
            "weighted": setting.weighted,
            "gate": setting.gate.to_json(),
            "narrow": sorted(setting.narrow),
            "trials": count,  # of calibrate, for all of its budgets
            "seconds": seconds,  # of all ways together
            "budget": budget,
            **vars(outcome),
        }
        self.kept["settings"][name] = kept
        self._write()
        trials.thresholds(setting).write(
            self.folder / f"{self.task.name}_{name.replace(' ', '_')}.json", found=kept
        )
        told = f"loss {outcome.loss:.4g} of {budget:.4g}, work {outcome.work:.4f}, {kept['gate']}"
        print(f"{self.task.name} {name}: {seconds:.0f} s, {told}", flush=True)

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
            scores = dict(side_by_side(self._scores, found, scorers))
            return [(work, scores[stream]) for stream, work in enumerate(works)]

        for place, results in side_by_side(played, groups, self.options.workers):
            for (row, _), result in zip(groups[place], results, strict=True):
                self._row(*row, *result)
            if time.monotonic() > self.until:
                return

    def _dense(self) -> list[Any]:
        """The dense network's answers."""
        return [self.task.decode(self.task.network(x)) for x in self._inputs(self.task.test)]

    def _noisy(self, seed: int) -> list[Any]:
        """The same under uniform noise of one grey level; in batches, since there are many draws."""
        task, found = self.task, list[Any]()
        inputs = self._inputs(task.test, seed)
        for first in range(0, len(inputs), task.streams):
            some = inputs[first : first + task.streams]
            output = task.network(torch.cat(some))
            for place in range(len(some)):
                found.append(task.decode(pytree.tree_map_only(Tensor, _image(place), output)))
        return found

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

    def _inputs(self, numbers: Sequence[int], noise: int | None = None) -> list[Tensor]:
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


def _image(place: int) -> Callable[[Tensor], Tensor]:
    return lambda leaf: leaf[place : place + 1]


def least(tried: dict[Setting, Outcome], budget: float) -> Setting:
    """The least work within a budget; of none within it the least loss."""
    within = {setting: outcome.work for setting, outcome in tried.items() if outcome.loss <= budget}
    return min(within or tried, key=lambda setting: within.get(setting, tried[setting].loss))


class Together:
    """Trials for searches that run side by side, each in its thread. When all of them wait, as many settings as run at
    a time are tried, of those first that want to know the fewest."""

    def __init__(self, trials: Trials, searches: int):
        self._trials, self.searches = trials, searches
        self.sites, self.at_once = trials.sites, trials.at_once
        shares = trials.alike()
        self.alike, self.narrowing = (lambda: shares), trials.narrowing
        self._known: dict[Setting, Outcome] = {}
        self._asked: list[list[Setting]] = []
        self._turn, self._error = threading.Condition(), None

    def many(self, settings: Sequence[Setting]) -> list[Outcome]:
        with self._turn:
            fresh = [setting for setting in settings if setting not in self._known]
            if fresh:
                self._asked.append(fresh)
                self._try_while_all_wait()
            while self._error is None and not all(setting in self._known for setting in settings):
                self._turn.wait()
            if self._error is not None:
                raise self._error
            return [self._known[setting] for setting in settings]

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Around a search, which wants to know nothing more when it ends."""
        try:
            yield
        finally:
            with self._turn:
                self.searches -= 1
                self._try_while_all_wait()

    def _try_while_all_wait(self) -> None:
        while self._asked and len(self._asked) == self.searches and self._error is None:
            lists = sorted(self._asked, key=len)
            wanted = list(dict.fromkeys(setting for settings in lists for setting in settings))
            wanted = wanted[: self._trials.at_once]
            try:
                self._known.update(zip(wanted, self._trials.many(wanted), strict=True))
            except BaseException as error:  # those that wait are told as well
                self._error = error
            left = ([s for s in settings if s not in self._known] for settings in self._asked)
            self._asked = [settings for settings in left if settings]
            self._turn.notify_all()


if __name__ == "__main__":
    main()
