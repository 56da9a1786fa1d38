"""pets, highway: FastestDet's boxes of people and of vehicles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tasks.frames import LABELS, clip_of, picture_of, sample
from benchmarks.tasks.task import Task
from deltaconvert.metrics import average_precision
from model_zoo.fastestdet import decode as decode_boxes

OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7)
CONFIDENCE = 0.05  # average precision looks at weak boxes too
VEHICLES = (1, 2, 3, 5, 7)  # of COCO: bicycle, car, motorcycle, bus, truck


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


def highway_frames(numbers: Sequence[int]) -> Iterator[Tensor]:
    for number in numbers:
        yield picture_of(LABELS / f"cdnet_highway/input/in{number:06d}.jpg")


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
