"""Frames, resets, sleep, snapshots, other sizes, refusals and errors in mid-frame, in any order."""

from __future__ import annotations

import copy
import functools
import random

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from oracle import Call, assert_close, examples, leaves
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError

STREAMS, SIZES = 3, [(9, 11), (17, 18)]
SETTINGS = [
    {},
    {"threshold": {"input": 0.2, "activation": 0.1, "linear": 0.05, "statistics": "1%"}},
    {"threshold": {"input": 0.2}, "gate": {"smooth": 3, "dilate": 1, "weak": 0.5, "refresh": 4}},
    {"threshold": {"input": 0.2}, "gate": {"recent": 3, "noise": 1.0, "cut": 0.4, "nonfinite": "hold"}},
    {"threshold": {"input": 0.2}, "gate": {"max_density": 0.5, "refresh": 5}},
]


class Fussy(nn.Module):
    """An island that raises on large values."""

    def forward(self, x):
        if x.nan_to_num().abs().max().item() > 1e3:
            raise RuntimeError("too large")
        return x * 0.5


def network() -> nn.Module:
    torch.manual_seed(0)
    return Call(
        lambda m, x: (m.last(m.norm(m.fussy(m.conv(x))).relu()), m.head(m.pool(x).flatten(1)) * x.shape[2]),
        conv=nn.Conv2d(2, 4, 3, 2, 1),
        norm=nn.GroupNorm(2, 4, eps=0.1),
        fussy=Fussy(),
        last=nn.Conv2d(4, 3, 3, padding=1),
        pool=nn.AdaptiveAvgPool2d(2),
        head=nn.Linear(8, 5),
    ).eval()


@functools.cache
def models(backend: str, place: int) -> list[deltaconvert.DeltaModel]:
    """The batch, and a model of each stream; examples share them, for converting takes longest."""
    example = torch.randn(1, 2, *SIZES[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch, *alone = (
        deltaconvert.convert(network().double(), frames, backend=name, **SETTINGS[place])
        for name, frames in [(backend, example.expand(STREAMS, -1, -1, -1)), ("reference", example)]
    )
    return [batch, *alone, *(copy.deepcopy(alone[0]) for _ in range(STREAMS - 1))]


class Order(RuleBasedStateMachine):
    """A batch of three, and each of its streams by itself on the reference backend: equal outputs and masks. At
    threshold 0 outputs are also the dense network's, and a still frame changes nothing."""

    @initialize(
        backend=st.sampled_from(["cpu", "cpu", "reference"]),
        place=st.integers(0, len(SETTINGS) - 1),
        seed=st.integers(0, 2**16),
    )
    def start(self, backend, place, seed):
        self.exact, self.dense = place == 0, network().double()
        self.model, *self.alone = models(backend, place)
        for model in (self.model, *self.alone):
            for size in (1, 0):  # after another size everything starts over
                model(torch.zeros(model.streams, 2, *SIZES[size], dtype=torch.float64))
            model.reset()
        self.draw, self.noise = random.Random(seed), torch.Generator().manual_seed(seed)
        self.resize(0)

    def resize(self, size):
        """The next frame has this size, and all streams start over with it."""
        self.size = size
        self.image = torch.randn(STREAMS, 2, *SIZES[size], dtype=torch.float64, generator=self.noise)
        self.snapshots: list[tuple[bytes, bytes]] = []
        self.asleep: set[int] = set()
        self.before = None

    def move(self, stream):
        image, (height, width) = self.image[stream], SIZES[self.size]
        kind = self.draw.choice(["still", "pixel", "patch", "patch", "all", "faint"])
        if kind == "faint":
            image += torch.randn(image.shape, dtype=torch.float64, generator=self.noise) * 0.1
        elif kind != "still":
            side = {"pixel": 1, "patch": 4, "all": 99}[kind]
            top, left = (0, 0) if kind == "all" else (self.draw.randrange(height), self.draw.randrange(width))
            part = image[:, top : top + side, left : left + side]
            part.copy_(torch.randn(part.shape, dtype=torch.float64, generator=self.noise))

    @rule(holds=st.booleans())
    def frame(self, holds):
        for stream in set(range(STREAMS)) - self.asleep:
            if not holds:
                self.move(stream)
        outputs = leaves(self.model(self.image.clone()))
        own = [leaves(model(self.image[i : i + 1].clone())) for i, model in enumerate(self.alone)]
        assert_close(outputs, [torch.cat(rows) for rows in zip(*own, strict=True)], "alone")
        masks, others = self.model.masks(), [model.masks() for model in self.alone]
        for path, mask in masks.items():
            if all(path in each for each in others):
                assert torch.equal(mask, torch.cat([each[path] for each in others])), path
        if self.exact:
            assert_close(outputs, leaves(self.dense(self.image)), "dense")
            if self.before is not None and torch.equal(self.before, self.image):
                assert not any(mask.any() for mask in masks.values()), "a still frame"
        self.before = self.image.clone()

    @rule(stream=st.sampled_from([None, *range(STREAMS)]))
    def reset(self, stream):
        self.model.reset(stream)
        for i, model in enumerate(self.alone):
            model.reset() if stream in (None, i) else model.sleep(())
        self.asleep, self.before = set(), None

    @rule(streams=st.sets(st.integers(0, STREAMS - 1)))
    def sleep(self, streams):
        self.model.sleep(streams)
        for i, model in enumerate(self.alone):
            model.sleep([0] if i in streams else [])
        self.asleep = streams

    @rule(stream=st.integers(0, STREAMS - 1))
    def snapshot(self, stream):
        self.snapshots.append((self.model.snapshot(stream), self.alone[stream].snapshot(0)))

    @precondition(lambda self: self.snapshots)
    @rule(to=st.integers(0, STREAMS - 1), which=st.integers(0, 99))
    def restore(self, to, which):
        ours, theirs = self.snapshots[which % len(self.snapshots)]
        self.model.restore(to, ours)
        self.alone[to].restore(0, theirs)
        for model in self.alone:
            model.sleep(())
        self.asleep, self.before = set(), None

    @rule()
    def another_size(self):
        self.resize(1 - self.size)
        self.frame(holds=True)

    @rule()
    def refused(self):
        for wrong in (self.image.float(), self.image[:, :1], self.image[0], self.image[..., 0]):
            with pytest.raises(InputError):
                self.model(wrong)
        with pytest.raises(InputError):
            self.model.reset(STREAMS)
        with pytest.raises(InputError):
            self.model.restore(0, b"no snapshot")

    @rule(stream=st.integers(0, STREAMS - 1))
    def error_in_mid_frame(self, stream):
        """The next frame of all streams is full."""
        frame = self.image.clone()
        frame[stream] = 1e6
        for model, frames in [(self.model, frame), *zip(self.alone, frame.split(1), strict=True)]:
            model.sleep(())
            try:
                model(frames)
            except RuntimeError as error:
                assert "too large" in str(error)
            else:
                assert model is not self.model and model is not self.alone[stream]
                model.reset()
        self.asleep, self.before = set(), None


Order.TestCase.settings = settings(max_examples=examples(5), stateful_step_count=15)
TestOrder = pytest.mark.filterwarnings("ignore:the input size changed")(Order.TestCase)
