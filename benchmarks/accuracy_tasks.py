"""The tasks of accuracy.py: trained networks on clips of ../shared/data, and what they are scored against."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
LABELS = next((folder for folder in (DATA / "labels", ROOT / "labels") if folder.exists()), DATA / "labels")
sys.path[:0] = [str(ROOT), str(DATA)]

from deltaconvert.metrics import average_precision, relative_l2  # noqa: E402
from model_zoo.fastestdet import decode as decode_boxes  # noqa: E402

OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7)
RUNS = 3  # of calibration frames
CONFIDENCE = 0.05  # average precision looks at weak boxes too
UNSURE = 255  # instead of a label
VEHICLES = (1, 2, 3, 5, 7)  # of COCO: bicycle, car, motorcycle, bus, truck


@dataclass
class Task:
    """One network on one clip.

    frames: uint8 (H, W, 3) by number; prepare: to the network's input, of the task's own size or another; decode: of an
    output, what `score` takes.
    score(found, dense, numbers): higher is better; `truth` says what it is against. accepted: the loss of it that the
    issue accepts. resized: what `decode` makes of the output of an input at a share of the resolution.
    metric(ours, dense): what thresholds are calibrated by, of what `features` makes of outputs: it is smoother than a
    score of a few frames. spent: the loss of it that both ways of calibration may cause, as the share that one
    threshold for all layers would cause it with; or `budget`, the loss itself. streams: settings tried at a time.
    A score must tell a loss that is accepted from chance: noise of one grey level alone may not cost the dense network
    more. Where it does, `score` is a firmer one and `plain` the usual one, which is kept beside it. sure(dense, noisy):
    what of the dense network's answer `score` compares with, given its answers to the frame under such noise.
    precise: rounding to half precision alone would cost it more than is accepted. on_host: what `decode` gives lies in
    host memory, and `score` takes long.
    """

    name: str
    network: nn.Module
    frames: Callable[[Sequence[int]], Iterator[Tensor]]
    calibration: Sequence[int]
    test: Sequence[int]
    prepare: Callable[..., Tensor]
    decode: Callable[[Any], Any]
    resized: Callable[[Any, tuple[int, int]], Any]
    score: Callable[[list[Any], list[Any], Sequence[int]], float]
    truth: str
    accepted: float
    features: Callable[[Any], Any]
    streams: int
    spent: float = 0.0
    budget: float = 0.0
    precise: bool = False
    on_host: bool = False
    metric: Callable[[Sequence[Any], Sequence[Any]], float] = relative_l2
    guide: Callable[[Sequence[Any], Sequence[Any]], float] | None = None
    plain: Callable[[list[Any], list[Any], Sequence[int]], float] | None = None
    sure: Callable[[Any, Sequence[Any]], Any] | None = None


# ---- frames


def sample(begin: int, end: int, count: int) -> list[int]:
    """Three runs of frames in a row, as a video has them, from different places: across the gaps what was dropped adds
    up."""
    runs = min(RUNS, count)
    lengths = [count // runs + (run < count % runs) for run in range(runs)]
    apart = (end - begin - count) // max(runs - 1, 1)
    firsts = [begin + sum(lengths[:run]) + run * apart for run in range(runs)]
    return [
        frame for first, length in zip(firsts, lengths, strict=True) for frame in range(first, first + length)
    ]


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


def beyond_neighbours(numbers: Sequence[int]) -> Callable[[Sequence[Any], Sequence[Any]], float]:
    """Relative L2 of what lies beyond the dense network's answers of this frame, the two before and the two behind it.

    A detector's answers wander with the noise of its frames: on a street where nothing moves by a quarter of their
    size. Whoever keeps a pixel keeps its noise; against the one frame alone that loses as much as to miss a car.
    """
    inside = [
        [
            other
            for other in range(len(numbers))
            if numbers[other] - number == other - place and abs(other - place) <= 2
        ]
        for place, number in enumerate(numbers)
    ]

    def metric(ours: Sequence[Any], dense: Sequence[Any]) -> float:
        answers = torch.stack(list(dense)).float()
        low = torch.stack([answers[near].amin(0) for near in inside])
        high = torch.stack([answers[near].amax(0) for near in inside])
        found = torch.stack(list(ours)).float()
        return float((found - found.clamp(low, high)).norm() / answers.norm())

    return metric


# ---- detection


def detector(own: tuple[int, int]) -> Callable[..., Tensor]:
    return lambda x, size=own: F.interpolate(x.flip(1) / 255, size=size, mode="bilinear")


def boxes(output: Any) -> Tensor:
    return decode_boxes(output.float().cpu(), confidence=CONFIDENCE)[0]


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


def sure_boxes(classes: Sequence[int], places: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Of an output how sure it is of each class at each place, and, by the weight `places`, where it sees the boxes, as
    far as it is sure."""

    def features(output: Tensor) -> Tensor:
        output = output.float()
        picked = output[:, [5 + label for label in classes]]
        sure = output[:, :1] ** 0.6 * picked**0.4
        return torch.cat([sure, output[:, 1:5] * sure.amax(1, keepdim=True) * places], 1)

    return features


def detection_task(
    name: str,
    frames: Any,
    numbers: Any,
    size: Any,
    classes: Sequence[int],
    truth_of: Any,
    said: str,
    spent: float,
    streams: int,
) -> Task:
    """AP is the mean over overlaps of 0.3 to 0.7: noise of one grey level moves the dense network's score by 0.002. At
    0.5 alone, where many boxes overlap the truth just so or just not, it moves by 0.008."""
    import zoo

    def precision(found: list[Any], numbers: Sequence[int], overlaps: Sequence[float]) -> float:
        images = of_classes([boxes(x) if x.dim() == 4 else x for x in found], classes)
        truth = [truth_of(number) for number in numbers]
        return mean(average_precision(images, truth, iou=overlap) for overlap in overlaps)

    return Task(
        name=name,
        network=zoo.load("fastestdet"),
        frames=frames,
        calibration=numbers[0],
        test=numbers[1],
        prepare=detector(size),
        decode=lambda output: output.cpu(),
        on_host=True,
        resized=boxes_of_smaller(size, 1.0),
        score=lambda found, dense, numbers: precision(found, numbers, OVERLAPS),
        plain=lambda found, dense, numbers: precision(found, numbers, [0.5]),
        truth=said,
        accepted=0.005,
        features=sure_boxes(classes, 0.2),  # boxes overlap by half also where they are off by pixels
        streams=streams,
        spent=spent,
        metric=beyond_neighbours(numbers[0]),
    )


def pets(calibration: int, test: int) -> Task:
    rows: dict[int, list[list[float]]] = {}
    for line in (LABELS / "pets_s2l1/sort_frcnn_det.txt").read_text().splitlines():
        frame, _, x, y, w, h, confidence, *_ = map(float, line.split(","))
        if confidence > 0.5:
            scale = 0.625 * 2  # the video's pixels, then the network's
            box = [x * scale, y * scale * 736 / 720, (x + w) * scale, (y + h) * scale * 736 / 720]
            rows.setdefault(int(frame) - 1, []).append([*box, 1, 0])
    numbers = (sample(100, 350, calibration), range(400, 400 + test))
    return detection_task(
        "pets",
        clip_of("pets_vtest_480x360.mp4"),
        numbers,
        (736, 960),
        [0],
        lambda n: torch.tensor(rows.get(n, [])).view(-1, 6),
        "AP against the reference boxes",
        0.1,
        12,
    )


def highway(calibration: int, test: int) -> Task:
    """CDnet's masks say which pixels move; their connected parts are the vehicles, with their shadows. Of the 200
    labelled frames some calibrate and the others are the test: the first 70 show no vehicle that counts."""

    def truth_of(number: int) -> Tensor:
        from scipy import ndimage

        mask = picture_of(LABELS / f"cdnet_highway/groundtruth/gt{number:06d}.png")[:, :, 0].numpy() == 255
        parts, _ = ndimage.label(mask)
        found = []
        for rows, columns in ndimage.find_objects(parts):
            if (rows.stop - rows.start) * (columns.stop - columns.start) >= 300:
                top, bottom = rows.start * 256 / 240, rows.stop * 256 / 240
                found.append([columns.start, top, columns.stop, bottom, 1, 0])
        return torch.tensor(found, dtype=torch.float32).view(-1, 6)

    chosen = sample(470, 670, calibration)
    others = [number for number in range(470, 670) if number not in chosen]
    return detection_task(
        "highway",
        highway_frames,
        (chosen, others[:test]),
        (256, 320),
        VEHICLES,
        truth_of,
        "AP against boxes of the human masks",
        0.1,
        40,
    )


# ---- poses, labels, classes


def juggle(calibration: int, test: int) -> Task:
    import zoo

    def prepare(x: Tensor, size: tuple[int, int] = (353, 641)) -> Tensor:
        return (F.interpolate(x, size=size, mode="bilinear", antialias=True) - 128) / 128

    def decode(output: Any) -> Tensor:
        return points(output, (353, 641))

    def points(output: Any, size: tuple[int, int]) -> Tensor:
        """(17, 3): x, y in pixels of the full input, and the probability: of the highest place of each heat map."""
        heat = F.interpolate(
            output[0].float(), size=(size[0] // 2, size[1] // 2), mode="bicubic", align_corners=True
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

    def sure(dense: Any, noisy: Sequence[Any]) -> Any:
        """Without the points that noise moves as far: two wrists, or a ball and a hand, that look alike."""
        moved = torch.stack([(other - dense)[:, :2].norm(dim=1) > 8 for other in noisy]).any(0)
        return torch.cat([dense[:, :2], torch.where(moved, 0.0, dense[:, 2])[:, None]], 1)

    return Task(
        name="juggle",
        network=zoo.load("posenet"),
        frames=clip_of("sam2_05_default_juggle.mp4"),
        calibration=sample(0, 47, calibration),
        test=range(247 - min(test, 200), 247),
        prepare=prepare,
        decode=decode,
        resized=points,
        score=score,
        plain=score,
        sure=sure,
        truth="key points within 8 pixels of the dense network's, of those it is sure of",
        accepted=0.005,
        features=lambda output: (
            output[0].float().sigmoid()
        ),  # the heat maps: a point jumps where two peaks are close
        streams=40,
        spent=0.05,
    )


def road(calibration: int, test: int) -> Task:
    import zoo

    def prepare(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        x = x if size is None else F.interpolate(x, size=size, mode="bilinear")
        mean, std = torch.tensor([72.39, 82.91, 73.16]), torch.tensor([45.32, 46.15, 44.91])
        x = (x.flip(1) - mean.view(1, 3, 1, 1).to(x)) / std.view(1, 3, 1, 1).to(x) / 255
        return x[:, :, : x.shape[2] // 8 * 8, : x.shape[3] // 8 * 8]

    def decode(output: Any) -> Tensor:
        return output.argmax(1).to(torch.uint8)

    def resized(output: Any, size: tuple[int, int]) -> Tensor:
        return decode(F.interpolate(output, size, mode="bilinear"))

    def score(found: list[Any], dense: list[Any], numbers: Any = None) -> float:
        counts = [x.flatten().long().bincount(minlength=UNSURE + 1)[:UNSURE] for x in dense]
        shares = torch.stack(counts).sum(0).double()
        ious = []
        for label in (shares / shares.sum() >= 0.01).nonzero().flatten().tolist():
            pairs = [((a == label) & (b != UNSURE), b == label) for a, b in zip(found, dense, strict=True)]
            both = sum((a & b).sum() for a, b in pairs)
            ious.append(float(both / sum((a | b).sum() for a, b in pairs)))
        return sum(ious) / len(ious)

    def sure(dense: Any, noisy: Sequence[Any]) -> Any:
        kept = torch.stack([other == dense for other in noisy]).all(0)
        return torch.where(kept, dense, UNSURE)

    def by_class(ours: Sequence[Any], dense: Sequence[Any]) -> float:
        """Relative L2 of each class's probabilities, root mean square over the classes that dense sees anywhere."""
        square = torch.stack([(a - b).square().sum((0, 2, 3)) for a, b in zip(ours, dense, strict=True)]).sum(
            0
        )
        reference = torch.stack([b.square().sum((0, 2, 3)) for b in dense]).sum(0)
        seen = torch.stack([b.amax((0, 2, 3)) for b in dense]).amax(0) > 0.5
        return float((square / reference)[seen].mean().sqrt())

    return Task(
        name="road",
        network=zoo.load("espnet_city"),
        frames=clip_of("bgs_video.avi"),
        calibration=sample(0, 170, calibration),
        test=range(374 - min(test, 200), 374),
        prepare=prepare,
        decode=decode,
        resized=resized,
        score=score,
        plain=score,
        sure=sure,
        truth="mean IoU with the dense network's labels where it is sure, of classes on 1 % of these pixels and more",
        accepted=0.005,
        features=lambda output: output.float().softmax(1),
        streams=20,
        spent=0.02,
        precise=True,
        metric=by_class,
    )


def bottle(calibration: int, test: int) -> Task:
    """In one frame of fourteen two classes are nearly a tie (a water bottle, a window screen): noise of one grey level
    decides it. `score` leaves these frames out."""
    import zoo

    def score(found: list[Any], dense: list[Any], numbers: Any = None) -> float:
        pairs = [(int(a), int(b)) for a, b in zip(found, dense, strict=True) if b >= 0]
        return sum(a == b for a, b in pairs) / len(pairs)

    def sure(dense: Any, noisy: Sequence[Any]) -> Any:
        return dense if all(bool(other == dense) for other in noisy) else torch.full_like(dense, -1)

    def decode(output: Any) -> Tensor:
        return output.argmax().cpu()

    def among_the_first(ours: Sequence[Any], dense: Sequence[Any]) -> float:
        """Relative L2 of the scores of the dense network's first five classes, from their mean: between these it is
        decided."""
        theirs = torch.cat(list(dense))
        first = theirs.topk(5, 1).indices
        pair = [x.gather(1, first) for x in (torch.cat(list(ours)), theirs)]
        a, b = (x - x.mean(1, keepdim=True) for x in pair)
        return float((a - b).norm() / b.norm())

    return Task(
        name="bottle",
        network=zoo.load("mobilenetv2"),
        frames=clip_of("intel_bottle-detection.mp4"),
        calibration=sample(100, 580, calibration),
        test=range(600, 600 + test * 3 // 2),  # 1 of 200 is all that is accepted
        prepare=lambda x, size=(352, 640): F.interpolate(x, size=size, mode="bilinear") / 127.5 - 1,
        decode=decode,
        resized=lambda output, size: decode(output),
        score=score,
        plain=score,
        sure=sure,
        truth="frames with the dense network's class, of those where it is sure",
        accepted=0.005,
        features=lambda output: output.float(),
        streams=24,
        spent=0.05,
        metric=among_the_first,
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
    streams: int,
) -> Task:
    """Calibrated against the truth of the calibration frames: a denoiser's own outputs differ from each other by what
    it leaves of the noise."""
    kept: dict[tuple[int, ...], list[Tensor]] = {}

    def clean(numbers: Sequence[int], device: torch.device) -> list[Tensor]:
        if tuple(numbers) not in kept:
            kept[tuple(numbers)] = [picture_to(p).half().to(device) for p in frames(numbers)]
        return kept[tuple(numbers)]

    def error(found: Sequence[Any], numbers: Sequence[int]) -> float:
        """Mean squared error; values are 0 to 1."""
        pairs = zip(found, clean(numbers, found[0].device), strict=True)
        errors = [(a.float().clamp(0, 1) - b.float()).square().mean() for a, b in pairs]
        return float(torch.stack(errors).mean())

    def psnr(found: Sequence[Any], numbers: Sequence[int]) -> float:
        return -10 * math.log10(error(found, numbers))

    dense_psnr: list[float] = []

    def lost(ours: Sequence[Any], dense: Sequence[Any]) -> float:
        """Of the PSNR; the dense network's is measured once."""
        if not dense_psnr:
            dense_psnr.append(psnr(dense, numbers[0]))
        return dense_psnr[0] - psnr(ours, numbers[0])

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
        features=lambda output: output.half(),
        streams=streams,
        budget=0.1,
        metric=lost,
        guide=lambda ours, dense: math.sqrt(error(ours, numbers[0])),
    )


def upscale(calibration: int, test: int) -> Task:
    import zoo

    return restoration_task(
        "upscale",
        zoo.load("span_x4"),
        clip_of("sam2_05_default_juggle.mp4"),
        (sample(0, 47, calibration), range(247 - min(test, 200), 247)),
        lambda x, size=(180, 320): F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 255) / 255,
        lambda picture: picture.permute(2, 0, 1)[None] / 255,
        lambda output, size: F.interpolate(output, [4 * s for s in size], mode="bicubic").half(),
        "PSNR against the full-size frame, dB",
        20,
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

    def prepare(x: Tensor, size: tuple[int, int] = (360, 480)) -> Tensor:
        x = x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear")
        clean = x.mean(1, keepdim=True)
        return (clean + torch.randn(clean.shape, generator=draw).to(x) * 25) / 255

    return restoration_task(
        "denoise",
        Denoised(zoo.load("dncnn_s25")),
        clip_of("pets_vtest_480x360.mp4"),
        (sample(100, 350, calibration), range(400, 400 + test)),
        prepare,
        lambda picture: picture.permute(2, 0, 1)[None].float().mean(1, keepdim=True) / 255,
        lambda output, size: F.interpolate(output, size, mode="bicubic").half(),
        "PSNR against the frame before noise was added, dB",
        10,
    )


TASKS: dict[str, Callable[[int, int], Task]] = {
    task.__name__: task for task in (pets, highway, juggle, road, bottle, upscale, denoise)
}
