"""A saved network comes back bit for bit, and nothing else comes out of a file: no code, no half files."""

import hashlib
import json
import os
import warnings
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from oracle import Call, assert_same_bits
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import deltaconvert
import model_zoo
from deltaconvert import container
from deltaconvert.errors import ContainerError, InputError
from deltaconvert.graph_json.values import MAX_DEPTH

SIZES = {"unet": 48, "unet_bilinear": 48, "msrresnet_x4": 24, "deeplabv3_resnet50": 40}


class Islands(nn.Module):
    """Dense parts of many spellings: tensors of its own, words, slices, dtypes, reflect padding, nested outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.shared = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.register_buffer("grid", torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 2, 2))

    def forward(self, x, *, extra):
        y = F.relu(self.conv(x)) * self.shared + self.shared
        y = F.pad(y, (1, 1, 1, 1), mode="replicate")[..., 1:-1, 1:-1]
        pooled, where = self.pool(y)
        tokens = self.norm(pooled.flatten(2).transpose(1, 2))
        scores = torch.einsum("bnc,cd->bnd", tokens, self.head.weight.t()).softmax(-1)
        mask = (scores > 0.25).to(torch.float32).masked_fill(scores < 0.1, float("-inf"))
        up = F.interpolate(pooled, scale_factor=2, mode="bicubic", align_corners=False)
        return {
            "a": [up, (where.sum(dim=(1, 2, 3)), mask)],
            "b": OrderedDict(x=x, extra=extra + y.mean(), none=None, number=3, grid=self.grid),
        }


class Summed(nn.Module):
    """A call of a function, and one of a method, that stay dense."""

    def forward(self, x):
        return torch.cumsum(x, 1).cumprod(1)


@pytest.fixture
def saved(tmp_path):
    """(network, converted, path) of a small network with dense parts."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5), Summed()
    )
    model.eval()
    converted = deltaconvert.convert(model, torch.rand(1, 3, 8, 8), threshold="5%", backend="reference")
    path = tmp_path / "net.delta"
    converted.save(path)
    return model, converted, path


def load(path):
    return deltaconvert.load(path, backend="reference")


def video(*shape, frames=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(shape, generator=generator)
    for number in range(frames):
        yield x
        x = x.clone()
        x[..., number : number + 3, 2:6] += 0.3


def bits(tensors):
    return {name: (t.dtype, t.shape, t.contiguous().numpy().tobytes()) for name, t in tensors.items()}


# ---- what is saved comes back


# Others of the zoo are made of the same parts, by the same code.
TWINS = ("efficientdet_d1", "mobilenetv3_large", "pose_resnet50", "resnet50")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in TWINS else name for name in model_zoo.names()],
)
def test_the_zoo_comes_back(name, tmp_path):
    side, channels = SIZES.get(name, 64), model_zoo.recipe(name).input_size[0]
    example = next(video(1, channels, side, side))
    ours = deltaconvert.convert(model_zoo.create(name, seed=1), example, threshold="10%", backend="reference")
    ours.save(tmp_path / "net.delta")
    back = load(tmp_path / "net.delta")
    assert back.explain() == ours.explain()
    assert back.thresholds == ours.thresholds and max(back.thresholds.values()) > 0
    for frame in video(1, channels, side, side):
        torch.testing.assert_close(back(frame), ours(frame), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "fastestdet", "resnet18", "unet"])
def test_to_cuda_and_back(gpu, name, tmp_path):
    """Weights, description and plan are the same to the last bit after a stay on the GPU."""
    side, channels = SIZES.get(name, 64), model_zoo.recipe(name).input_size[0]
    here, there, back = (tmp_path / f"{name}.delta" for name in ("here", "there", "back"))
    with torch.device("cpu"):
        example = next(video(1, channels, side, side))
        ours = deltaconvert.convert(
            model_zoo.create(name, seed=1), example, threshold="10%", backend="reference"
        )
        ours.save(here)
    on_gpu = deltaconvert.load(here, device="cuda")
    assert on_gpu.backend == "cuda" and on_gpu.rules == ours.rules
    on_gpu(example.to(gpu))
    on_gpu.save(there)
    with torch.device("cpu"):
        returned = load(there)
        returned.save(back)
        assert returned.explain() == ours.explain() and returned.thresholds == ours.thresholds
        for frame in video(1, channels, side, side):
            torch.testing.assert_close(returned(frame), ours(frame), rtol=0, atol=0)
    network, tensors = container._read(here.read_bytes())
    for path in (there, back):
        again, weights = container._read(path.read_bytes())
        assert again == network and bits(weights) == bits(tensors)


def test_dense_parts_and_nested_outputs_come_back(tmp_path):
    torch.manual_seed(0)
    model = Islands().eval()
    call = {"x": torch.rand(2, 3, 8, 12), "extra": torch.rand(2, 5)}
    ours = deltaconvert.convert(model, call, backend="reference")
    ours.info = {"arch": "islands", "numbers": [1, 2.5, None]}
    ours.save(tmp_path / "net.delta")
    back = load(tmp_path / "net.delta")
    assert back.explain() == ours.explain() and back.info == ours.info
    for frame in video(2, 3, 8, 12):
        a, b = (net(x=frame, extra=call["extra"]) for net in (ours, back))
        assert type(b["b"]) is OrderedDict and b["b"]["none"] is None and b["b"]["number"] == 3
        torch.testing.assert_close(b, a, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(b["a"][0], model(x=frame, extra=call["extra"])["a"][0])


class Laid(nn.Module):
    """Maps in other layouts, and what becomes of them."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.head = nn.LayerNorm(4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.register_buffer("index", torch.tensor([3, 0, 1, 2]))

    def forward(self, x):
        y = F.pixel_unshuffle(x, 2).view(x.shape[0], 4, -1).transpose(1, 2)
        y = self.linear(self.norm(y)).transpose(1, 2).reshape(x.shape[0], 4, x.shape[2] // 2, -1)
        y = F.channel_shuffle(y, 2)[:, self.index].flip(1)[:, [0, 1, 3, 2]]
        return F.pixel_shuffle(y, 2), self.head(F.layer_norm(y.mean((2, 3), keepdim=True).flatten(1), (4,)))


def test_layouts_come_back(tmp_path):
    model, (example, *frames) = Laid().eval(), video(2, 1, 8, 12, frames=4)
    ours = deltaconvert.convert(model, example, backend="reference")
    ours.save(tmp_path / "net.delta")
    back = load(tmp_path / "net.delta")
    assert back.explain() == ours.explain() and ours.explain().delta_share == 1
    for frame in (example, *frames):
        torch.testing.assert_close(back(frame), ours(frame), rtol=0, atol=0)
        torch.testing.assert_close(back(frame), model(frame))
    with pytest.warns(UserWarning, match="input size changed"):
        torch.testing.assert_close(back(torch.ones(1, 1, 6, 2)), model(torch.ones(1, 1, 6, 2)))


def test_a_new_size_after_loading(saved):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)).eval()
    ours = deltaconvert.convert(model, torch.rand(1, 3, 8, 8), threshold="10%", backend="reference")
    ours.save(saved[2])
    back = load(saved[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for frame in video(2, 3, 14, 10):
            assert torch.equal(back(frame), ours(frame))
    assert back.thresholds == ours.thresholds


def test_it_needs_nothing_but_the_file(saved):
    """The class of the network is not there when the file is read, and dense weights come back bit for bit."""
    model, converted, path = saved
    frame = torch.rand(1, 3, 8, 8)
    del model
    assert torch.equal(load(path)(frame), converted(frame))


def test_keep_dense_and_memory_formats(tmp_path):
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    model = model.to(memory_format=torch.channels_last)
    ours = deltaconvert.convert(model, torch.rand(1, 8, 9, 9), keep_dense=["2"], backend="reference")
    ours.save(tmp_path / "net.delta")
    back = load(tmp_path / "net.delta")
    assert [row.reason for row in back.explain().islands] == ["keep_dense names it"]
    weights = [b for name, b in back.graph.named_buffers() if name.endswith("weight")]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_shared_and_overlapping_tensors_are_written_once(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1)
            self.tail = nn.Parameter(self.conv.weight.detach()[2:4], requires_grad=False)

        def forward(self, x):
            return F.conv2d(self.conv(self.conv(x)), self.tail)

    ours = deltaconvert.convert(Shared().eval(), torch.rand(1, 6, 8, 8), backend="reference")
    ours.save(tmp_path / "net.delta")
    assert len(safetensors.torch.load_file(tmp_path / "net.delta")) == 3
    frame = torch.rand(1, 6, 8, 8)
    assert torch.equal(load(tmp_path / "net.delta")(frame), ours(frame))


# ---- what a file cannot hold is said when it is written


def test_a_module_kept_whole(tmp_path):
    class Mine(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Mine()).eval()
    converted = deltaconvert.convert(model, torch.rand(1, 3, 8, 8), backend="reference")
    with pytest.raises(ContainerError, match=r"1 stays whole.*Mine.*Convert the part"):
        converted.save(tmp_path / "net.delta")
    assert list(tmp_path.iterdir()) == []


Pair = namedtuple("Pair", "a b")
_Hidden = namedtuple("_Hidden", "a b")


@dataclass
class Found:
    scores: Tensor
    boxes: Any = None


@pytest.fixture
def known_to_pytree():
    torch.export.register_dataclass(Found)
    yield
    pytree._deregister_pytree_node(Found)


def test_named_outputs_come_back(tmp_path, known_to_pytree):
    """As NamedTuples of the same names: the classes themselves would be code."""
    network = Call(lambda self, x: {"first": Pair(F.relu(x), (x,)), "second": Found(-x)}).eval()
    frame = torch.randn(1, 3, 8, 8)
    converted = deltaconvert.convert(network, frame, backend="reference")
    converted.save(tmp_path / "net.delta")
    out = deltaconvert.load(tmp_path / "net.delta", backend="reference")(frame)
    assert type(out["first"]).__name__ == "Pair" and type(out["second"]).__name__ == "Found"
    named = {
        "a": (out["first"].a, frame.relu()),
        "b": (out["first"].b[0], frame),
        "scores": (out["second"].scores, -frame),
    }
    for name, (ours, theirs) in named.items():
        assert_same_bits(ours, theirs, name)


def test_named_inputs_of_the_callers_own_class(tmp_path, known_to_pytree):
    """The file has no classes: what is loaded takes any that has the same name and fields, and no other."""
    network = Call(lambda self, pair, found: pair.a + pair.b + found.scores).eval()
    frames = [torch.rand(1, 3, 8, 8) for _ in range(3)]
    call = (_Hidden(*frames[:2]), Found(frames[2], frames[0]))
    converted = deltaconvert.convert(network, call, backend="reference")
    converted.save(tmp_path / "net.delta")
    loaded = deltaconvert.load(tmp_path / "net.delta", backend="reference")
    assert_same_bits(loaded(*call), sum(frames), "the caller's classes")
    found = namedtuple("Found", "scores boxes")(frames[2], frames[0])
    assert_same_bits(loaded(_Hidden(*frames[:2]), found), sum(frames), "others of the same names")
    for other in (Pair(*frames[:2]), frames[:2], namedtuple("_Hidden", "b a")(*frames[:2])):
        with pytest.raises(InputError, match=r"was converted for \(_Hidden\(a=\*, b=\*\), Found"):
            loaded(other, found)


def test_inputs_that_no_file_can_hold(tmp_path):
    """A defaultdict makes what is missing by a function of the caller's."""
    network = Call(lambda self, bag: bag["a"] + 1).eval()
    bag = defaultdict(list, a=torch.rand(1, 3, 8, 8))
    converted = deltaconvert.convert(network, (bag,), backend="reference")
    with pytest.raises(ContainerError, match=r"inputs hold a defaultdict.*Wrap the network"):
        converted.save(tmp_path / "net.delta")


def test_info_must_be_plain(saved):
    _, converted, path = saved
    before = path.read_bytes()
    converted.info = {"when": object()}
    with pytest.raises(ContainerError, match="info takes plain values"):
        converted.save(path)
    assert path.read_bytes() == before


# ---- damaged files


def test_every_part_of_the_file_is_covered(saved, tmp_path):
    data = saved[2].read_bytes()
    size = len(data)
    head = 8 + int.from_bytes(data[:8], "little")
    places = {*range(0, 40), *range(40, head, 37), *range(head, size, 101), size - 1}
    for place in sorted(places):
        broken = bytearray(data)
        broken[place] ^= 0x10
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(ContainerError):
            load(tmp_path / "broken")


def test_truncated_at_any_length(saved, tmp_path):
    data = saved[2].read_bytes()
    for length in [*range(0, 20), *range(20, len(data), 211), len(data) - 1]:
        (tmp_path / "short").write_bytes(data[:length])
        with pytest.raises(ContainerError):
            load(tmp_path / "short")
    (tmp_path / "long").write_bytes(data + b"\0")
    with pytest.raises(ContainerError, match="SHA-256"):
        load(tmp_path / "long")


def test_files_of_others(tmp_path):
    path = tmp_path / "other"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ContainerError, match="checkpoint of torch"):
        load(path)
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ContainerError, match="no converted network: convert it first"):
        load(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ContainerError, match="is not a converted network"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


def test_a_newer_version(saved):
    rewrite(saved[2], version="2")
    with pytest.raises(ContainerError, match=r"version 2.*reads up to 1.*upgrade"):
        load(saved[2])


# ---- hostile files: the checksum is right, the contents are not


def rewrite(path, change=None, **fields):
    """Write a file anew with other contents and a right checksum; `change` edits the description."""
    data = path.read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = {**head["__metadata__"], "sha256": "0" * 64, **fields}
    if change is not None:
        network = json.loads(metadata["network"])
        change(network)
        metadata["network"] = json.dumps(network)
    new = bytearray(safetensors.torch.save(safetensors.torch.load(data), metadata))
    place = new.find(b'"sha256":"') + 10
    new[place : place + 64] = hashlib.sha256(new).hexdigest().encode()
    path.write_bytes(new)


def node(network, op):
    return next(n for n in network["nodes"] if n["op"] == op)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_a_rewritten_file_loads(saved):
    """The tests below fail for what they change, not for being rewritten."""
    rewrite(saved[2], lambda n: None)
    load(saved[2])


CALLS = """
    torch.load torch.from_file torch.save torch.hub.load torch.jit.load torch.ops.load_library
    os.system posix.system nt.system builtins.eval builtins.exec builtins.__import__ builtins.open
    operator.attrgetter operator.methodcaller operator.call functools.partial
    torch.set_num_threads torch.manual_seed torch.nn.functional.torch torch.nn.functional.handle_torch_function
    torch.__builtins__ torch.empty torch._C._nn.__class__ torch relu
    """.split()


@pytest.mark.parametrize("name", ["", *CALLS])
def test_no_other_function(saved, name):
    def change(network):
        node(network, "function")["target"] = name

    rewrite(saved[2], change)
    with pytest.raises(ContainerError, match="a converted file may not"):
        load(saved[2])


@pytest.mark.parametrize(
    "name", ["apply_", "numpy", "storage", "data_ptr", "register_hook", "__class__", "set_", "resize_"]
)
def test_no_other_method(saved, name):
    def change(network):
        node(network, "function").update(op="method", target=name)

    rewrite(saved[2], change)
    with pytest.raises(ContainerError, match="a converted file may not"):
        load(saved[2])


@pytest.mark.parametrize(
    "attribute", ["__class__", "__init__", "grad_fn", "data", "_backward_hooks", "storage"]
)
def test_no_other_attribute(saved, attribute):
    def change(network):
        call = node(network, "function")
        call.update(target="builtins.getattr", args=[call["args"][0], attribute])
        call.pop("kwargs", None)

    rewrite(saved[2], change)
    with pytest.raises(ContainerError, match="the word"):
        load(saved[2])


def record(network, name, field):
    """Let its outputs be of such a class."""
    outputs = network["signature"]["outputs"]
    outputs["tree"] = {"record": [name, [[field, outputs["tree"]]]]}


CHANGES = {
    "unknown operator": (lambda n: node(n, "operator").update(type="Evil"), "does not know"),
    "the base class": (lambda n: node(n, "operator").update(type="Operator", settings={}), "does not know"),
    "unknown module": (lambda n: node(n, "operator").update(op="module", type="Module"), "may not"),
    "unknown kind": (lambda n: node(n, "operator").update(op="call_python"), "unknown kind"),
    "missing setting": (lambda n: node(n, "operator")["settings"].pop("weight"), "makes no network"),
    "tensor not there": (
        lambda n: node(n, "operator")["settings"].update(weight={"tensor": ["x", "contiguous"]}),
        "does not hold",
    ),
    "text for a tensor": (lambda n: node(n, "operator")["settings"].update(weight="w"), "makes no network"),
    "a path for a word": (lambda n: node(n, "function")["args"].append("/etc/passwd"), "the word"),
    "undefined node": (lambda n: node(n, "function").update(args=[{"node": "ghost"}]), "not defined before"),
    "a node that reads itself": (
        lambda n: node(n, "function").update(args=[{"node": node(n, "function")["name"]}]),
        "not defined before",
    ),
    "a cycle": (lambda n: n["nodes"].insert(1, n["nodes"].pop(-2)), "not defined before"),
    "two nodes of one name": (lambda n: n["nodes"].insert(1, n["nodes"][0]), "two nodes have the name"),
    "code for a name": (lambda n: n["nodes"][0].update(name="x = __import__('os')"), "no identifier"),
    "a keyword for a name": (lambda n: n["nodes"][0].update(name="lambda"), "no identifier"),
    "code for an argument": (
        lambda n: node(n, "function").update(kwargs={"a=print(1)": 1}),
        "no identifiers",
    ),
    "no output": (lambda n: n["nodes"].pop(), "must end with its one output"),
    "two outputs": (lambda n: n["nodes"].insert(1, n["nodes"][-1]), "must end with its one output"),
    "no nodes": (lambda n: n.update(nodes=[]), "no list of 1 to"),
    "nodes of another kind": (lambda n: n.update(nodes={"a": 1}), "no list of 1 to"),
    "too many nodes": (lambda n: n.update(nodes=[n["nodes"][0]] * 20_001), "no list of 1 to"),
    "a list that never ends": (
        lambda n: node(n, "function").update(args=[[0] * 10_001]),
        "10000 are the limit",
    ),
    "deep nesting": (lambda n: node(n, "function").update(args=[nested(MAX_DEPTH + 2)]), "nested deeper"),
    "code for a field": (lambda n: record(n, "Pair", "a, b=print(1)"), "unknown kind 'record'"),
    "code for a class": (lambda n: record(n, "Pair\nimport os", "a"), "unknown kind 'record'"),
    "a field of the class": (lambda n: record(n, "Pair", "__class__"), "unknown kind 'record'"),
    "a class of many fields": (
        lambda n: n["signature"]["outputs"].update(
            tree={"record": ["Pair", [[f"a{i}", {"tuple": []}] for i in range(101)]]}
        ),
        "unknown kind 'record'",
    ),
    "a keyword for a field": (lambda n: record(n, "Pair", "lambda"), "unknown kind 'record'"),
    "deep outputs": (lambda n: n["signature"]["outputs"].update(tree=nested(100)), "nested deeper"),
    "a huge number": (lambda n: node(n, "function").update(args=[10**30]), "which no size"),
    "a huge input": (lambda n: n["inputs"][0].update(shape=[1, 3, 10**6, 10**6]), "elements"),
    "a negative input": (lambda n: n["inputs"][0].update(shape=[1, 3, -8, 8]), "no shape"),
    "an unknown type": (lambda n: n["inputs"][0].update(dtype="object"), "unknown type"),
    "no inputs": (lambda n: n.update(inputs=[]), "inputs"),
    "a huge padding": (
        lambda n: node(n, "operator")["settings"].update(padding={"tuple": [2**40, 2**40]}),
        "elements|makes no network",
    ),
    "a huge map": (
        lambda n: node(n, "function").update(
            target="torch.nn.functional.pad",
            args=[{"node": n["nodes"][0]["name"]}, {"tuple": [0, 2**33]}],
            kwargs={},
        ),
        "elements",
    ),
    "a NaN threshold": (lambda n: n.update(thresholds=[["input", float("nan")]]), "no threshold|makes no"),
    "thresholds of another kind": (lambda n: n.update(thresholds=[["input", []]]), "no rules"),
    "escape codes": (lambda n: n["nodes"][1].update(path="a\x1b[2J"), "no line of text"),
    "leaves out of order": (
        lambda n: n["signature"]["outputs"].update(tree={"tuple": [{"leaf": 1}]}),
        "in order",
    ),
    "another number of outputs": (
        lambda n: n["signature"]["outputs"].update(tree=[{"leaf": 0}, {"leaf": 1}]),
        "its signature has others",
    ),
}


@pytest.mark.parametrize("label", CHANGES)
def test_hostile_descriptions(saved, label):
    change, message = CHANGES[label]
    rewrite(saved[2], change)
    with pytest.raises(deltaconvert.DeltaConvertError, match=message):
        load(saved[2])


def test_json_nested_beyond_the_parser(saved):
    rewrite(saved[2], network="[" * 100_000)
    with pytest.raises(ContainerError):
        load(saved[2])


# ---- a write that is interrupted


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(saved, monkeypatch, broken):
    _, converted, path = saved
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space"):
        converted.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_folder_that_is_not_there(saved, tmp_path):
    path = tmp_path / "none" / "net.delta"
    with pytest.raises(FileNotFoundError) as caught:
        container.save(saved[1], path)
    assert caught.value.filename == str(path), "the name that was given"


def test_devices_that_are_not_there(saved):
    _, _, path = saved
    with pytest.raises(InputError, match="there is no device 'gpu': take cpu, cuda or cuda:1"):
        deltaconvert.load(path, device="gpu")
    with pytest.raises(InputError, match=r"device cuda:99 is not to be had here"):
        deltaconvert.load(path, device="cuda:99")
