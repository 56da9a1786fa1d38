"""What detectors share behind the network: rows of x1, y1, x2, y2, score, class in pixels of the input."""

import torch
from torch import Tensor

CANDIDATES = 1000  # of each level of a pyramid, before suppression


def by_anchor(maps: Tensor, anchors: int) -> Tensor:
    """(N, anchors * K, h, w) -> (N, h * w * anchors, K), row by row."""
    return maps.unflatten(1, (anchors, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)


def best(scores: Tensor, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (anchors, classes) -> score, anchor and class of those above `confidence`, CANDIDATES at most."""
    score, place = scores.flatten().topk(min(CANDIDATES, scores.numel()))
    score, place = score[score > confidence], place[score > confidence]
    return score, place // scores.shape[1], place % scores.shape[1]


def suppress(found: Tensor, overlap: float) -> Tensor:
    """Greedy non-maximum suppression by class: rows (boxes, 6) -> those kept, best first.

    Of two boxes of one class whose intersection over union exceeds `overlap`, the lower score goes.
    """
    found = found[found[:, 4].argsort(descending=True, stable=True)]
    corner, opposite, label = found[:, :2], found[:, 2:4], found[:, 5]
    area = (opposite - corner).prod(1)
    sides = torch.minimum(opposite[:, None], opposite) - torch.maximum(corner[:, None], corner)
    shared = sides.clamp(min=0).prod(2)
    clash = (shared > overlap * (area[:, None] + area - shared)) & (label[:, None] == label)
    keep = torch.ones(len(found), dtype=torch.bool, device=found.device)
    for best in range(len(found)):
        if keep[best]:
            keep[best + 1 :] &= ~clash[best, best + 1 :]
    return found[keep]
