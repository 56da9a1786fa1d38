"""Settings that are taken as they are, and that can hardly be meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, fx

from deltaconvert.nodes import sparsify
from deltaconvert.passes.place_thresholds import frame_of
from deltaconvert.thresholds import Thresholds


def doubts(rules: Thresholds, planned: fx.Graph, frames: Sequence[Tensor]) -> Iterator[str]:
    """What to warn of. planned: the graph with `rules` placed; frames: the example that they were placed by, flat."""
    if rules.outlasts_refresh:
        yield (
            "refresh renews the frame, not what narrow changes left out in the layers behind it: reset() does, and "
            "monitor(every=100) tells how much it is"
        )
    inputs = dict(zip((node for node in planned.nodes if node.op == "placeholder"), frames, strict=False))
    for node in planned.nodes:
        read = frame_of(node.args[0]) if node.target is sparsify else None
        if read is not None:
            low, high = (float(end) for end in inputs[read].aminmax())
            # A blank example, or NaN in it, says nothing.
            if node.meta.get("threshold", 0.0) > (high - low) / 2 > 0:
                yield (
                    f"a threshold of {node.meta['threshold']:.4g} at the input is more than half of what the example "
                    f"spans, {low:.3g} to {high:.3g}: after the first frame hardly anything would count as a change. "
                    "It is in the units of the input, 10/255 where pixels are 0 to 1; or a share of the mean "
                    "magnitude, 10%"
                )
