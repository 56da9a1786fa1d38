"""What accuracy costs: trained networks on real clips of ../shared/data, thresholds calibrated on other frames.

    python benchmarks/accuracy.py [--tasks pets,bottle] [--device cuda] [--frames 200] [--out FILE]

For each task one row for each way and strength: the share of a dense frame's multiply-accumulates, counted by the
reference backend's masks, and the task's score on the test frames, against the truth where there is one and else
against the dense network. `ours` and `paper` are calibrated once, on `--calibration` frames, and then scaled as a
whole; the other ways have a strength of their own. Rows go to FILE as they come; a second run takes up where the first
one stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
LABELS = next((folder for folder in (DATA / "labels", ROOT / "labels") if folder.exists()), DATA / "labels")
sys.path[:0] = [str(ROOT), str(DATA)]

import deltaconvert  # noqa: E402
from benchmarks.cpu import environment  # noqa: E402
from deltaconvert.calibrate import Search  # noqa: E402
from deltaconvert.gate import Gate  # noqa: E402
from deltaconvert.metrics import average_precision, relative_l2, segmentation  # noqa: E402
from deltaconvert.trials import Setting, Trials  # noqa: E402
from model_zoo.fastestdet import decode as decode_boxes  # noqa: E402

UNIFORM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
CONFIDENCE = 0.05  # average precision looks at weak boxes too
VEHICLES = (1, 2, 3, 5, 7)  # of COCO: bicycle, car, motorcycle, bus, truck


@dataclass
class Task:
    """One network on one clip.

    frames: uint8 (H, W, 3) by number; prepare: to the network's input; decode: of an output, what `score` takes.
    score(found, dense, numbers): higher is better; `truth` says what it is against. accepted: the loss of it that the
    issue accepts. resized: what `decode` makes of the output of an input at a share of the resolution.
    budget: of the metric that thresholds are calibrated by, a loss against the dense network.
    """

    name: str
    network: nn.Module
    frames: Callable[[Sequence[int]], Iterator[Tensor]]
    calibration: Sequence[int]
    test: Sequence[int]
    prepare: Callable[[Tensor], Tensor]
    decode: Callable[[Any], Any]
    resized: Callable[[Any, tuple[int, int]], Any]
    score: Callable[[list[Any], list[Any], Sequence[int]], float]
    truth: str
    accepted: float
    budget: float
    metric: Callable[[Sequence[Any], Sequence[Any]], float]
    guide: Callable[[Sequence[Any], Sequence[Any]], float] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--factors", default="0.25,0.5,0.71,1,1.41,2,4")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    for name in options.tasks.split(","):
        begin = time.time()
        with torch.no_grad():
            Run(TASKS[name](options.calibration, options.frames), options).all()
        print(f"{name}: {time.time() - begin:.0f} s", flush=True)


class Run:
    """All ways of one task, into the file."""

    def __init__(self, task: Task, options: argparse.Namespace):
        self.task, self.out, self.device = task, options.out, torch.device(options.device)
        self.kept = json.loads(self.out.read_text()) if self.out.exists() else {**environment(), "rows": []}
        self.kept.setdefault("gpu", torch.cuda.get_device_name() if self.device.type == "cuda" else None)
        self.factors = [float(factor) for factor in options.factors.split(",")]
        task.network.eval().to(self.device)

    def all(self) -> None:
        task = self.task
        clips = [self._inputs(numbers) for numbers in (task.calibration, task.test)]
        delta = deltaconvert.convert(task.network, clips[0][0], backend="reference")
        trials = Trials(delta, [[x] for x in clips[0]], task.metric, decode=task.decode, guide=task.guide)
        self.test = [[x] for x in clips[1]]
        self.dense = [task.decode(task.network(x)) for x in clips[1]]
        self.dense_score = task.score(self.dense, self.dense, task.test)
        self._row("dense", 1.0, 1.0, self.dense_score)
        everywhere = (1.0,) * len(trials.sites)
        for share in UNIFORM:
            self._play("one threshold", share, trials, Setting(everywhere).times(share))
        for count in (2, 3, 5):
            found = [self.dense[place - place % count] for place in range(len(self.dense))]
            self._row("skipped frames", count, 1 / count, task.score(found, self.dense, task.test))
        for scale in (0.9, 0.75, 0.5):
            self._row("lower resolution", scale, *self._smaller(clips[1], scale))
        for share in (0.002, 0.005, 0.01, 0.02, 0.05):
            self._row("frame gate", share, *self._gated(share))
        for way in ("ours", "paper"):
            begin = time.time()
            setting = self._calibrated(way, trials)
            print(f"{task.name} {way}: calibrated in {time.time() - begin:.0f} s", flush=True)
            for factor in self.factors:
                self._play(way, factor, trials, setting.times(factor))

    def _calibrated(self, way: str, trials: Trials) -> Setting:
        """Found once; the thresholds lie beside the rows, so that others can run them."""
        kept = self.kept.setdefault("settings", {}).get(f"{self.task.name} {way}")
        if kept is None:
            search = Search(trials, self.task.budget)
            setting = search.front_to_back() if way == "paper" else search.allocate(GATES, rounds=2)
            outcome = search.look(setting)
            kept = {
                "shares": list(setting.shares),
                "weighted": setting.weighted,
                "gate": setting.gate.to_json(),
                "trials": len(search.tried),
                "loss": outcome.loss,
                "work": outcome.work,
                "budget": self.task.budget,
            }
            self.kept["settings"][f"{self.task.name} {way}"] = kept
            self.out.write_text(json.dumps(self.kept, indent=1) + "\n")
            folder = self.out.with_suffix("")
            folder.mkdir(exist_ok=True)
            trials.thresholds(setting).write(folder / f"{self.task.name}_{way}.json", found=kept)
        return Setting(tuple(kept["shares"]), kept["weighted"], Gate.of(kept["gate"]))

    def _play(self, way: str, strength: float, trials: Trials, setting: Setting) -> None:
        if self._has(way, strength):
            return
        played = trials.play(setting, self.test)
        work = sum(share for _, share in played[1:]) / (len(played) - 1)
        score = self.task.score([found for found, _ in played], self.dense, self.task.test)
        self._row(way, strength, work, score)

    def _smaller(self, clip: list[Tensor], scale: float) -> tuple[float, float]:
        size = [max(32, round(side * scale / 32) * 32) for side in clip[0].shape[2:]]
        found = []
        for x in clip:
            small = F.interpolate(x, size, mode="bilinear", antialias=True)
            found.append(self.task.resized(self.task.network(small), tuple(x.shape[2:])))
        work = size[0] * size[1] / (clip[0].shape[2] * clip[0].shape[3])
        return work, self.task.score(found, self.dense, self.task.test)

    def _gated(self, share: float) -> tuple[float, float]:
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
        return ran / len(found), self.task.score(found, self.dense, self.task.test)

    def _inputs(self, numbers: Sequence[int]) -> list[Tensor]:
        pictures = (p.permute(2, 0, 1)[None].float().to(self.device) for p in self.task.frames(numbers))
        return [self.task.prepare(picture).contiguous() for picture in pictures]

    def _has(self, way: str, strength: float) -> bool:
        return any(
            (row["task"], row["way"], row["strength"]) == (self.task.name, way, strength)
            for row in self.kept["rows"]
        )

    def _row(self, way: str, strength: float, work: float, score: float) -> None:
        if self._has(way, strength):
            return
        row = {
            "task": self.task.name,
            "way": way,
            "strength": strength,
            "work": work,
            "score": score,
            "loss": self.dense_score - score,
            "frames": len(self.task.test),
            "truth": self.task.truth,
            "accepted": self.task.accepted,
            "device": self.device.type,
        }
        self.kept["rows"].append(row)
        self.out.write_text(json.dumps(self.kept, indent=1) + "\n")
        print(
            f"{self.task.name:8s} {way:17s} {strength:<6g} work {work:.4f} score {score:.4f} loss {row['loss']:+.4f}",
            flush=True,
        )


GATES = (
    Gate(),
    Gate(dilate=2),
    Gate(smooth=3),
    Gate(smooth=5),
    Gate(smooth=9, dilate=2),
    Gate(smooth=5, noise=3.0, dilate=2),
    Gate(smooth=9, noise=3.0, dilate=2, peak=16.0),
)


# ---- frames


def clip_of(name: str) -> Callable[[Sequence[int]], Iterator[Tensor]]:
    """The frames of a video by number, in order; by OpenCV where PyAV is missing."""

    def frames(numbers: Sequence[int]) -> Iterator[Tensor]:
        wanted, path = set(numbers), DATA / "videos" / name
        for place, frame in enumerate(_decoded(path)):
            if place in wanted:
                yield frame
            if place >= max(wanted):
                return

    return frames


def _decoded(path: Path) -> Iterator[Tensor]:
    try:
        import av  # noqa: F401
    except ImportError:
        import cv2

        video = cv2.VideoCapture(str(path))
        while True:
            good, frame = video.read()
            if not good:
                return
            yield torch.from_numpy(frame[:, :, ::-1].copy())
    from deltaconvert import video as videos

    yield from videos.read(path)


def highway_frames(numbers: Sequence[int]) -> Iterator[Tensor]:
    for number in numbers:
        yield picture_of(LABELS / f"cdnet_highway/input/in{number:06d}.jpg")


def picture_of(path: Path) -> Tensor:
    """uint8 (H, W, 3)."""
    import numpy as np
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(path).convert("RGB")))


# ---- detection


def detector(size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x.flip(1) / 255, size=size, mode="bilinear")


def boxes(output: Any) -> Tensor:
    return decode_boxes(output.cpu(), confidence=CONFIDENCE)[0]


def boxes_of_smaller(size: tuple[int, int], factor: float) -> Callable[[Any, tuple[int, int]], Tensor]:
    def boxes_at(output: Any, full: tuple[int, int]) -> Tensor:
        found = boxes(output)
        down, right = full[0] / (output.shape[2] * 16), full[1] / (output.shape[3] * 16)
        return found * torch.tensor([right, down, right, down, 1, 1])

    return boxes_at


def of_classes(found: list[Tensor], classes: Sequence[int]) -> list[Tensor]:
    """The boxes of some classes, all as class 0."""
    kept = [image[torch.isin(image[:, 5].long(), torch.tensor(classes))].clone() for image in found]
    for image in kept:
        image[:, 5] = 0
    return kept


def box_loss(classes: Sequence[int]) -> Callable[[Sequence[Any], Sequence[Any]], float]:
    """1 - AP50 with the dense network's surer boxes as the truth."""

    def detection(ours: Sequence[Any], dense: Sequence[Any]) -> float:
        truth = of_classes([image[image[:, 4] > 0.4] for image in dense], classes)
        return 1 - average_precision(of_classes(list(ours), classes), truth)

    return detection


def detection_task(
    name: str, frames: Any, numbers: Any, size: Any, classes: Sequence[int], truth_of: Any, said: str
) -> Task:
    import zoo

    def score(found: list[Any], dense: list[Any], numbers: Sequence[int]) -> float:
        return average_precision(of_classes(found, classes), [truth_of(number) for number in numbers])

    return Task(
        name=name,
        network=zoo.load("fastestdet"),
        frames=frames,
        calibration=numbers[0],
        test=numbers[1],
        prepare=detector(size),
        decode=boxes,
        resized=boxes_of_smaller(size, 1.0),
        score=score,
        truth=said,
        accepted=0.005,
        budget=0.02,
        metric=box_loss(classes),
    )


def pets(calibration: int, test: int) -> Task:
    rows: dict[int, list[list[float]]] = {}
    for line in (LABELS / "pets_s2l1/sort_frcnn_det.txt").read_text().splitlines():
        frame, _, x, y, w, h, confidence, *_ = map(float, line.split(","))
        if confidence > 0.5:
            scale = 0.625 * 2  # the video's pixels, then the network's
            box = [x * scale, y * scale * 736 / 720, (x + w) * scale, (y + h) * scale * 736 / 720]
            rows.setdefault(int(frame) - 1, []).append([*box, 1, 0])
    numbers = (range(100, 100 + calibration), range(400, 400 + test))
    return detection_task(
        "pets",
        clip_of("pets_vtest_480x360.mp4"),
        numbers,
        (736, 960),
        [0],
        lambda n: torch.tensor(rows.get(n, [])).view(-1, 6),
        "AP50 against the reference boxes",
    )


def highway(calibration: int, test: int) -> Task:
    """CDnet's masks say which pixels move; their connected parts are the vehicles. All 200 labelled frames: the first
    ones calibrate."""

    def truth_of(number: int) -> Tensor:
        from scipy import ndimage

        mask = picture_of(LABELS / f"cdnet_highway/groundtruth/gt{number:06d}.png")[:, :, 0].numpy() == 255
        parts, _ = ndimage.label(mask)
        found = []
        for rows, columns in ndimage.find_objects(parts):
            if (rows.stop - rows.start) * (columns.stop - columns.start) >= 300:
                found.append([columns.start * 2, rows.start * 2, columns.stop * 2, rows.stop * 2, 1, 0])
        return torch.tensor(found, dtype=torch.float32).view(-1, 6)

    numbers = (range(470, 470 + min(calibration, 40)), range(510, 510 + min(test, 160)))
    return detection_task(
        "highway",
        highway_frames,
        numbers,
        (480, 640),
        VEHICLES,
        truth_of,
        "AP50 against boxes of the human masks",
    )


# ---- poses, labels, classes


def juggle(calibration: int, test: int) -> Task:
    import zoo

    def prepare(x: Tensor) -> Tensor:
        return (F.interpolate(x, size=(353, 641), mode="bilinear", antialias=True) - 128) / 128

    def decode(output: Any) -> Tensor:
        return points(output, (353, 641))

    def points(output: Any, size: tuple[int, int]) -> Tensor:
        """(17, 3): x, y in pixels of the full input, and the probability: of the highest place of each heat map."""
        heat = F.interpolate(
            output[0], size=(size[0] // 2, size[1] // 2), mode="bicubic", align_corners=True
        )[0]
        best, place = heat.flatten(1).max(1)
        x, y = place % heat.shape[2], place // heat.shape[2]
        return torch.stack([x * 2.0, y * 2.0, best.sigmoid()], 1).cpu()

    def score(found: list[Any], dense: list[Any], numbers: Any = None) -> float:
        """The share of the key points that the dense network is sure of which are within 8 pixels of where it sees them
        (a thirtieth of the man's height)."""
        hits = total = 0
        for ours, theirs in zip(found, dense, strict=True):
            sure = theirs[:, 2] > 0.5
            hits += int(((ours - theirs)[:, :2].norm(dim=1)[sure] <= 8).sum())
            total += int(sure.sum())
        return hits / max(total, 1)

    return Task(
        name="juggle",
        network=zoo.load("posenet"),
        frames=clip_of("sam2_05_default_juggle.mp4"),
        calibration=range(calibration),
        test=range(247 - min(test, 247 - calibration), 247),
        prepare=prepare,
        decode=decode,
        resized=points,
        score=score,
        truth="key points within 8 pixels of the dense network's",
        accepted=0.005,
        budget=0.01,
        metric=lambda ours, dense: 1 - score(list(ours), list(dense)),
    )


def road(calibration: int, test: int) -> Task:
    import zoo

    def prepare(x: Tensor) -> Tensor:
        mean, std = torch.tensor([72.39, 82.91, 73.16]), torch.tensor([45.32, 46.15, 44.91])
        x = (x.flip(1) - mean.view(1, 3, 1, 1).to(x)) / std.view(1, 3, 1, 1).to(x) / 255
        return x[:, :, : x.shape[2] // 8 * 8, : x.shape[3] // 8 * 8]

    def decode(output: Any) -> Tensor:
        return output.argmax(1).to(torch.uint8)

    def resized(output: Any, size: tuple[int, int]) -> Tensor:
        return decode(F.interpolate(output, size, mode="bilinear"))

    return Task(
        name="road",
        network=zoo.load("espnet_city"),
        frames=clip_of("bgs_video.avi"),
        calibration=range(calibration),
        test=range(374 - min(test, 374 - calibration), 374),
        prepare=prepare,
        decode=decode,
        resized=resized,
        score=lambda found, dense, numbers: 1 - segmentation(found, dense),
        truth="mean IoU with the dense network's labels",
        accepted=0.005,
        budget=0.01,
        metric=segmentation,
    )


def bottle(calibration: int, test: int) -> Task:
    import zoo

    def score(found: list[Any], dense: list[Any], numbers: Any = None) -> float:
        return sum(bool(a.argmax() == b.argmax()) for a, b in zip(found, dense, strict=True)) / len(dense)

    def decode(output: Any) -> Tensor:
        return output.cpu()

    return Task(
        name="bottle",
        network=zoo.load("mobilenetv2"),
        frames=clip_of("intel_bottle-detection.mp4"),
        calibration=range(300, 300 + calibration * 4, 4),
        test=range(600, 600 + test),
        prepare=lambda x: F.interpolate(x, size=(352, 640), mode="bilinear") / 127.5 - 1,
        decode=decode,
        resized=lambda output, size: decode(output),
        score=score,
        truth="frames with the dense network's class",
        accepted=0.005,
        budget=0.1,
        metric=relative_l2,  # of sixteen frames' classes every threshold might keep all
    )


# ---- restoration


def restoration_task(
    name: str,
    network: nn.Module,
    frames: Any,
    numbers: tuple[Sequence[int], Sequence[int]],
    prepare: Any,
    picture_to: Callable[[Tensor], Tensor],
    resized: Any,
    said: str,
) -> Task:
    """Calibrated against the truth of the calibration frames: a denoiser's own outputs differ from each other by what
    it leaves of the noise."""
    kept: dict[tuple[int, ...], list[Tensor]] = {}

    def clean(numbers: Sequence[int]) -> list[Tensor]:
        if tuple(numbers) not in kept:
            kept[tuple(numbers)] = [picture_to(p).half() for p in frames(numbers)]
        return kept[tuple(numbers)]

    def error(found: Sequence[Any], numbers: Sequence[int]) -> float:
        """Mean squared error; values are 0 to 1."""
        pairs = zip(found, clean(numbers), strict=True)
        return sum(
            float((a.float().clamp(0, 1) - b.to(a.device).float()).square().mean()) for a, b in pairs
        ) / len(found)

    def psnr(found: Sequence[Any], numbers: Sequence[int]) -> float:
        return -10 * math.log10(error(found, numbers))

    return Task(
        name=name,
        network=network,
        frames=frames,
        calibration=numbers[0],
        test=numbers[1],
        prepare=prepare,
        decode=lambda output: output.half(),
        resized=resized,
        score=lambda found, dense, numbers: psnr(found, numbers),
        truth=said,
        accepted=0.1,
        budget=0.05,
        metric=lambda ours, dense: psnr(dense, numbers[0]) - psnr(ours, numbers[0]),
        guide=lambda ours, dense: math.sqrt(error(ours, numbers[0])),
    )


def upscale(calibration: int, test: int) -> Task:
    import zoo

    return restoration_task(
        "upscale",
        zoo.load("span_x4"),
        clip_of("sam2_05_default_juggle.mp4"),
        (range(calibration), range(247 - min(test, 247 - calibration), 247)),
        lambda x: F.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 255) / 255,
        lambda picture: picture.permute(2, 0, 1)[None] / 255,
        lambda output, size: F.interpolate(output, [4 * s for s in size], mode="bicubic").half(),
        "PSNR against the full-size frame, dB",
    )


class Denoised(nn.Module):
    """The picture without the noise that the network finds in it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return x - self.network(x)


def denoise(calibration: int, test: int) -> Task:
    """PETS with fresh sensor noise of deviation 25 in every frame."""
    import zoo

    draw = torch.Generator().manual_seed(0)

    def prepare(x: Tensor) -> Tensor:
        clean = x.mean(1, keepdim=True)
        return (clean + torch.randn(clean.shape, generator=draw).to(x) * 25) / 255

    return restoration_task(
        "denoise",
        Denoised(zoo.load("dncnn_s25")),
        clip_of("pets_vtest_480x360.mp4"),
        (range(100, 100 + calibration), range(400, 400 + test)),
        prepare,
        lambda picture: picture.permute(2, 0, 1)[None].float().mean(1, keepdim=True) / 255,
        lambda output, size: F.interpolate(output, size, mode="bicubic").half(),
        "PSNR against the frame before noise was added, dB",
    )


TASKS: dict[str, Callable[[int, int], Task]] = {
    task.__name__: task for task in (pets, highway, juggle, road, bottle, upscale, denoise)
}


if __name__ == "__main__":
    main()
