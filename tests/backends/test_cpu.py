"""What the cpu backend adds to the reference: fused epilogues, joined convolutions, bands of large maps."""

import copy

import pytest
import torch
from oracle import Call, assert_close, assert_same_bits, check_operator, rounding, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.backends.base import Map
from deltaconvert.backends.cpu import bands, packed, sparse, tiles
from deltaconvert.backends.cpu.bands import Computing
from deltaconvert.backends.cpu.chunks import FULL_ENOUGH, chunks, sizes_below
from deltaconvert.backends.cpu.edges import Edge, store
from deltaconvert.backends.cpu.native import loops
from deltaconvert.backends.cpu.packed import Epilogue, PackedConv, has_bfloat16
from deltaconvert.ops.conv import Conv2d

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_convolution_pointwise"), reason="this torch has no packed convolutions"
)


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setattr(loops, "FOUND", False)


@pytest.fixture(params=("numba", "torch"))
def with_and_without_numba(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(loops, "FOUND", False)
    elif not loops.FOUND:
        pytest.skip("numba is not installed")


def residual():
    return {"conv": nn.Conv2d(4, 4, 3, padding=1), "point": nn.Conv2d(4, 4, 1), "act": nn.ReLU()}


ACTIVATIONS = [
    *(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.7), nn.LeakyReLU(0.3), nn.Sigmoid(), nn.Tanh(), nn.SiLU()),
    *(nn.Hardswish(), nn.Hardsigmoid(), nn.GELU(), nn.GELU("tanh"), nn.ELU(), nn.Mish()),
]


@pytest.mark.parametrize("act", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("kernel", (1, 3))
def test_activation_in_the_epilogue(act, kernel, with_and_without_numba):
    module = nn.Sequential(nn.Conv2d(3, 20, kernel, padding=kernel // 2), act, nn.Conv2d(20, 5, kernel))
    check_operator(module, (2, 3, 13, 11), dtype=torch.float32, backend="cpu")


def test_what_is_slow_without_numba_says_so(without_numba, recwarn, tmp_path):
    frame = torch.rand(1, 3, 9, 8)
    network = nn.Conv2d(3, 4, 3).eval()
    model = deltaconvert.convert(network, frame, backend="cpu")
    model.save(tmp_path / "net.delta")
    assert not recwarn.list
    for make in (
        lambda: deltaconvert.convert(network, frame),
        lambda: deltaconvert.load(tmp_path / "net.delta"),
    ):
        with pytest.warns(UserWarning, match=r'pip install "deltaconvert\[cpu\]"'):
            make()


SKIPS = {
    "add": lambda m, x: m.point(m.conv(x)) + x,
    "add from the left": lambda m, x: x + m.point(x),
    "add, relu": lambda m, x: m.act(m.conv(x) + x),
    "add, sigmoid": lambda m, x: (m.conv(x) + x).sigmoid(),
    "add twice": lambda m, x: m.act(m.point(x) + x + m.conv(x)),
    "add a gate": lambda m, x: m.act(m.conv(x) + x.mean((2, 3), keepdim=True)),
    "add one channel": lambda m, x: m.conv(x) + x[:, :1],
    "add to one channel": lambda m, x: m.conv(x)[:, :1] + x,
    "add, then joined": lambda m, x: m.point(m.act(m.conv(x) + x)) * x.mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize("name", SKIPS)
def test_skip_in_the_epilogue(name, with_and_without_numba):
    check_operator(Call(SKIPS[name], **residual()), (2, 4, 9, 14), dtype=torch.float32, backend="cpu")


def test_joined_convolution_stores_nothing_between():
    depthwise = nn.Sequential(
        nn.Conv2d(4, 24, 3, padding=1), nn.ReLU6(), nn.Conv2d(24, 24, 3, padding=1, groups=24)
    )
    module = nn.Sequential(depthwise, nn.ReLU6(), nn.Conv2d(24, 6, 1))
    frame = torch.randn(1, 4, 12, 10)
    delta = deltaconvert.convert(module.eval(), frame, backend="cpu")
    shapes = [mask.shape[2:] for mask in delta.masks().values()]
    assert len(shapes) == 3, f"input, first convolution, and the rest in one: {list(delta.masks())}"
    assert [row.operator for row in delta.explain().rows if row.kind == "delta"] == [
        "Conv2d + relu6",
        "Conv2d + relu6 + Conv2d",
    ]
    whole = deltaconvert.convert(module, frame, backend="reference").explain()
    assert sum(row.macs for row in delta.explain().rows) == sum(row.macs for row in whole.rows)
    check_operator(module, (2, 4, 12, 10), dtype=torch.float32, backend="cpu")


def test_a_threshold_between_keeps_them_apart():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()).eval()
    frame = torch.randn(1, 3, 12, 10)
    apart = deltaconvert.convert(module, frame, backend="cpu", threshold={"1": 0.1})
    assert apart.thresholds["0"] == 0.1 and len(apart.masks()) == 3
    behind = deltaconvert.convert(module, frame, backend="cpu", threshold={"3": "10%"})
    assert len(behind.masks()) == 2 and behind.thresholds["0"] > 0
    # Another size goes by the amounts of the first: none for the activation inside, the same behind it.
    rules = behind.rules
    assert rules["1"] == 0 and rules["3"] == behind.thresholds["0"]


class Bands(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.dilated = nn.Conv2d(16, 16, 5, 1, 4, dilation=2, groups=16)
        self.point, self.square = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 3, 1, 1)
        self.last = nn.Conv2d(24, 24, 7, 3, 2)

    def forward(self, x):
        y = self.point(self.dilated(self.first(x).relu()).relu())
        y = (y + self.square(y).relu()) * y.mean((2, 3), keepdim=True)
        return self.last(y).sigmoid()


@pytest.mark.parametrize("shape", [(1, 3, 61, 47), (3, 3, 40, 33), (1, 3, 9, 200)])
def test_bands(monkeypatch, without_numba, shape):
    monkeypatch.setattr(bands, "GAIN", float("inf"))  # bands win every comparison
    monkeypatch.setattr(bands, "BAND_BYTES", 3000)
    used = []
    run = bands.Bands.run
    monkeypatch.setattr(bands.Bands, "run", lambda self, inputs: (used.append(self), run(self, inputs))[1])
    module = Bands().eval()
    frames = scripted_video(shape, torch.float32)
    model = deltaconvert.convert(module, frames[0], backend="cpu")
    fresh, used[:] = copy.deepcopy(model), []
    for t, frame in enumerate(frames):
        outputs = model(frame)
        with torch.no_grad():
            assert_close(outputs, module(frame), f"frame {t}")
        fresh.reset()
        assert_same_bits(outputs, fresh(frame), f"frame {t} against a reset model")
    assert used, "no frame was computed in bands"


def several():
    """Convolutions of all kinds, a gate, a skip, a bilinear step and a pool."""
    torch.manual_seed(0)
    return Call(
        lambda m, x: m.last(
            (m.up(m.first(x)) + x[:, :1]) * x.mean((2, 3), keepdim=True).amax(1, keepdim=True)
        ),
        first=nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6(), nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.ReLU6()),
            *(nn.Conv2d(32, 16, 1), nn.ReLU(), nn.MaxPool2d(3, 1, 1)),
        ),
        up=nn.Upsample(scale_factor=2, mode="bilinear"),
        last=nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 5, 1)),
    ).eval()


@pytest.mark.parametrize("threshold", [0.0, {"activation": 0.05}])
@pytest.mark.parametrize("enough, few", [(1, {1}), (17 * 11 + 1, {1, 2}), (10**9, {6})])
def test_streams_are_computed_few_at_a_time(monkeypatch, without_numba, threshold, enough, few):
    """The dense operator gives the same bits for many streams as for the few that were tried."""
    monkeypatch.setattr(sparse, "ENOUGH_PIXELS", enough)
    frames = scripted_video((6, 3, 34, 22), torch.float32)
    model = deltaconvert.convert(several(), frames[0][:1], backend="cpu", threshold=threshold)
    wide, network = model.for_streams(6), several()
    fresh, taken = copy.deepcopy(wide), []
    alone = [model.for_streams(1) for _ in range(6)] if enough == 1 else []
    whole = Computing._whole
    monkeypatch.setattr(Computing, "_whole", lambda s, maps: (taken.append(len(maps[0])), whole(s, maps))[1])
    for t, frame in enumerate(frames):
        outputs = wide(frame)
        if threshold == 0:
            with torch.no_grad():
                assert_close(outputs, network(frame), f"frame {t}")
            fresh.reset()
            assert_same_bits(outputs, fresh(frame), f"frame {t} against a reset model")
        for stream, own in enumerate(alone):
            assert_same_bits(outputs[stream : stream + 1], own(frame[stream : stream + 1]), f"frame {t}")
    assert taken and set(taken) <= few


def test_more_streams_are_planned_without_trying_again(monkeypatch, without_numba):
    tried, compare = [], sparse.Sparse._compare
    monkeypatch.setattr(
        sparse.Sparse, "_compare", lambda self: (tried.append(self.edge.mask.shape[0]), compare(self))[1]
    )
    monkeypatch.setattr(sparse, "ENOUGH_PIXELS", 34 * 22)
    model = deltaconvert.convert(several(), torch.rand(1, 3, 34, 22), backend="cpu")
    first = len(tried)
    assert first > 4 and set(tried) == {1}
    wide = model.for_streams(8)  # 34x22 pixels are known, 17x11 are tried in fours, gates all at once
    assert 0 < len(tried) - first < first and set(tried[first:]) == {4, 8}
    ahead = len(tried)
    twin = model.for_streams(8)
    assert len(tried) == ahead, "and so are they for the next one"
    for frame in scripted_video((8, 3, 34, 22), torch.float32):
        assert_same_bits(wide(frame), twin(frame), "two networks that settled the same")


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_short_types(dtype):
    """Errors are like the dense network's, whether convolutions run whole or not; a still frame costs nothing.

    Each of three layers rounds once, by half a unit in the last place of its result; 4 units allow for that.
    """
    convs = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 8, 1)
    network = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.MaxPool2d(2), convs[2]).eval().to(dtype)
    frames = [*scripted_video((2, 3, 37, 29), torch.float32)]
    model = deltaconvert.convert(network, frames[0].to(dtype), backend="cpu")
    for frame in frames:
        if frame.isfinite().all():
            assert rounding(model(frame.to(dtype)), network, [frame.to(dtype)]) <= 4 * torch.finfo(dtype).eps
    model(frame.to(dtype))
    model(frame.to(dtype))
    assert model.stats().work == 0


def wide():
    """Windows by tiles and by taps, a stride, a depthwise convolution, 1x1s, a skip."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Residual(32), nn.Conv2d(32, 128, 1)),
        *(
            nn.ReLU6(),
            nn.Conv2d(128, 128, 3, 1, 1, groups=128),
            nn.SiLU(),
            Residual(128),
            nn.Conv2d(128, 5, 1),
        ),
    )


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return (x + self.conv(x)).relu()


@pytest.mark.skipif(not has_bfloat16(), reason="the CPU does not multiply bfloat16")
@pytest.mark.parametrize("box", (4, 40))
def test_bfloat16_recomputes_what_changed(box, with_and_without_numba, monkeypatch):
    """The bits are those of a fresh model on this frame, and errors are like the dense network's."""
    monkeypatch.setattr(sparse.Sparse, "_sparse_seconds", lambda step: 1e-12)  # never dense
    network, draw = wide().eval().bfloat16(), torch.Generator().manual_seed(box)
    frame = torch.rand(2, 3, 96, 128, generator=draw).bfloat16()
    model = deltaconvert.convert(network, frame, backend="cpu")
    model(frame)
    for place in (0, 17, 50):
        frame = frame.clone()
        frame[1, :, place : place + box, place : place + box] = torch.rand(3, box, box, generator=draw)
        output = model(frame)
        work = model.stats().work
        assert 0 < work < 0.6, "the stream that stood still costs nothing"
        assert_same_bits(output, model.for_streams(2)(frame), "a network that saw no other frame")
        assert rounding(output, network, [frame]) <= 8 * torch.finfo(torch.bfloat16).eps


@pytest.mark.skipif(not has_bfloat16(), reason="the CPU does not multiply bfloat16")
def test_bfloat16_without_a_unit_runs_whole(monkeypatch):
    frame = torch.rand(1, 3, 32, 32).bfloat16()
    assert packed.can_pack(frame)
    monkeypatch.setattr(packed, "has_bfloat16", lambda: False)
    assert not packed.can_pack(frame) and packed.can_pack(frame.float())


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.float64, torch.int64, torch.bool))
@pytest.mark.parametrize("channels", (1, 2, 3, 4, 6, 8))
def test_rows_are_stored_bit_by_bit(dtype, channels):
    rows, places = torch.zeros(20, channels, dtype=dtype), torch.tensor([0, 3, 19])
    for new in (
        (torch.randn(3, channels) * 99).to(dtype),
        (torch.randn(3, 9) * 99).to(dtype)[:, 1 : channels + 1],
    ):
        for count in (0, 1, 3):
            expected = rows.clone()
            if count and dtype.is_floating_point:
                new[0, 0] = float("nan")
            expected[places[:count]] = new[:count]
            store(rows, places[:count], new[:count])
            assert torch.equal(rows.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("shape", ((1, 5, 31, 43), (3, 4, 20, 20), (2, 1, 9, 9), (4, 6, 1, 1)))
def test_a_dense_map_follows_what_changed(shape):
    """It follows whatever share changes, also in some streams alone or if a stream is restored, without moving."""
    streams, channels, *size = shape
    edge, draw = Edge(Map(shape, torch.float32, torch.device("cpu"))), torch.Generator().manual_seed(1)
    edge.draw()
    first = edge.dense()
    for share in (0.02, 0.9, 0.0, 0.05, 1.0):
        mask = torch.rand(streams, 1, *size, generator=draw) < share
        mask[0] = False
        edge.values.copy_(torch.where(mask, torch.rand(shape, generator=draw), edge.values))
        edge.mark(mask, 0)
        edge.put(0, torch.rand(channels, *size, generator=draw))
        dense = edge.dense()
        assert torch.equal(dense, edge.values) and dense.is_contiguous()
        assert dense.data_ptr() == first.data_ptr()


def test_a_copy_rounds_alike():
    """Maps of one channel have one stride, whether a step was tried on them before the first frame or not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 3, padding=2, dilation=2), nn.ReLU()).eval().double()
    video = scripted_video((3, 1, 3, 17))
    model = deltaconvert.convert(network, video[0], backend="cpu", threshold=0.5)
    twin = copy.deepcopy(model)
    for t, frame in enumerate(video):
        assert_same_bits(model(frame), twin(frame), f"frame {t}")


def test_weights_are_kept_once_for_each_order():
    conv = Conv2d(torch.randn(256, 256, 1, 1), None, (1, 1), (0, 0), (1, 1), 1)
    shared = {}
    packed = PackedConv(conv, (0, 0), Epilogue(), shared)
    twin = PackedConv(copy.deepcopy(conv), (0, 0), Epilogue(), shared)
    twin._conv.weight.mul_(-1)
    orders = set()
    for pixels in (512, 256, 64, 8, 512, 64):
        x = torch.randn(1, 256, pixels, 1).contiguous(memory_format=torch.channels_last)
        assert_close(packed(x), conv(x), f"{pixels} pixels")
        assert_close(twin(x), -conv(x), f"{pixels} pixels, the other weights")
        own = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight, [0, 0], [1, 1], [1, 1], 1, list(x.shape)
        )
        orders.add(torch.ops.mkldnn._get_mkldnn_serialized_md(own).numpy().tobytes())
    assert len(packed._packed) == 4 and len({id(weight) for weight in packed._packed.values()}) == len(orders)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 50, 51, 64, 65, 127, 200])
def test_chunks_hold_every_index_and_repeat_the_last(count):
    sizes = sizes_below(64, 2, 1000)
    assert sizes == (64, 32, 16, 8, 2) and sizes_below(64, 2, 9) == (16, 8, 4, 2)
    pieces = chunks(torch.arange(count), sizes)
    assert all(len(piece) in sizes for piece in pieces)
    found = torch.cat(pieces) if pieces else torch.arange(0)
    assert found[:count].tolist() == list(range(count)) and (found[count:] == count - 1).all()
    assert len(found) <= max(2, count / FULL_ENOUGH)


@pytest.mark.parametrize("way", [tiles.TILES, tiles.WIDE, tiles.ROW, tiles.STRIP])
@pytest.mark.parametrize("stride", [1, 2])
def test_tiles_and_taps_are_chosen_by_what_they_cost(monkeypatch, without_numba, way, stride):
    monkeypatch.setattr(tiles.Tiles, "_cost", lambda self, notes: float(notes["way"] != way))
    channels = 20 if way == tiles.WIDE else 128
    module = nn.Sequential(nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 8, (3, 2), stride, 1)).eval()
    frames = scripted_video((2, 3, 13, 11), torch.float32)
    model = deltaconvert.convert(module, frames[0], backend="cpu")
    notes = [node.meta.get("cpu", {}) for node in model._program.plan.graph.graph.nodes]
    assert [found["way"] for found in notes if "way" in found] == [way]
    fresh = copy.deepcopy(model)
    for t, frame in enumerate(frames):
        outputs = model(frame)
        with torch.no_grad():
            assert_close(outputs, module(frame), f"frame {t}")
        fresh.reset()
        assert_same_bits(outputs, fresh(frame), f"frame {t} against a reset model")
