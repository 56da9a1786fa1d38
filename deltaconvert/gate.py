"""The gate: which pixels of a frame are new. Its settings, and what it keeps between frames.

A threshold alone compares every pixel with what is stored. A gate also tells noise from motion, bounds how old a pixel
may become, and how much may change at once. It decides at `sparsify` and nowhere else: behind it there are masks.
"""

from __future__ import annotations

import copy
import math
from array import array
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.errors import InputError

TILE = 16  # pixels; refresh and ceiling go by tiles: single pixels would grow to their windows in the network
NOISE_RATE = 1 / 16  # of a frame in the running noise: settled after some 50 frames
# Of the threshold: by so much the running noise of a pixel that counts as changed rises in a frame at most. When these
# did not learn at all, normal noise of 1 threshold (3 channels, noise 4, peak 16) took 205 frames until a tenth of the
# pixels was left, of 1.5 some 600; with 1/16, 1/32, 1/64 and 1/128 it takes 26, 35, 49 and 71, and 30, 44, 64 and 95.
# What it costs: right after something faint has passed for 16 frames, a change of 1.3 thresholds is found at 64, 88, 97
# and 98 % of its pixels, of 99 (after 40 frames at 27, 40, 73 and 93), 16 frames later at 95 % or more (85 to 98), and
# one of 2 thresholds at 99 % (88, 95, 100 and 100). PETS and two more clips with noise of 1 threshold: .39 to .43 of
# the pixels changed in frames 120 to 199, with 1/64 .04 to .05; without noise what is stored is about as far from the
# frame (rms .37 thresholds for .36, .42 for .42), or a little farther for fewer pixels (.29 for .27, .054 for .060).
NOISE_RISE = 1 / 64
# Of the side of a square of as many tiles as may change in a frame. Half of it came out alike: ResNet-50 at 1080p, 10 %
# may change, a cut took 58 % of the work, 64 with 1.0. Tiles from anywhere took longer than no ceiling.
BLOCK = 1.0
WITHIN = 1e-3  # of its own claim counts for a tile beside its block's
# What bounds age, time and harm, whatever counts as a change: a search for thresholds leaves these as they are.
GUARDS = ("cut", "refresh", "max_density", "nonfinite")
KINDS = {int: "whole number", float: "number", str: "word"}
MEAN_OF_DIFFERENCE = 1.128  # mean |a - b| of two values with Gaussian noise of deviation 1


@dataclass(frozen=True)
class Gate:
    """How frames are looked at where they come in.

    smooth: the difference to what is stored is averaged over so many pixels squared (odd) before it is compared: noise
        averages out, motion does not.
    recent: both sides are also averaged over about so many frames before they are compared: that finds what is faint
        and stays; the frames themselves are compared too, at sqrt(recent) thresholds, for what moves fast.
    noise: a smoothed difference must also exceed so many deviations of its own noise, which is estimated for each pixel
        from the frames; 0 is off.
    peak: whatever `smooth` and `noise` say, a pixel that moved by over peak times the threshold is a change.
    dilate: a change takes the pixels around it along, so far on every side.
    weak: of those it takes the ones that moved (smoothed) by over `weak` thresholds; 0 takes all of them. With it a
        threshold may stand far above the noise, and `dilate` be large: the faint parts of what moves come along.
    cut: the share of changed pixels of a stream from which on its frame is full.
    refresh: every pixel is taken over at least once in so many frames, tile by tile; 0 is off.
    max_density: at most this share of a stream's tiles of 16 pixels changes in a frame: the most changed first; those
        that wait gain with every frame. Tiles with pixels never seen are not counted.
    nonfinite: "pass" computes with NaN and infinity as the dense network does, "hold" keeps the pixel's last value (at
        first 0), and counts it.

    At threshold 0 bits are compared: smooth, recent, noise and peak say nothing there.
    """

    smooth: int = 1
    recent: int = 1
    noise: float = 0.0
    peak: float = 4.0
    dilate: int = 0
    weak: float = 0.0
    cut: float = 1.0
    refresh: int = 0
    max_density: float = 1.0
    nonfinite: str = "pass"

    @classmethod
    def of(cls, value: Gate | Mapping[str, Any] | None, base: Gate | None = None) -> Gate:
        """From what convert(gate=...) takes; InputError names the setting that does not fit. base: has what a mapping
        does not say."""
        if value is None or isinstance(value, Gate):
            return value or cls()
        known = asdict(cls())
        if not isinstance(value, Mapping):
            raise InputError(f"gate={value!r}: give settings by name, {{'smooth': 5}} or Gate(smooth=5)")
        given = {}
        for name, setting in value.items():
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise InputError(f"gate has no {name!r}: {hint}its settings are {', '.join(known)}")
            kind = type(known[name])
            fits = isinstance(setting, kind) or (kind is float and isinstance(setting, int))
            if not fits or isinstance(setting, bool):
                raise InputError(f"gate: {name}={setting!r} is no {KINDS[kind]}")
            given[name] = kind(setting)
        return replace(base or cls(), **given)

    def __post_init__(self) -> None:
        for fits, what in (
            (self.smooth % 2 == 1 and 1 <= self.smooth <= 31, f"smooth={self.smooth}: odd, 1 to 31"),
            (1 <= self.recent <= 1000, f"recent={self.recent}: 1 (off) to 1000 frames"),
            (0 <= self.noise < 100, f"noise={self.noise}: a number of deviations, 0 to 100"),
            (1 <= self.peak < 1e9, f"peak={self.peak}: at least 1 threshold"),
            (0 <= self.dilate <= 64, f"dilate={self.dilate}: 0 to 64 pixels"),
            (0 <= self.weak <= 1, f"weak={self.weak}: a share of the threshold, 0 to 1"),
            (0 < self.cut <= 1, f"cut={self.cut}: a share above 0, up to 1 (off)"),
            (self.refresh >= 0, f"refresh={self.refresh}: a number of frames, or 0 (off)"),
            (0 < self.max_density <= 1, f"max_density={self.max_density}: a share above 0, up to 1 (off)"),
            (
                self.refresh * self.max_density >= 1 or self.refresh == 0,
                f"refresh={self.refresh}: it alone takes over more than max_density={self.max_density} of the tiles "
                f"in a frame; give at least {math.ceil(1 / max(self.max_density, 1e-9))} frames, or 0",
            ),
            (self.nonfinite in ("pass", "hold"), f"nonfinite={self.nonfinite!r}: pass or hold"),
        ):
            if not fits:
                raise InputError(f"gate: {what}")

    def to_json(self) -> dict[str, Any]:
        """The settings that are not as they are by default."""
        plain = asdict(Gate())
        return {name: value for name, value in asdict(self).items() if value != plain[name]}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.to_json().items())


def guarded(gate: Gate, by: Gate) -> Gate:
    """A gate with the guards of another where it has none."""
    plain = Gate()
    missing = [name for name in GUARDS if getattr(gate, name) == getattr(plain, name)]
    return replace(gate, **{name: getattr(by, name) for name in missing})


class Watch:
    """A gate at work on one input: what it keeps between frames. Plain torch, written in place: a graph can hold it.

    threshold: a number; or (N, 1, 1, 1), of each stream, above 0.
    counts: int64 (2): pixels held and full frames after a cut, so far. Of each stream, N 1 1 1:
    ticks, int64, the frames so far; awake, int32, 0 where there is no new one. last: the frame before, noise: what is
    learnt of it, N 1 H W, both empty where no noise is asked for. mean: the running mean of the `seen` frames; then:
    what it was when each pixel was stored; both empty where frames are not averaged. age: the frames that each tile
    waited under a ceiling. most: tiles that may change in a frame; block: the side of a square of so many.
    """

    def __init__(
        self,
        gate: Gate,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        threshold: float | Tensor,
    ):
        n, _, height, width = shape
        self.gate, self.threshold = gate, threshold
        self._exact = not isinstance(threshold, Tensor) and threshold == 0
        self.tiles = -(-height // TILE), -(-width // TILE)
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)
        self.ticks = torch.zeros(n, 1, 1, 1, dtype=torch.int64, device=device)
        self.awake = torch.ones(n, 1, 1, 1, dtype=torch.int32, device=device)
        wide = torch.promote_types(dtype, torch.float32)
        kept = gate.noise > 0 and not self._exact
        averaged = gate.recent > 1 and not self._exact
        self.mean = torch.zeros(shape if averaged else (n, 0, 0, 0), dtype=wide, device=device)
        self.seen = torch.zeros((n, 1, 1, 1), dtype=wide, device=device)
        self.then = torch.zeros_like(self.mean)
        self.last = torch.zeros(shape if kept else (n, 0, 0, 0), dtype=dtype, device=device)
        self.noise = torch.zeros((n, 1, height, width) if kept else (n, 0, 0, 0), dtype=wide, device=device)
        self.age = torch.zeros(n, 1, *self.tiles, dtype=wide, device=device)
        count = self.tiles[0] * self.tiles[1]
        order = torch.arange(count, device=device).view(1, 1, *self.tiles)
        self._turn = order * gate.refresh // count  # the frame, of `refresh`, in which it is a tile's turn
        refreshed = -(-count // gate.refresh) if gate.refresh else 0
        self.most = max(1, int(gate.max_density * count) - refreshed)
        self.block = max(1, round(BLOCK * math.sqrt(self.most)))
        self.reset(slice(None))

    def reset(self, streams: slice) -> None:
        self.last[streams] = float("nan")
        self.mean[streams] = float("nan")
        self.seen[streams] = 0
        self.noise[streams] = 0
        self.age[streams] = 0

    def sleep(self, streams: Collection[int]) -> None:
        """These streams have no frame of their own until it is said again: nothing is new, and nothing learnt."""
        self.awake.copy_(awake_but(streams, len(self.awake)).view(-1, 1, 1, 1), non_blocking=True)

    def of(self, stream: int) -> Watch:
        """This watch for one stream alone; what it keeps stays here."""
        alone = copy.copy(self)
        for name, kept in vars(self).items():
            if isinstance(kept, Tensor) and name not in ("counts", "_turn"):
                setattr(alone, name, kept[stream : stream + 1])
        return alone

    def look(self, frame: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
        """(frame, mask): N C H W with the values to store, and bool (N, 1, H, W), where to store them."""
        gate, awake = self.gate, self.awake.bool()
        if gate.nonfinite == "hold":
            finite = frame.isfinite().all(1, keepdim=True)
            self.counts[0].add_((~finite & awake).sum())
            frame = torch.where(finite, frame, stored.nan_to_num(0.0))
        same_bits = ~_differs(frame, stored)
        # A number is compared as it is, not as a short type would hold it.
        change = (frame - stored).abs().amax(1, keepdim=True).to(self.seen.dtype)
        moved, faint = self._moved(frame, stored, change)
        changed = (moved | (grown(moved, gate.dilate) & faint)) & ~same_bits & awake
        if gate.max_density < 1:
            changed = self._most_changed(changed, change, stored.isnan().any(1, keepdim=True))
        if gate.refresh:
            changed = changed | (self.turn(frame) & ~same_bits & awake)
        self.ticks.add_(self.awake)
        if gate.cut < 1:
            full = changed.float().mean((2, 3), keepdim=True) >= gate.cut
            self.counts[1].add_(full.sum())
            changed = changed | full
        if self.mean.numel():
            # A mean of few frames is noise: until it is one of `recent`, frames themselves are compared alone.
            renewed = changed | ((self.seen < gate.recent) & awake)
            self.then.copy_(torch.where(renewed, self.mean, self.then))
        return frame, changed

    def _moved(self, frame: Tensor, stored: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """bool (N, 1, H, W): beyond the threshold and the noise, NaN always; and what such a pixel takes along."""
        gate = self.gate
        limit: Any = self.threshold
        if self._exact:
            moved = _differs(frame, stored)
            return moved, torch.ones_like(moved)
        smoothed = self._smoothed(frame, stored) if gate.smooth > 1 or gate.recent > 1 else change
        if gate.noise > 0:
            averaged = gate.smooth * math.sqrt(gate.recent)
            least = (self.noise * (gate.noise / averaged)).clamp(limit, limit * gate.peak)
        moved = ~(smoothed <= (least if gate.noise > 0 else limit)) | ~(change <= limit * gate.peak)
        if gate.noise > 0:
            self._learn(frame, change, moved)
        return moved, ~(smoothed <= limit * gate.weak) if gate.weak > 0 else torch.ones_like(moved)

    def _smoothed(self, frame: Tensor, stored: Tensor) -> Tensor:
        """The difference (N, 1, H, W) averaged over pixels, and over frames where that makes it larger."""
        gate, wide, awake = self.gate, self.noise.dtype, self.awake.bool()
        found = box_mean((frame - stored).to(wide), gate.smooth).abs().amax(1, keepdim=True)
        if gate.recent == 1:
            return found
        # At first the mean of all; then the rate at which a running mean has the noise of one of `recent` frames.
        self.seen.add_(self.awake)
        mean = self.mean + (frame - self.mean) * (1 / self.seen).clamp(min=2 / (gate.recent + 1))
        mean = torch.where(self.mean.isnan(), frame, mean)
        self.mean.copy_(torch.where(awake, mean, self.mean))
        then = torch.where(self.seen > gate.recent, self.then, self.mean)
        lasting = box_mean(self.mean - then, gate.smooth).abs().amax(1, keepdim=True)
        return torch.maximum(_over(found, math.sqrt(gate.recent)), lasting)

    def _learn(self, frame: Tensor, change: Tensor, moved: Tensor) -> None:
        """Noise is what stands between a frame and the last one where nothing moved. A pixel that moved learns as well,
        since noise may be all that it was, but slowly upwards, and nothing from what `peak` takes for motion anyway."""
        wide, limit = self.noise.dtype, self.threshold
        off = (frame.to(wide) - self.last.to(wide)).abs().sum(1, keepdim=True)
        seen = _over(_over(off, frame.shape[1]), MEAN_OF_DIFFERENCE)
        step, awake = (seen - self.noise) * NOISE_RATE, self.awake.bool()
        step = torch.where(moved, step.clamp(max=limit * NOISE_RISE), step)
        learns = (change <= limit * self.gate.peak) & seen.isfinite() & awake
        self.noise.copy_(torch.where(learns, self.noise + step, self.noise))
        self.last.copy_(torch.where(awake, frame, self.last))

    def _most_changed(self, changed: Tensor, change: Tensor, unseen: Tensor) -> Tensor:
        """The changed pixels of the tiles whose turn it is: those with the largest change times frames waited, and
        their neighbours before what lies elsewhere. As many tiles all over the frame would grow to all of it in the
        network, and a frame's time would have no ceiling. Tiles with pixels never seen go beside them."""
        # Bounded, so that one infinite pixel does not make every wait equal.
        size = torch.where(changed, change.to(self.age.dtype).nan_to_num(1e18, 1e18).clamp(1e-18, 1e18), 0.0)
        claims = F.max_pool2d(size, TILE, ceil_mode=True) * (self.age + 1)
        new = F.max_pool2d((changed & unseen).to(size.dtype), TILE, ceil_mode=True) > 0
        claims = torch.where(new, 0.0, claims)
        wanted = claims > 0
        keys = torch.where(wanted, self._of_blocks(claims) + claims * WITHIN, 0.0)
        chosen = wanted & largest(keys, self.most)
        waiting = wanted & ~chosen
        self.age.copy_(torch.where(self.awake.bool(), torch.where(waiting, self.age + 1, 0.0), self.age))
        return changed & self._pixels(chosen | new, change)

    def _of_blocks(self, claims: Tensor) -> Tensor:
        """Of each tile the largest claim in its block."""
        side, (height, width) = self.block, self.tiles
        blocks = F.max_pool2d(claims, side, ceil_mode=True)
        return blocks.repeat_interleave(side, 2)[:, :, :height].repeat_interleave(side, 3)[..., :width]

    def turn(self, like: Tensor) -> Tensor:
        """bool (N, 1, H, W): the pixels of the tiles that are to be taken over in this frame."""
        return self._pixels(self._turn == self.ticks % self.gate.refresh, like)

    def _pixels(self, tiles: Tensor, like: Tensor) -> Tensor:
        """bool (N, 1, tiles down, tiles right) -> (N, 1, H, W)."""
        height, width = like.shape[2:]
        return tiles.repeat_interleave(TILE, 2)[:, :, :height].repeat_interleave(TILE, 3)[..., :width]

    def report(self) -> dict[str, int]:
        held, cuts = self.counts.tolist()
        return {"held": held, "cuts": cuts, "waiting": int((self.age > 0).sum())}

    def state_bytes(self) -> int:
        kept = (self.last, self.mean, self.then, self.noise, self.age)
        return sum(x.nbytes for x in kept)


def awake_but(streams: Collection[int], count: int) -> Tensor:
    """int32 (count), on the host: 0 for `streams`, which sleep, 1 for the others."""
    awake = array("i", [1]) * count
    for stream in streams:
        awake[stream] = 0
    return torch.frombuffer(awake, dtype=torch.int32)


def box_mean(x: Tensor, size: int) -> Tensor:
    """The mean over size x size pixels around each; at the border over those that there are."""
    for kernel in ((size, 1), (1, size)):
        padding = (kernel[0] // 2, kernel[1] // 2)
        x = F.avg_pool2d(x, kernel, 1, padding, count_include_pad=False)
    return x


def _over(x: Tensor, by: float) -> Tensor:
    """x / by, with the same bits on all devices: on CUDA torch multiplies by the inverse of what is a Python number."""
    return x / x.new_full((), by)


def largest(values: Tensor, count: int) -> Tensor:
    """bool, as `values` (N ...): `count` of each of the N, the largest; of equal ones the first."""
    flat = values.flatten(1)
    least = flat.topk(count, 1).values[:, -1:]  # the places that topk gives are any of equal ones
    beyond, equal = flat > least, flat == least
    room = count - beyond.sum(1, keepdim=True)
    return (beyond | (equal & (equal.cumsum(1) <= room))).view(values.shape)


def grown(mask: Tensor, by: int) -> Tensor:
    """A mask with the pixels up to `by` away from it, along rows and columns."""
    if by == 0:
        return mask
    grown = mask.float()
    for kernel in ((2 * by + 1, 1), (1, 2 * by + 1)):
        grown = F.max_pool2d(grown, kernel, 1, (kernel[0] // 2, kernel[1] // 2))
    return grown > 0


def _differs(frame: Tensor, stored: Tensor) -> Tensor:
    from deltaconvert.backends.reference import differs

    return differs(frame, stored, 0)
