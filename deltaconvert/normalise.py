"""normalise: one spelling per operator, batch norm folded, dropout gone, one instance per call site."""

from __future__ import annotations

from torch import fx

from deltaconvert.passes import run_passes
from deltaconvert.passes.adopt_operators import adopt_operators
from deltaconvert.passes.drop_identities import drop_identities
from deltaconvert.passes.fill_empty import fill_empty
from deltaconvert.passes.fold_batch_norm import fold_batch_norm
from deltaconvert.passes.fold_padding import fold_padding
from deltaconvert.passes.name_paths import name_paths
from deltaconvert.passes.open_glu import open_glu
from deltaconvert.passes.open_tuples import open_tuples
from deltaconvert.passes.split_norms import split_norms

PASSES = (
    name_paths,
    open_glu,
    open_tuples,
    fill_empty,
    drop_identities,
    adopt_operators,
    fold_padding,
    fold_batch_norm,
    split_norms,
)


def normalise(gm: fx.GraphModule) -> fx.GraphModule:
    """The traced graph in its normal form. It holds for every input size: what depends on the size comes in plan."""
    return run_passes(gm, PASSES)
