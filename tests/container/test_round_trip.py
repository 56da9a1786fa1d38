"""A saved network comes back bit for bit."""

import warnings
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from contained import bits, load, video
from oracle import Call, assert_same_bits
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import deltaconvert
import model_zoo
from deltaconvert import container
from deltaconvert.errors import ContainerError, InputError

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
    """Weights, description and plan are the same to the last bit after a move to the GPU and back."""
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
    """Maps in other layouts, and operators on them."""

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
    """They come back as NamedTuples of the same names, since the classes themselves would be code."""
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
    """The file holds no class: a loaded network takes any class with the same name and fields, and no other."""
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
    """Such as a defaultdict, which makes missing values by a function of the caller's."""
    network = Call(lambda self, bag: bag["a"] + 1).eval()
    bag = defaultdict(list, a=torch.rand(1, 3, 8, 8))
    converted = deltaconvert.convert(network, (bag,), backend="reference")
    with pytest.raises(ContainerError, match=r"inputs hold a defaultdict.*Wrap the network"):
        converted.save(tmp_path / "net.delta")


def test_the_paths_in_a_file_are_those_of_the_network(saved):
    _, model, path = saved
    planned = {name for name in model.names if "(" not in name}  # what only a plan has
    assert planned and planned <= container.paths_in(path)
