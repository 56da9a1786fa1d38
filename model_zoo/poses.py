"""What networks for poses share behind the network."""

import torch
from torch import Tensor

STRIDE = 4


def joints(heat: Tensor) -> Tensor:
    """Heat maps (N, joints, H/4, W/4) to (N, joints, 3): x and y in pixels of the network's input, and the score.

    A joint lies at the largest value, a quarter of a cell nearer to its larger neighbour in each direction; on the
    border, at the cell itself.
    """
    height, width = heat.shape[2:]
    values = heat.flatten(2)
    score, place = values.max(2, keepdim=True)
    row, column = place // width, place % width
    position = []
    for cell, size, step in ((column, width, 1), (row, height, width)):
        inside = (cell > 0) & (cell < size - 1)
        before, after = (values.gather(2, torch.where(inside, place + s, place)) for s in (-step, step))
        position.append((cell + (after - before).sign() / 4) * STRIDE)
    return torch.cat((*position, score), 2)
