"""Files that try to run code, read other files, or take all memory are refused quickly and with a reason."""

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


def load_all(folder, expected):
    """Each file of `folder` is refused in the words that `expected` has for it, by a process of bounded memory."""
    paths = [folder / name for name in expected]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(MEMORY), *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = list(map(json.loads, done.stdout.splitlines()))
    assert [path for path, _, _ in answers] == list(map(str, paths))
    for (path, said, seconds), words in zip(answers, expected.values(), strict=True):
        assert said.startswith(path) and words in said, f"{path} is not named, or not for {words!r}: {said}"
        assert seconds < SECONDS, f"{path} took {seconds} s"
    assert not list(folder.rglob("canary")), "code in a file has run"


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


TOUCH = "__import__('pathlib').Path('canary').touch()"  # what code in a file would do
TOUCHING = pickled(Calls(Path.touch, Path("canary")))


def test_hostile_weights_are_refused(tmp_path):
    state = pickled(tiny().state_dict())
    with zipfile.ZipFile(io.BytesIO(state)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    largest = max(entries, key=lambda name: len(entries[name]) if "/data/" in name else 0)
    huge = b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    files = {
        "pickle.pt": (TOUCHING, "run code"),
        "bomb.pt": (zipped({**entries, largest: bytes(300 * 2**20)}), "unpack to"),
        "array.pt": (pickled({"a": Calls(bytearray, 10**13)}), "cannot be read as a checkpoint"),
        "short.pt": (state[: len(state) // 2], "cannot be read as a checkpoint"),
        "header.safetensors": ((2**26).to_bytes(8, "little") + b'{"a":' + b" " * 100, "no safetensors file"),
        "huge.safetensors": (len(huge).to_bytes(8, "little") + huge, "no safetensors file"),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    load_all(tmp_path, {name: said for name, (_, said) in files.items()})


# ---- programs of torch.export


def node(**facts):
    return lambda program: program["graph_module"]["graph"]["nodes"][0].update(facts)


def first_size(expression):
    def change(program):
        values = program["graph_module"]["graph"]["tensor_values"]
        size = {"as_expr": {"expr_str": expression, "hint": {"as_int": 6}}}
        values[next(iter(values))]["sizes"][0] = size

    return change


def weight_named(name):
    def change(program):
        program.update(json.loads(json.dumps(program).replace('"p_first_weight"', json.dumps(name))))

    return change


def parameter_named(name):
    def change(program):
        program["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = name

    return change


def padded(program):
    nodes = program["graph_module"]["graph"]["nodes"]
    padding = next(a for n in nodes for a in n["inputs"] if a["name"] == "padding")
    padding["arg"] = {"as_ints": [2**20, 2**20]}


def nested_in_an_import(program):
    context = json.dumps({"__enum__": True, "fqn": "canary:X"})
    spec = [1, {"type": None, "context": context, "children_spec": []}]
    program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(spec)


CUSTOM = [{"name": "a", "arg": {"as_custom_obj": {"name": "a", "class_fqn": "b"}}, "kind": 1}]
PICKLED_WEIGHT = {"first.weight": {"path_name": "weight_0", "use_pickle": True, "is_param": True}}

PROGRAMS = {  # what is changed in the description of the program, and what is said
    "function.pt2": (node(target="torch.hub.load"), "no operator of a network"),
    "file.pt2": (node(target="torch.ops.aten.from_file.default"), "no operator of a network"),
    "library.pt2": (node(target="torch.ops.load_library"), "no operator of a network"),
    "object.pt2": (node(inputs=CUSTOM), "holds a part of its own kind"),
    "size.pt2": (first_size(TOUCH), "has the size"),
    "tower.pt2": (
        first_size("Pow(Integer(9), Pow(Integer(9), Pow(Integer(9), Integer(9))))"),
        "has the size",
    ),
    "name.pt2": (weight_named(f"x={TOUCH}"), "as name"),
    "quote.pt2": (parameter_named(f'a"+{TOUCH}+"'), "as parameter_name"),
    "import.pt2": (nested_in_an_import, "nests its values in something else"),
    "padded.pt2": (padded, "elements"),
}
ARCHIVES = {  # what is put into the archive beside the program, and what is said
    "pickle.pt2": ({"data/sample_inputs/model.pt": TOUCHING}, "would run code"),
    "weights.pt2": ({"data/weights/model.pt": TOUCHING}, "would run code"),
    "compiled.pt2": ({"data/aotinductor/model/a.so": b"\x7fELF"}, "compiled code"),
    "more.pt2": ({"models/second.json": b"{}"}, "holds 2 programs"),
    "again.pt2": ({"Models/model.json": b"{}"}, "ambiguous names"),
    "payload.pt2": (
        {
            "data/weights/model_weights_config.json": json.dumps({"config": PICKLED_WEIGHT}).encode(),
            "data/weights/weight_0": TOUCHING,
        },
        "as a pickle, which could run code",
    ),
}


def test_hostile_programs_are_refused(tmp_path):
    for name, (change, _) in PROGRAMS.items():
        exported_tiny(tmp_path / name, change=change)
    for name, (entries, _) in ARCHIVES.items():
        exported_tiny(tmp_path / name, entries=entries)
    files = {
        "bomb.pt2": (zipped({"a/archive_format": b"pt2", "a/b": bytes(200 * 2**20)}), "unpack to"),
        "deep.pt2": (
            zipped({"a/archive_format": b"pt2", "a/models/model.json": b'{"a":' * 100_000}),
            "cannot be read",
        ),
        "short.pt2": ((tmp_path / "function.pt2").read_bytes()[:3000], "cannot be read"),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    load_all(tmp_path, {name: said for name, (_, said) in (PROGRAMS | ARCHIVES | files).items()})


def test_what_guards_a_program_is_not_run(tmp_path, monkeypatch):
    """torch compiles the guards in a file into a function; we leave them out, and the program stays the same."""
    from deltaconvert.formats import load_network

    monkeypatch.chdir(tmp_path)
    change = lambda program: program.update(guards_code=[f"{TOUCH} is None"])
    program, (frame,) = load_network(exported_tiny(tmp_path / "guard.pt2", change=change))
    torch.testing.assert_close(program.module()(frame), tiny()(frame))
    assert not (tmp_path / "canary").exists()


# ---- ONNX


def million_weights(model):
    tensor = model.graph.initializer[0]
    tensor.dims[:] = [10**6, 10**6]
    tensor.ClearField("raw_data")


def scaled_by_a_constant(*shape):
    """The output is scaled by a constant of that shape, which a few bytes ask for."""

    def change(model):
        from onnx import TensorProto, helper

        model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape))
        model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["big"]))
        model.graph.node.append(helper.make_node("Mul", ["out", "big"], ["more"]))
        model.graph.output[0].name = "more"

    return change


def resized(model):
    from onnx import numpy_helper

    scales = next(tensor for tensor in model.graph.initializer if tensor.name == "scales")
    scales.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales) * 10**6, "scales"))


def looped(model):
    from onnx import helper

    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", "", "out"], ["more"], body=body))


def widely_padded(model):
    model.graph.node[0].attribute[0].ints[:] = [2**20] * 4


def node_with(**fields):
    def change(model):
        for name, value in fields.items():
            setattr(model.graph.node[1], name, value)

    return change


MODELS = {  # what is changed in the model, and what is said
    "dims.onnx": (million_weights, "elements"),
    "constant.onnx": (scaled_by_a_constant(10**6, 10**6), "elements"),
    "constants.onnx": (scaled_by_a_constant(2**14, 2**14), "elements"),
    "resize.onnx": (resized, "elements"),
    "pads.onnx": (widely_padded, "elements"),
    "loop.onnx": (looped, "control flow"),
    "domain.onnx": (node_with(domain="com.example"), "ONNX standard"),
    "operator.onnx": (node_with(op_type="Shell"), "Shell"),
}
PLACES = {  # where the weights are said to be, and what is said
    "above.onnx": ("../secret", "outside the model's folder"),
    "absolute.onnx": ("/etc/passwd", "outside the model's folder"),
    "empty.onnx": ("", "outside the model's folder"),
    "link.onnx": ("link", "behind the link"),
    "linked.onnx": ("linked/secret", "behind the link"),
    "missing.onnx": ("none", "no file"),
    "folder.onnx": (".", "no file"),
}


@pytest.fixture
def onnx():
    pytest.importorskip("onnx2fx", reason='ONNX needs onnx2fx: pip install "deltaconvert[onnx]"')


def test_hostile_onnx_files_are_refused(onnx, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(10_000))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    for name, (change, _) in MODELS.items():
        onnx_tiny(folder / name, change=change)
    for name, (place, _) in PLACES.items():
        onnx_tiny(folder / name, external=place)
    onnx_tiny(folder / "input.onnx", size=(1, 3, 10**6, 10**6))
    whole = onnx_tiny(tmp_path / "whole.onnx").read_bytes()
    damaged = {f"short{share}.onnx": whole[: int(len(whole) * share)] for share in (0.02, 0.3, 0.9)}
    damaged["deep.onnx"] = deep(3000)
    for name, data in damaged.items():
        (folder / name).write_bytes(data)
    expected = {name: said for name, (_, said) in (MODELS | PLACES).items()}
    load_all(folder, expected | {"input.onnx": "elements"} | dict.fromkeys(damaged, "is damaged or no ONNX"))


def test_names_in_an_onnx_file_are_no_code(onnx, tmp_path, monkeypatch):
    from deltaconvert.formats import load_network

    def named(model):
        text = f"x):\n    {TOUCH}\n#"
        for node in model.graph.node:
            node.name = text
            node.input[:] = [text if name == "x" else name for name in node.input]
        model.graph.input[0].name = text

    monkeypatch.chdir(tmp_path)
    network, (frame,) = load_network(onnx_tiny(tmp_path / "names.onnx", change=named))
    torch.testing.assert_close(network(frame), tiny()(frame), rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "canary").exists() and "touch" not in network.code
