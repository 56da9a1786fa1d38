"""What a user can do about a node that stays dense, and about one that no file can hold."""

from __future__ import annotations

import re

from torch import Tensor, fx

from deltaconvert.nodes import attribute_of, path_of

LITTLE = 0.005  # share of the work below which a node at the end is not worth a change

# The first pattern that the reason has, and the way out.
_WAYS = [(re.compile(pattern), way) for pattern, way in (
    (r"keep_dense names it", "that is your keep_dense: leave the name out, and it runs as deltas"),
    (r"under torch.autocast",
     "cast by hand, and it runs as deltas: x.to(torch.bfloat16) before modules that are in bfloat16, x.float() behind"),
    (r"quantised| is qu?int",
     "convert the float network: all that is quantised stays dense, and no file holds its packed weights"),
    (r"follows from values|no operator for (topk|sort|argsort|nonzero|nms|unique|masked_select|where)\b",
     "this reads values, not places: end the network before it, convert(model.backbone, ...), and do it on outputs"),
    (r"no operator for (bmm|baddbmm|__matmul__)|no product with a matrix of weights",
     "write a product with weights as nn.Linear or a 1x1 convolution; a product of two maps needs all of both: keep it "
     "where maps are small"),
    (r"no operator for .*([Aa]ttention)",
     "attention reads the whole map for each pixel: keep it at the end, or on a small map; local windows change less"),
    (r"no operator for .*([Dd]eform)",
     "its offsets say what a pixel reads, so nothing is known before: a dilated convolution does not have that"),
    (r"no operator for",
     "write it with the operators that docs/operators.md lists, or add it: CONTRIBUTING.md shows one in 40 lines"),
    (r"cannot be traced|cannot trace|cannot capture",
     "its forward branches on values, or calls what tracing cannot follow: branch on sizes and on settings from "
     "__init__, or move it behind the network"),
    (r"has batch \d+, the frame has",
     "let nothing change the number of images before it (a reshape of time into the batch, torch.cat along it): call "
     "the layers once for each part, or convert them alone, the parts being streams"),
    (r"not floating point|changes of integers", "cast it before: x.float()"),
    (r"complex maps", "keep real and imaginary part as channels of a map: torch.cat([z.real, z.imag], 1)"),
    (r"its input input_\d+ has shape \(\d+, \d+, \d+\), not N C H W",
     "give it a batch of one image, as example and as frame: convert(model, frame[None])"),
    (r"has shape \(\d+, \d+\), not N C H W",
     "there is no map here any more, only numbers of the whole frame: leave it, or end the network before it"),
    (r"not N C H W",
     "keep it a map N C H W up to here: permute and reshape are followed where the dimensions stay whole"),
    (r"statistics of the frame", "use stored ones: BatchNorm with track_running_stats=True, and model.eval()"),
    (r"normalises over rows or whole maps", "normalise over the channels of each pixel, or in groups: GroupNorm"),
    (r"^mode=|its order is|dtype=|options that deltaconvert does not know",
     "choose an option that docs/operators.md lists for this operator"),
    (r"returns indices", "ask for the values alone: return_indices=False"),
    (r"output_size", "give output_padding to the module instead of output_size to the call"),
    (r"along dimension|along the channels|along the width|parts of dimension",
     "do it along the channels, dim=1; or transpose the map, and back"),
    (r"joins constants|constant differs from stream", "use one constant for all streams, added by a bias or by x + c"),
    (r"slice|channels, rows and columns|has no channels",
     "take channels, rows and columns by slices that keep the dimension: x[:, 1:2]"),
    (r"is computed in every frame|is a tensor|reads a size|follows from weights",
     "compute it once, in __init__, and keep it by register_buffer"),
    (r"makes the layout that (?P<reader>\S+) reads", "it is there for {reader}: what helps that helps this"),
    (r"moves values between rows", "replace the reshape by flatten, permute or pixel_shuffle, which are followed"),
    (r"lays out a dense result", "it makes a map of a dense result again: what helps that helps this"),
    (r"call is unusual", "call it as torch documents it"),
)]  # fmt: skip


def way_out(reason: str, share: float, comes_last: bool) -> str:
    """What to do about a node that stays dense for `reason` and does `share` of the work.

    comes_last: no delta node follows it, so that its own work is all that it costs.
    """
    for pattern, way in _WAYS:
        found = pattern.search(reason)
        if found is not None:
            text = way.format(**found.groupdict())
            break
    else:
        text = "docs/operators.md lists what runs as deltas; keep the rest behind it, where maps are small"
    if share >= LITTLE or not comes_last or reason == "keep_dense names it":
        return text
    return f"little to gain, for it comes last and does {share:.1%} of the work; else: {text}"


def kept_beside_tensors(gm: fx.GraphModule) -> str | None:
    """The first call that keeps something else than tensors, which no file can hold, and the way out; None for none.

    Packed weights of torch.ao.quantization are such things, and the graph that torch.export makes of an autocast.
    """
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            value = attribute_of(node)
            if not isinstance(value, Tensor):
                reader = next(iter(node.users), node)
                return (
                    f"{path_of(reader)} keeps a {type(value).__name__}, which is no tensor: "
                    f"{way_out(reader.meta.get('why_dense', ''), 1.0, False)}"
                )
    return None
