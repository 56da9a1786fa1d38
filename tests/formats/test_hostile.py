"""Files that want to run code, read other files, or take all memory are refused, quickly and by name."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from network_files import exported_tiny, onnx_tiny, tiny

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 700 * 2**20  # bytes above what the process has when its imports are done
SECONDS = 60  # for one file, on a machine that others use too: 0.1 to 3 s alone

LOAD = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
import torch, torch.export.pt2_archive._package, torch._export.serde.serialize
from deltaconvert.checkpoint import read_state_dict
from deltaconvert.errors import CheckpointError
from deltaconvert.formats import Kind, kind_of, load_network
try:
    import onnx2fx
except ImportError:
    pass
own = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (own + int(sys.argv[1]),) * 2)
for path in sys.argv[2:]:
    begin = time.monotonic()
    try:
        (read_state_dict if kind_of(path) is Kind.WEIGHTS else load_network)(path)
        said = "loaded"
    except CheckpointError as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([path, said, time.monotonic() - begin]), flush=True)
"""


def load_all(paths):
    """{name: what loading it said}, in a process of bounded memory."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(MEMORY), *map(str, paths)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = {}
    for path, text, seconds in map(json.loads, done.stdout.splitlines()):
        assert text.startswith(str(path)), f"{path} is not named: {text}"
        assert seconds < SECONDS, f"{path} took {seconds} s"
        said[Path(path).name] = text
    return said


def deep(levels):
    """A protobuf of graphs in graphs: ModelProto.graph.node.attribute.g.node ..."""

    def field(number, data):
        size, out = len(data), b""
        while True:
            out += bytes([size & 127 | (128 if size > 127 else 0)])
            size >>= 7
            if not size:
                return bytes([number << 3 | 2]) + out + data

    graph = b""
    for _ in range(levels):
        graph = field(1, field(5, field(6, graph)))
    return b"\x08\x08" + field(7, graph)


def zipped(entries):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


class Calls:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def pickled(value):
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def test_weights(tmp_path):
    canary = tmp_path / "canary"
    state = pickled(tiny().state_dict())
    with zipfile.ZipFile(io.BytesIO(state)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    largest = max(entries, key=lambda name: len(entries[name]) if "/data/" in name else 0)
    files = {
        "pickle.pt": pickled({"state_dict": Calls(Path.touch, canary)}),
        "bomb.pt": zipped({**entries, largest: bytes(300 * 2**20)}),
        "array.pt": pickled({"a": Calls(bytearray, 10**13)}),
        "short.pt": state[: len(state) // 2],
        "header.safetensors": (2**26).to_bytes(8, "little") + b'{"a":' + b" " * 100,
        "huge.safetensors": (lambda h: len(h).to_bytes(8, "little") + h)(
            b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
        ),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    said = load_all(tmp_path / name for name in files)
    assert "run code" in said["pickle.pt"] and "unpack to" in said["bomb.pt"]
    assert said.keys() == files.keys() and "loaded" not in said.values() and not canary.exists()


def test_exported(tmp_path):
    canary = tmp_path / "canary"
    touch = f"__import__('pathlib').Path({str(canary)!r}).touch()"

    custom = [{"name": "a", "arg": {"as_custom_obj": {"name": "a", "class_fqn": "b"}}, "kind": 1}]

    def node(**facts):
        return lambda program: program["graph_module"]["graph"]["nodes"][0].update(facts)

    def first_size(expression):
        def change(program):
            values = program["graph_module"]["graph"]["tensor_values"]
            values[next(iter(values))]["sizes"][0] = {
                "as_expr": {"expr_str": expression, "hint": {"as_int": 6}}
            }

        return change

    def renamed(name):
        def change(program):
            text = json.dumps(program).replace('"p_first_weight"', json.dumps(name))
            program.update(json.loads(text))

        return change

    def padded(program):
        nodes = program["graph_module"]["graph"]["nodes"]
        next(a for n in nodes for a in n["inputs"] if a["name"] == "padding")["arg"] = {
            "as_ints": [2**20, 2**20]
        }

    def wide(program):
        program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(
            [
                1,
                {
                    "type": None,
                    "context": json.dumps({"__enum__": True, "fqn": "canary:X"}),
                    "children_spec": [],
                },
            ]
        )

    changes = {
        "function.pt2": node(target="torch.hub.load"),
        "file.pt2": node(target="torch.ops.aten.from_file.default"),
        "library.pt2": node(target="torch.ops.load_library"),
        "size.pt2": first_size(touch),
        "tower.pt2": first_size("Pow(Integer(9), Pow(Integer(9), Pow(Integer(9), Integer(9))))"),
        "name.pt2": renamed(f"x={touch}"),
        "quote.pt2": lambda program: program["graph_module"]["signature"]["input_specs"][0][
            "parameter"
        ].update(parameter_name=f'a"+{touch}+"'),
        "import.pt2": wide,
        "padded.pt2": padded,
        "object.pt2": node(inputs=custom),
    }
    paths = [exported_tiny(tmp_path / name, change=change) for name, change in changes.items()]
    touching = pickled(Calls(Path.touch, canary))
    entries = {
        "pickle.pt2": {"data/sample_inputs/model.pt": touching},
        "weights.pt2": {"data/weights/model.pt": touching},
        "compiled.pt2": {"data/aotinductor/model/a.so": b"\x7fELF"},
        "more.pt2": {"models/second.json": b"{}"},
        "again.pt2": {"Models/model.json": b"{}"},
        "payload.pt2": {
            "data/weights/model_weights_config.json": json.dumps(
                {"config": {"first.weight": {"path_name": "weight_0", "use_pickle": True, "is_param": True}}}
            ).encode(),
            "data/weights/weight_0": touching,
        },
    }
    paths += [exported_tiny(tmp_path / name, entries=more) for name, more in entries.items()]
    (tmp_path / "bomb.pt2").write_bytes(zipped({"a/archive_format": b"pt2", "a/b": bytes(200 * 2**20)}))
    (tmp_path / "deep.pt2").write_bytes(
        zipped({"a/archive_format": b"pt2", "a/models/model.json": b'{"a":' * 100_000})
    )
    (tmp_path / "short.pt2").write_bytes(paths[0].read_bytes()[:3000])
    said = load_all([*paths, *(tmp_path / f"{name}.pt2" for name in ("bomb", "deep", "short"))])
    assert len(said) == 19 and not canary.exists()
    assert all("loaded" not in text for text in said.values()), said
    assert "no operator of a network" in said["function.pt2"] and "no operator" in said["file.pt2"]
    assert "compiled code" in said["compiled.pt2"] and "unpack to" in said["bomb.pt2"]
    assert "has the size" in said["size.pt2"] and "has the size" in said["tower.pt2"]
    assert "elements" in said["padded.pt2"] and "run code" in said["pickle.pt2"]


def test_what_guards_a_program_is_not_run(tmp_path):
    """torch makes a function of the guards in a file; they are left out, and the program stays the same."""
    from deltaconvert.formats import load_network

    canary = tmp_path / "canary"
    guard = f"__import__('pathlib').Path({str(canary)!r}).touch() is None"
    path = exported_tiny(tmp_path / "guard.pt2", change=lambda program: program.update(guards_code=[guard]))
    program, (frame,) = load_network(path)
    torch.testing.assert_close(program.module()(frame), tiny()(frame))
    assert not canary.exists()


def test_onnx(tmp_path):
    pytest.importorskip("onnx2fx", reason="ONNX needs onnx2fx: pip install 'deltaconvert[onnx]'")
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(10_000))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)

    def dims(model):
        tensor = model.graph.initializer[0]
        tensor.dims[:] = [10**6, 10**6]
        tensor.ClearField("raw_data")

    def sized(shape):
        def change(model):
            """The output is scaled by a constant of that shape, which a few bytes ask for."""
            model.graph.initializer.append(
                helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape)
            )
            model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["big"]))
            model.graph.node.append(helper.make_node("Mul", ["out", "big"], ["more"]))
            model.graph.output[0].name = "more"

        return change

    def resized(model):
        scales = next(tensor for tensor in model.graph.initializer if tensor.name == "scales")
        scales.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales) * 10**6, "scales"))

    def looped(model):
        body = helper.make_graph([], "body", [], [])
        model.graph.node.append(helper.make_node("Loop", ["", "", "out"], ["more"], body=body))

    def padded(model):
        model.graph.node[0].attribute[0].ints[:] = [2**20] * 4

    def named(model):
        text = "x):\n    open('canary', 'w')\n#"
        for node in model.graph.node:
            node.name = text
            node.input[:] = [text if name == "x" else name for name in node.input]
        model.graph.input[0].name = text

    changes = {
        "dims.onnx": dims,
        "constant.onnx": sized([10**6, 10**6]),
        "constants.onnx": sized([2**14, 2**14]),
        "resize.onnx": resized,
        "loop.onnx": looped,
        "pads.onnx": padded,
        "domain.onnx": lambda model: setattr(model.graph.node[1], "domain", "com.example"),
        "operator.onnx": lambda model: setattr(model.graph.node[1], "op_type", "Shell"),
    }
    paths = [onnx_tiny(folder / name, change=change) for name, change in changes.items()]
    paths.append(onnx_tiny(folder / "input.onnx", size=(1, 3, 10**6, 10**6)))
    places = {
        "above.onnx": "../secret",
        "absolute.onnx": str(tmp_path / "secret"),
        "link.onnx": "link",
        "linked.onnx": "linked/secret",
        "missing.onnx": "none",
        "empty.onnx": "",
        "folder.onnx": ".",
    }
    paths += [onnx_tiny(folder / name, external=place) for name, place in places.items()]
    whole = onnx_tiny(folder / "whole.onnx").read_bytes()
    for share in (0.02, 0.3, 0.9):
        (folder / f"short{share}.onnx").write_bytes(whole[: int(len(whole) * share)])
        paths.append(folder / f"short{share}.onnx")
    (folder / "deep.onnx").write_bytes(deep(3000))
    said = load_all([*paths, folder / "deep.onnx"])
    assert len(said) == 20 and all("loaded" not in text for text in said.values()), said
    for name in ("above.onnx", "absolute.onnx", "empty.onnx"):
        assert "outside the model's folder" in said[name]
    assert "behind the link" in said["link.onnx"] and "behind the link" in said["linked.onnx"]
    assert "control flow" in said["loop.onnx"] and "ONNX standard" in said["domain.onnx"]
    for name in ("constant.onnx", "constants.onnx", "resize.onnx", "pads.onnx", "dims.onnx", "input.onnx"):
        assert "elements" in said[name], said[name]
    from deltaconvert.formats import load_network

    network, (frame,) = load_network(onnx_tiny(folder / "names.onnx", change=named))
    torch.testing.assert_close(network(frame), tiny()(frame), rtol=1e-4, atol=1e-5)
    assert not list(tmp_path.rglob("canary")) and "open" not in network.code
