"""Lists of rows as images, and images as rows, over the same memory where that can be."""

from __future__ import annotations

from torch import Tensor


def as_points(rows: Tensor) -> Tensor:
    """(n, C) as n images of one pixel."""
    return rows.view(rows.shape[0], -1, 1, 1)


def as_column(rows: Tensor) -> Tensor:
    """(n, C) as one image of n x 1 pixels."""
    return rows.view(1, rows.shape[0], 1, -1).permute(0, 3, 1, 2)


def as_images(rows: Tensor, count: int, size: tuple[int, ...]) -> Tensor:
    """(count * h * w, C) as `count` images of h x w pixels."""
    return rows.view(count, *size, -1).permute(0, 3, 1, 2)


def as_rows(images: Tensor) -> Tensor:
    """N C H W -> (N * H * W, C)."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])
