"""Plain dense networks with the parameter names of their public checkpoints, and how to feed them video.

    model = model_zoo.create("resnet50")
    model.load_state_dict(torch.load("resnet50-11ad3fa6.pth", weights_only=True))
    logits = model(model_zoo.recipe("resnet50").prepare(frame))

A network is added by a module of this package that decorates its factory with `@network(Recipe(...))`;
there is no list to edit. Needs nothing but torch.
"""

from model_zoo.registry import Recipe, UnknownNetwork, create, names, network, recipe

__all__ = ["Recipe", "UnknownNetwork", "create", "names", "network", "recipe"]
