"""Changed pixels stand out, and the others stay recognisable."""

import sys

import pytest
import torch

from deltaconvert.drawing.overlay import OUTLINE, TINT, outline, overlay
from deltaconvert.errors import InputError


def scene(height=40, width=60):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)


def box(height=40, width=60):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[10:20, 30:45] = True
    return mask


def test_changed_pixels_are_tinted_and_the_rest_dimmed():
    frame, mask = scene(), box()
    before = frame.clone()
    shown = overlay(frame, mask)
    assert shown.dtype == torch.uint8 and shown.shape == frame.shape
    assert torch.equal(frame, before)
    inside = mask & ~outline(mask)
    expected = 0.55 * frame[inside].float() + 0.45 * torch.tensor(TINT)
    assert (shown[inside].float() - expected).abs().max() <= 2
    assert (shown[outline(mask)] == torch.tensor(OUTLINE, dtype=torch.uint8)).all()
    rest, was = shown[~mask].float(), frame[~mask].float()
    assert rest.mean() < 0.75 * was.mean()
    assert (rest.amax(1) - rest.amin(1) <= 0.5 * (was.amax(1) - was.amin(1))).all()


def test_the_outline_is_one_pixel_wide_and_inside():
    edge = outline(box())
    assert edge.sum() == 10 * 15 - 8 * 13
    assert not (edge & ~box()).any()


def test_the_outline_stays_open_at_the_frame_edge():
    assert not outline(torch.ones(5, 7, dtype=torch.bool)).any()
    assert not outline(torch.zeros(5, 7, dtype=torch.bool)).any()
    left = torch.zeros(5, 7, dtype=torch.bool)
    left[:, :3] = True
    assert outline(left).nonzero()[:, 1].tolist() == [2] * 5


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1)])
def test_tiny_frames(size):
    assert overlay(scene(*size), torch.ones(size, dtype=torch.bool), label="12 %").shape == (*size, 3)


def test_label_in_the_upper_left_corner():
    pytest.importorskip("PIL")
    frame, mask = scene(120, 160), torch.zeros(120, 160, dtype=torch.bool)
    plain, labelled = overlay(frame, mask), overlay(frame, mask, label="7.5 % changed")
    differs = (plain != labelled).any(2)
    assert differs.any()
    assert not differs[30:].any()
    assert (labelled[:30] > 200).all(2).sum() > 20


def test_no_label_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert torch.equal(overlay(scene(), box(), label="7 %"), overlay(scene(), box()))


@pytest.mark.parametrize(
    ("frame", "mask"),
    [
        (scene().float(), box()),
        (scene().permute(2, 0, 1), box()),
        (scene(), box().byte()),
        (scene(), box(41, 60)),
    ],
)
def test_what_does_not_fit(frame, mask):
    with pytest.raises(InputError, match="it must be"):
        overlay(frame, mask)
