"""Sparsify and densify: put them everywhere, then cancel what undoes itself."""

from __future__ import annotations

from torch import fx

from deltaconvert.nodes import densify, names_of, sparsify

_KEPT = ("shape", "dtype", "device", "scale")


def insert_conversions(gm: fx.GraphModule) -> fx.GraphModule:
    """Wrap every delta node, whatever its neighbours are.

    before:  y = conv(x);  z = relu(y)
    after:   y = densify(conv(sparsify(x)));  z = densify(relu(sparsify(y)))

    A conversion is called after what it converts: "densify(conv)". The sparsify of a frame has the frame's own path.
    """
    for node in list(gm.graph.nodes):
        if not node.meta.get("delta"):
            continue
        for source in dict.fromkeys(node.args):
            with gm.graph.inserting_before(node):
                wrapped = gm.graph.call_function(sparsify, (source,))
            describe(wrapped, source)
            node.replace_input_with(source, wrapped)
        with gm.graph.inserting_after(node):
            wrapped = gm.graph.call_function(densify, (node,))
        describe(wrapped, node)
        node.replace_all_uses_with(wrapped, delete_user_cb=lambda user, wrapped=wrapped: user is not wrapped)
    return gm


def cancel_conversions(gm: fx.GraphModule) -> fx.GraphModule:
    """Remove a sparsify right after a densify, densifies that nobody reads, and second sparsifies of one value.

    before:  y = densify(conv(d));  z = relu(sparsify(y))
    after:   z = relu(conv(d))
    """
    first: dict[fx.Node, fx.Node] = {}
    for node in list(gm.graph.nodes):
        if node.target is not sparsify:
            continue
        source = node.args[0]
        if source.target is densify:
            node.replace_all_uses_with(source.args[0])
        elif source in first:
            node.replace_all_uses_with(first[source])
        else:
            first[source] = node
    gm.graph.eliminate_dead_code()
    return gm


def describe(node: fx.Node, source: fx.Node) -> None:
    """What is known of `source` is known of its conversion `node`."""
    node.meta = {key: source.meta[key] for key in _KEPT if key in source.meta}
    names = names_of(source)
    own = names[0] if source.op in ("placeholder", "get_attr") else f"{node.target.__name__}({names[0]})"
    node.meta.update(path=own, parts=names)
