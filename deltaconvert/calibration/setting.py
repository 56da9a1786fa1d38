"""A setting of a network's thresholds, and its outcome on a clip."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deltaconvert.gate import Gate


@dataclass(frozen=True)
class Setting:
    """Thresholds to try.

    shares: of each site's scale, in the order of the sites.
    weighted: whether thresholds are weighted by channels; at inputs they never are.
    gate: of the frames.
    narrow: the places of the sites whose changes are narrow.
    """

    shares: tuple[float, ...]
    weighted: bool = False
    gate: Gate = field(default_factory=Gate)
    narrow: frozenset[int] = frozenset()

    def times(self, factor: float, but: Collection[int] = ()) -> Setting:
        """Every share times a factor, except at the sites `but`."""
        scaled = (share if place in but else share * factor for place, share in enumerate(self.shares))
        return replace(self, shares=tuple(scaled))

    def towards(self, other: Setting, part: float) -> Setting:
        """Shares a part of the way to another's, in their logarithms; one that is 0 in either is this one's."""
        pairs = zip(self.shares, other.shares, strict=True)
        return replace(self, shares=tuple(a * (b / a) ** part if a and b else a for a, b in pairs))

    def turned(self, place: int) -> Setting:
        """Wide changes of a site become narrow, narrow ones wide."""
        return replace(self, narrow=self.narrow ^ {place})

    def at(self, place: int, share: float) -> Setting:
        return replace(self, shares=(*self.shares[:place], share, *self.shares[place + 1 :]))

    def without(self, places: Collection[int]) -> Setting:
        """No thresholds at these sites."""
        return replace(
            self, shares=tuple(0.0 if i in places else share for i, share in enumerate(self.shares))
        )

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Setting:
        """From what `to_json` gave."""
        gate, narrow = Gate.of(kept["gate"]), frozenset(kept.get("narrow", ()))
        return cls(tuple(kept["shares"]), kept["weighted"], gate, narrow)

    def to_json(self) -> dict[str, Any]:
        return {
            "shares": list(self.shares),
            "weighted": self.weighted,
            "gate": self.gate.to_json(),
            "narrow": sorted(self.narrow),
        }

    def padded(self, sites: int) -> Setting:
        """With no thresholds at further sites: kinds of sites that were added later come last."""
        return replace(self, shares=(*self.shares, *[0.0] * (sites - len(self.shares))))


@dataclass(frozen=True)
class Outcome:
    """loss: by the metric. guide: the loss by the metric that sensitivities are measured with. work: the share of a
    dense frame's multiply-accumulates, without the first frame."""

    loss: float
    guide: float
    work: float
