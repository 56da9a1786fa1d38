"""Nodes keep the path that their author knows them by."""

from __future__ import annotations

from torch import fx

from deltaconvert.passes.functionalise import module_path


def name_paths(gm: fx.GraphModule) -> fx.GraphModule:
    """Write the module path of every call to meta["path"]: what explain, stats and thresholds go by.

    before:  layer1_0_relu_1 = relu(x)
    after:   the same, with path "layer1.0.relu" (its second call: "layer1.0.relu#2")
    """
    taken: set[str] = set()
    for node in gm.graph.nodes:
        if "path" in node.meta:  # set for an exported program, whose node names are torch.export's
            path = node.meta["path"]
        elif node.op == "call_module":
            path = str(node.target)
        elif node.op in ("call_function", "call_method"):
            path = ".".join(filter(None, (module_path(node), node.name)))
        else:
            path = node.name
        call, first = 1, path
        while path in taken:
            call += 1
            path = f"{first}#{call}"
        taken.add(path)
        node.meta["path"] = path
    return gm
