"""Small networks as files in the formats of other programs."""

import io
import json
import zipfile
from functools import cache

import numpy as np
import torch
from torch import nn


class Tiny(nn.Module):
    """A convolution, a branch on the size, a resampled shortcut, a head."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, stride=2, padding=1)

    def forward(self, x):
        y = self.first(x).relu()
        z = nn.functional.interpolate(self.second(y), scale_factor=2.0, mode="nearest")
        return torch.cat((y, z), 1).sigmoid()


def tiny():
    torch.manual_seed(3)
    return Tiny().eval()


def onnx_tiny(path, size=(1, 3, 14, 10), external=None, change=lambda model: None):
    """Tiny as ONNX. external: the file that the weights are said to be in. change: called on the model at the end."""
    import onnx
    from onnx import helper, numpy_helper

    net = tiny()
    weights = {name: value.detach().numpy() for name, value in net.named_parameters()}
    weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "first.weight", "first.bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second.weight", "second.bias"], ["c"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Resize", ["c", "", "scales"], ["d"], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric"),
        helper.make_node("Concat", ["b", "d"], ["e"], axis=1),
        helper.make_node("Sigmoid", ["e"], ["out"]),
    ]  # fmt: skip
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", size), ("out", None))
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", values[:1], values[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if external is not None:
        data = b""
        for tensor in model.graph.initializer[:4]:
            place = {"location": external, "offset": str(len(data)), "length": str(len(tensor.raw_data))}
            data += tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
        (path.parent / "tiny.data").write_bytes(data)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


@cache
def _exported(size):
    """The entries of the archive, by name."""
    out = io.BytesIO()
    torch.export.save(torch.export.export(tiny(), (torch.rand(size),)), out)
    with zipfile.ZipFile(out) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def exported_tiny(path, size=(1, 3, 14, 10), change=lambda program: None, entries=None):
    """Tiny as .pt2. change: called on the description of the program; entries: put into the archive as well."""
    found = dict(_exported(size))
    (name,) = (name for name in found if name.endswith("models/model.json"))
    program = json.loads(found[name])
    change(program)
    found[name] = json.dumps(program).encode()
    top = name.partition("/")[0]
    found.update({f"{top}/{key}": value for key, value in (entries or {}).items()})
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in found.items():
            archive.writestr(name, data)
    return path
