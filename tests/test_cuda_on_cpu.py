"""backends/cuda without a GPU: its kernels run on the CPU (tests/kernels/on_cpu.py), against the reference backend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gated import (
    CEILINGS,
    GATES,
    NONFINITE,
    SHORT_GATES,
    at_the_limit,
    check_ceiling,
    check_gate,
    check_masks,
    check_nonfinite,
    check_types,
    faint_patches,
)
from graph_on_cpu import with_graphs
from on_cpu import GXX, without_a_gpu
from oracle import Call, assert_close, assert_same_bits, scripted_video
from torch import nn

import deltaconvert
import model_zoo
from deltaconvert.backends.cuda.shuffles import LastShuffle

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    without_a_gpu(monkeypatch)


def check(network: nn.Module, shape: tuple[int, ...], **options) -> deltaconvert.DeltaModel:
    """Outputs, masks and counts equal the reference's; outputs also equal those of a model that saw no frame before."""
    video = scripted_video(shape, torch.float32)[:6]
    ours, theirs, fresh = (
        deltaconvert.convert(network, video[0], backend=b, **options) for b in ("cuda", "reference", "cuda")
    )
    for t, frame in enumerate(video):
        output = ours(frame)
        assert_close(output, theirs(frame), f"frame {t}")
        masks = theirs.masks()
        for path, mask in ours.masks().items():
            assert torch.equal(mask, masks[path]), f"frame {t}: masks of {path} differ"
        counted = {row.path: (row.computed, row.density) for row in theirs.stats().layers}
        rows = {row.path: (row.computed, row.density) for row in ours.stats().layers}
        joined = {part for node in ours._planned.nodes for part in node.meta.get("parts", ())[1:]}
        assert {path: row for path, row in counted.items() if path in rows or path not in joined} == rows
        if not options:
            fresh.reset()
            assert_same_bits(output, fresh(frame), f"frame {t} against a reset model")
    return ours


def test_a_step_is_one_launch_and_all_lists_are_one():
    model = check(model_zoo.create("resnet18", seed=0), (2, 3, 40, 50))
    beside = 3  # the lists, the counts and that they begin at 0
    assert model._program._backend.launches == 6 * (len(model._program.edges) + beside)


def test_thresholds():
    check(model_zoo.create("resnet18", seed=0), (2, 3, 40, 50), threshold={"activation": 0.05})


def test_thresholds_of_small_networks():
    """Every kernel compares its results with the threshold: depthwise ones, pools, sums and shuffles, also with a
    single channel, or with threads of a warp that hold none of a pixel's channels."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Conv2d(3, 24, 1)
            self.near = nn.Conv2d(24, 24, 3, padding=1, groups=24)
            self.far = nn.Conv2d(24, 24, 5, 2, 2, groups=24)
            self.one = nn.Conv2d(24, 1, 1)

        def forward(self, x):
            x = self.wide(x).relu()
            x = (self.near(x).relu() + F.avg_pool2d(x, 3, 1, 1)).relu()
            return self.one(self.far(x).relu()).sigmoid(), F.pixel_shuffle(x, 2).relu()

    network = Small().eval()
    model = check(network, (2, 3, 19, 41), threshold={"activation": 0.05, "linear": 0.02})
    assert all(step.launch.compares for step in model._program.operators if step.edge.threshold is not None)


CASES = [
    ((2, 3, 37, 70), {"smooth": 5, "dilate": 3, "weak": 0.3}),
    ((1, 5, 16, 200), {"dilate": 40, "refresh": 3}),
    ((2, 3, 37, 33), {"smooth": 31, "peak": 1.5}),
    ((2, 3, 37, 72), {"smooth": 9, "peak": 6.0, "dilate": 12, "weak": 0.25}),
    ((2, 1, 35, 68), {"smooth": 9, "recent": 3, "dilate": 2}),
    ((2, 3, 13, 37), {"smooth": 3, "recent": 3}),  # the second stream's frame begins between runs of four
    ((2, 3, 33, 36), {"smooth": 7, "recent": 2, "peak": 3.0, "weak": 0.5}),
    ((1, 1, 5, 1), {"dilate": 1, "peak": 100.0}),
    ((2, 3, 9, 40), {"smooth": 3, "dilate": 2, "weak": 0.3, "noise": 1.0, "refresh": 5, "cut": 0.9}),
]


@pytest.mark.parametrize(("shape", "gate"), CASES, ids=str)
def test_gates(shape, gate):
    network = nn.Conv2d(shape[1], 4, 3, padding=1).eval()
    model = check(network, shape, threshold={"input": 0.1}, gate=gate)
    assert next(iter(model._program.edges.values()))._looks is not None


@pytest.mark.parametrize(("gate", "size", "dtype", "threshold"), [NONFINITE[i] for i in (0, 3, 7)], ids=str)
def test_nonfinite_pixels_are_counted(gate, size, dtype, threshold):
    check_nonfinite("cuda", gate, size, dtype, threshold)


@pytest.mark.parametrize("gate", [gate for gate in GATES if "recent" in gate], ids=str)
def test_gates_that_average_frames(gate):
    """Means, their values when a pixel was last stored, noise, NaN and sleeping streams, all by the same kernels."""
    check_gate("cuda", gate, (21, 40), torch.float32)


@pytest.mark.parametrize("gate", CEILINGS, ids=str)
def test_gates_with_a_ceiling(gate):
    check_ceiling("cuda", gate, (2, 3, 37, 70), torch.float32)
    check_gate("cuda", gate, (21, 40), torch.float32)


def test_a_ceiling_on_a_frame_of_many_tiles():
    """More tiles than threads that choose among them, each of several squares, and in double precision."""
    check_ceiling("cuda", {"max_density": 0.05, "refresh": 25}, (2, 1, 150, 230), torch.float64)


@pytest.mark.parametrize(
    "gate", [{"smooth": 3, "peak": 9.0, "weak": 0.5}, {"smooth": 5, "recent": 2}], ids=str
)
def test_boxes_at_the_limit(gate):
    check_masks("cuda", {"dilate": 1, **gate}, at_the_limit())


@pytest.mark.parametrize("gate", [{"smooth": 9}, {"smooth": 7, "recent": 2}], ids=str)
def test_faint_patches(gate):
    check_masks("cuda", {"dilate": 1, "peak": 9.0, **gate}, faint_patches())


@pytest.mark.parametrize("gate", SHORT_GATES, ids=str)
def test_bfloat16_compares_as_the_reference(gate):
    check_types("cuda", gate, torch.bfloat16)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"threshold": {"linear": 0.05}}])
def test_a_last_shuffle(factor, options):
    """It has no map, mask or list of its own; its statistics are those of any other step."""
    network = nn.Sequential(nn.Conv2d(3, 3 * factor**2, 3, padding=1), nn.PixelShuffle(factor)).eval()
    model = check(network, (2, 3, 13, 38), **options)
    assert isinstance(model._program.operators[-1], LastShuffle)


def test_a_shuffle_of_a_frame():
    check(nn.PixelShuffle(2).eval(), (2, 8, 5, 7))


def test_columns_that_only_see_padding():
    """They are not marked if a pixel beside them changes, also behind two windows that may be joined into one."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, (3, 1), padding=1))
    check(network.eval(), (2, 3, 13, 12))


class Skips(nn.Module):
    """Two concatenations whose parts are read by others as well, and one that cannot be made in place."""

    def __init__(self):
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.up, self.beside = nn.ConvTranspose2d(12, 8, 2, stride=2), nn.Conv2d(8, 5, 3, padding=1, groups=1)
        self.after, self.depthwise = nn.Conv2d(16, 6, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x):
        skip = self.first(x).relu()
        deep = self.up(self.deep(F.max_pool2d(skip, 2)).relu())
        joined = self.after(torch.cat((skip, deep), 1)).relu()
        odd = torch.cat((joined, self.beside(skip)), 1)
        return torch.cat((self.depthwise(deep) + skip, odd), 1), odd


@pytest.mark.parametrize("options", [{}, {"threshold": {"activation": 0.05}}])
def test_concatenations_in_place(options):
    model = check(Skips().eval(), (2, 3, 16, 20), **options)
    notes = [node.meta.get("cuda", {}) for node in model._program.plan.graph.graph.nodes]
    assert sum("joins" in note for note in notes) == 1
    parts = [note["part"][0] for note in notes if "part" in note]
    assert parts == [parts[0]] * 3, "two maps and what joins them"
    assert model._program.edges[parts[0]].values.shape[1] == 16


class Narrow(nn.Module):
    """A concatenation of maps whose channels end within a vector; others read one of them as well."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.mix, self.wide = nn.Conv2d(18, 7, 1), nn.Conv2d(18, 8, 3, padding=1, stride=2)

    def forward(self, x):
        first = self.first(x).relu()
        second = self.second(first).sigmoid()
        joined = torch.cat((first, second, self.second(first + 1), second[:, :2] * 2), 1)
        return (self.mix(joined).relu() + 1, self.wide(joined))


@pytest.mark.parametrize(
    "options", [{}, {"threshold": {"activation": 0.05}}, {"threshold": {"linear": 0.03}}]
)
def test_concatenations_of_maps_that_end_within_a_vector(options):
    model = check(Narrow().eval(), (2, 3, 16, 20), **options)
    nodes = model._program.plan.graph.graph.nodes
    (joined,) = [node for node in nodes if "joins" in node.meta.get("cuda", {})]
    values = model._program.edges[joined.name].values
    assert values.shape[1] == 8 + 8 + 8 + 4
    assert not values[:, [6, 7, 13, 14, 15, 21, 22, 23, 26, 27]].any(), "between the maps"
    model.restore(1, model.snapshot(0))


def test_weighted_thresholds():
    check(model_zoo.create("resnet18", seed=0), (2, 3, 40, 50), threshold={"activation": "5% weighted"})


def test_narrow_changes():
    """Narrow changes pass windows with a stride, residuals whose maps share lists, and depthwise convolutions."""
    rules = {"input": "0.05 narrow", "activation": "5% narrow", "linear": "0 narrow"}
    for name in ("resnet18", "mobilenetv2"):
        check(model_zoo.create(name, seed=0), (2, 3, 40, 50), threshold=rules)


def test_a_gate():
    gate = {"smooth": 3, "noise": 2.0, "dilate": 1, "refresh": 4, "max_density": 0.5, "nonfinite": "hold"}
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    check(network, (2, 3, 37, 50), threshold={"input": 0.3}, gate=gate)


def test_many_operators():
    network = Call(
        lambda m, x: torch.cat(
            [m.up(m.a(x)), m.gate(x.mean((2, 3), keepdim=True)).sigmoid() * m.b(x)], 1
        ).relu(),
        a=nn.Conv2d(3, 4, 3, stride=2, padding=1),
        up=nn.Upsample(scale_factor=2, mode="bilinear"),
        b=nn.Sequential(nn.ConvTranspose2d(3, 5, 2, stride=2), nn.AvgPool2d(2), nn.MaxPool2d(3, 1, 1)),
        gate=nn.Conv2d(3, 5, 1),
    ).eval()
    check(network, (2, 3, 12, 70))


def test_pools_of_small_and_large_windows():
    network = nn.Sequential(
        nn.MaxPool2d(3, 1, 1), nn.AvgPool2d((5, 4), 1, (2, 0)), nn.MaxPool2d(2, 2, ceil_mode=True)
    )
    check(network.eval(), (2, 10, 17, 19))


def test_norms_and_functions_of_channels():
    network = Call(
        lambda m, x: torch.cat(
            [
                m.group(m.a(x)),
                m.instance(x).softmax(1),
                x.std(1, keepdim=True),
                m.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
                x.argmax(1, keepdim=True) * x[:, :1],
            ],
            1,
        ),
        a=nn.Conv2d(6, 8, 1),
        group=nn.GroupNorm(2, 8),
        instance=nn.InstanceNorm2d(6, affine=True),
        layer=nn.LayerNorm(6),
    ).eval()
    assert whole(check(network, (2, 6, 37, 21))) == ["Fused"]  # what is behind the arg max


def test_copies_and_other_pools():
    network = Call(
        lambda m, x: torch.cat(
            [
                F.channel_shuffle(x, 3)[:, [4, 0, 2], 1:-2].flip(1, 3) * F.adaptive_max_pool2d(x[:, :3], 1),
                F.interpolate(F.lp_pool2d(x, 3.0, 2).abs(), (15, 11)),
                F.pad(F.adaptive_max_pool2d(x, (13, 9)), (1, 1, 2, 0, 1, 0), value=3.0),
            ],
            1,
        )
    ).eval()
    assert whole(check(network, (2, 6, 18, 11))) == []


def test_joined_numbers_and_channels_that_repeat():
    """Padding of channels, rows and columns, and one channel several times, by kernels that other networks use too."""
    network = Call(
        lambda m, x: m.conv(
            torch.cat(
                [
                    torch.cat([torch.zeros_like(x[:, :2]), x.relu(), torch.zeros_like(x[:, :3])], 1),
                    torch.cat([x[:, :, 2:], torch.ones_like(x[:, :, :2])], 2).abs(),
                    x.mean(1, keepdim=True).expand(-1, 5, -1, -1),
                ],
                1,
            )
        ),
        conv=nn.Conv2d(22, 4, 3, padding=1),
    ).eval()
    assert whole(check(network, (2, 6, 12, 19))) == []


def test_joined_coordinates():
    """A constant that differs from pixel to pixel: torch takes it, and the mask is that of the map."""
    network = Call(
        lambda m, x: m.conv(
            torch.cat([x.relu(), torch.linspace(-1, 1, x.shape[3]).expand(x.shape[0], 1, *x.shape[2:])], 1)
        ),
        conv=nn.Conv2d(7, 4, 3, padding=1),
    ).eval()
    assert whole(check(network, (2, 6, 12, 19))) == ["Fused"]


def test_heads_of_one_atom_of_channels():
    def forward(m, x):
        n, _, height, width = x.shape
        heads = m.qk(x).permute(0, 2, 3, 1).reshape(n, height * width, 2, 8).transpose(1, 2)
        q, k = heads.chunk(2, 3)
        return m.last((q * k.sigmoid()).transpose(1, 2).reshape(n, height, width, 8).permute(0, 3, 1, 2))

    network = Call(forward, qk=nn.Conv2d(6, 16, 1), last=nn.Conv2d(8, 4, 3, padding=1)).eval()
    model = check(network, (2, 6, 12, 19))
    assert whole(model) == [] and not model.explain().islands


def whole(model: deltaconvert.DeltaModel) -> list[str]:
    """The operators that torch computes for lack of a kernel."""
    steps = [getattr(step, "_step", step) for step in model._program.operators]
    return [type(step.operator).__name__ for step in steps if step.run_alone == step._whole]


class Residual(nn.Module):
    """An inverted residual: its second map is read by the next convolution alone."""

    def __init__(self):
        super().__init__()
        self.wider, self.depthwise = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.narrow, self.again = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)

    def forward(self, x):
        x = x + self.narrow(self.depthwise(self.wider(x).relu()).relu())
        return self.again(self.narrow(self.depthwise(self.wider(x).relu()).relu()))


@pytest.mark.parametrize("activation", [0.0, 0.05])
def test_maps_that_are_passed_on(activation):
    model = check(
        Residual().eval(), (2, 8, 9, 37), **({"threshold": {"activation": 0.05}} if activation else {})
    )
    passed = [name for name, edge in model._program.edges.items() if not edge.is_kept]
    assert passed == (["add_2", "narrow_3"] if activation else ["relu_9", "add_2", "relu_11", "narrow_3"])
    model.restore(0, model.snapshot(1))
    frame = torch.rand(1, 8, 9, 37)
    first, second = model(frame.expand(2, -1, -1, -1))
    assert_same_bits(first, second, "a stream that goes on in another's place")


def test_lists_wait_for_what_runs_after_the_graph(monkeypatch):
    """A constant is compared within the graph, but its list also depends on an island that runs after the graph."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            y[y > 0.5] += 1
            out = torch.zeros_like(y)
            out[:, :, :-1] = y[:, :, 1:]
            return out

    with_graphs(monkeypatch)
    model = check(Late().eval(), (2, 3, 13, 10))
    assert model._program.outside and model._program._backend._recording._graph is not None
