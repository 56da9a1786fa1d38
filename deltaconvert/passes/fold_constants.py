"""What follows from the input's size and from weights becomes a constant of this plan."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from deltaconvert.passes.loose import is_foreign


def fold_constants(gm: fx.GraphModule) -> fx.GraphModule:
    """Replace values that are the same in every frame by themselves.

    before:  h = x.shape[2];  d = h - 56;  y = pad(x, (0, 0, 0, d))
    after:   y = pad(x, (0, 0, 0, 1))
    """
    for node in list(gm.graph.nodes):
        if "constant" not in node.meta:
            continue
        value = node.meta["constant"]
        if isinstance(value, Tensor):
            name = f"constant_{node.name}"
            gm.register_buffer(name, value)
            with gm.graph.inserting_before(node):
                folded = gm.graph.get_attr(name)
            folded.meta = {key: item for key, item in node.meta.items() if key != "constant"}
            node.replace_all_uses_with(folded)
        else:
            for user in list(node.users):
                if isinstance(value, torch.Size):
                    _size_for(user, node, value)
                user.args = fx.map_arg(user.args, lambda n, node=node, value=value: value if n is node else n)
                user.kwargs = fx.map_arg(
                    user.kwargs, lambda n, node=node, value=value: value if n is node else n
                )
        gm.graph.erase_node(node)
    return gm


def _size_for(user: fx.Node, node: fx.Node, size: torch.Size) -> None:
    """torch.fx turns a torch.Size in the arguments of a node into a tuple, which has no numel(). So the network's own
    code reads an attribute instead, and meta["sizes"] says which outputs are sizes."""
    if user.op == "output":
        places = {place for place, output in enumerate(user.args[0]) if output is node}  # type: ignore[arg-type]
        user.meta["sizes"] = places | user.meta.get("sizes", set())
    elif is_foreign(user):
        setattr(node.graph.owning_module, f"constant_{node.name}", size)
        with node.graph.inserting_before(node):
            user.replace_input_with(node, node.graph.create_node("get_attr", f"constant_{node.name}"))
