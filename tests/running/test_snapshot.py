"""running/snapshot.py: a stream goes on elsewhere as if nothing had happened."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import Call, assert_same_bits, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError

SHAPE = (3, 3, 9, 11)


def network(width=4):
    """Convolutions, statistics and a global pool, which keep more than maps, and an island."""
    torch.manual_seed(width)
    return Call(
        lambda m, x: m.head(m.pool(m.norm(m.conv(x)).relu()).flatten(1)).cumsum(1),
        conv=nn.Conv2d(3, width, 3, padding=1),
        norm=nn.GroupNorm(2, width),
        pool=nn.AdaptiveAvgPool2d((2, 1)),
        head=nn.Linear(2 * width, 5),
    ).eval()


def video(seed=0, shape=SHAPE):
    return scripted_video(shape, torch.float32, seed)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("cut", [0, 1, 4, 9])
def test_a_stream_goes_on_elsewhere(backend, threshold, cut):
    frames, others = video(), video(seed=1)
    here = deltaconvert.convert(network(), frames[0], backend=backend, threshold=threshold)
    there = copy.deepcopy(here)
    for frame, other in zip(frames[:cut], others, strict=False):
        here(frame)
        there(other)
    there.restore(2, here.snapshot(0))
    for t, (frame, other) in enumerate(zip(frames[cut:], others[cut:], strict=True)):
        mixed = other.clone()
        mixed[2] = frame[0]
        assert_same_bits(there(mixed)[2], here(frame)[0], f"frame {cut + t}")


def test_the_other_streams_do_not_notice(backend):
    frames, others = video(), video(seed=1)
    here = deltaconvert.convert(network(), frames[0], backend=backend)
    undisturbed = copy.deepcopy(here)
    giver = copy.deepcopy(here)
    for frame, other in zip(frames[:5], others, strict=False):
        here(frame), undisturbed(frame), giver(other)
    here.restore(1, giver.snapshot(1))
    for frame in frames[5:]:
        assert_same_bits(here(frame)[[0, 2]], undisturbed(frame)[[0, 2]], "of other streams")


def test_a_still_stream_stays_still(backend):
    frame = video()[0]
    here = deltaconvert.convert(network(), frame, backend=backend)
    there = copy.deepcopy(here)
    here(frame)
    for stream in range(3):
        there.restore(stream, here.snapshot(stream))
    there(frame)
    assert not any(mask.any() for mask in there.masks().values())


def test_a_wider_batch(backend):
    frames = video()
    here = deltaconvert.convert(network(), frames[0], backend=backend)
    there = here.for_streams(5)
    here(frames[0])
    there.restore(4, here.snapshot(1))
    wide = torch.zeros(5, *SHAPE[1:])
    wide[4] = frames[1][1]
    torch.testing.assert_close(there(wide)[4], here(frames[1])[1])


def test_what_does_not_fit_is_refused(backend):
    frames = video()
    model = deltaconvert.convert(network(), frames[0], backend=backend)
    twin = copy.deepcopy(model)
    for frame in frames[:3]:
        model(frame), twin(frame)
    other = deltaconvert.convert(network(6), frames[0], backend=backend)
    smaller = deltaconvert.convert(network(), frames[0][..., :7], backend=backend)
    good = model.snapshot(0)
    for wrong, reason in (
        (other.snapshot(0), "weights differ"),
        (smaller.snapshot(0), "another size or backend: "),
        (good[: len(good) // 2], "snapshot"),
        (good[:40], "no snapshot"),
        (b"", "no snapshot"),
        (b"\xff" * 100, "no snapshot"),
        ("text", "is bytes"),
    ):
        with pytest.raises(InputError, match=reason):
            model.restore(0, wrong)
    with pytest.raises(InputError, match="no stream 3"):
        model.restore(3, good)
    with pytest.raises(InputError, match="no stream -1"):
        model.snapshot(-1)
    for frame in frames[3:]:
        assert_same_bits(model(frame), twin(frame), "after refusals")
