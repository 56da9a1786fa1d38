"""ops/resample.py"""

import pytest
import torch
import torch.nn.functional as F
from drawn import pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Call, assert_close, assert_same_bits, check_operator, examples
from torch import nn

import deltaconvert


@settings(max_examples=examples(12))
@given(
    mode=st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic", "area"]),
    align=st.sampled_from([None, True, False]),
    target=st.one_of(
        st.fixed_dictionaries({"size": pairs(1, 13)}),
        st.fixed_dictionaries({"size": st.integers(1, 9)}),
        st.fixed_dictionaries({"scale_factor": st.sampled_from([2, 0.5, 1.5, 3.0, (2.0, 0.7), (1.3, 1.0)])}),
    ),
    antialias=st.booleans(),
    size=pairs(2, 8),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_interpolation(backend, mode, align, target, antialias, size, batch, seed):
    smooth = mode in ("bilinear", "bicubic")
    options = {"mode": mode, **target}
    if smooth:
        options.update(align_corners=align, antialias=antialias)
    module = Call(lambda m, x: F.interpolate(x, **options))
    check_operator(module, (batch, 2, *size), threshold=0.1, backend=backend, seed=seed)


@settings(max_examples=examples(15))
@given(
    kind=st.sampled_from([nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d]),
    target=st.one_of(
        pairs(1, 9),
        st.integers(1, 5),
        st.tuples(st.none(), st.integers(1, 4)),
        st.tuples(st.integers(1, 4), st.none()),
    ),
    size=pairs(1, 9),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_adaptive_pool(backend, kind, target, size, batch, seed):
    check_operator(kind(target), (batch, 2, *size), threshold=0.1, backend=backend, seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "module",
    [
        nn.Upsample(scale_factor=2),
        nn.Upsample(size=(9, 20), mode="bilinear", align_corners=True),
        nn.Upsample(scale_factor=(2, 3), mode="bilinear"),
        nn.UpsamplingNearest2d(scale_factor=2),
        nn.UpsamplingBilinear2d(size=15),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.AdaptiveMaxPool2d(1),
    ],
    ids=str,
)
def test_modules(backend, module, dtype):
    check_operator(module, (2, 3, 8, 7), dtype=dtype, backend=backend)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("size", [(26, 90), (79, 33)])
def test_interpolation_is_incremental(mode, size):
    """On cpu, a few changed pixels cost their readers; from many on the whole map is computed, to the same bits."""
    network = nn.Sequential(nn.Upsample(size, mode=mode), nn.ReLU()).eval()
    frame = torch.randn(2, 8, 39, 45)
    model = deltaconvert.convert(network, frame, backend="cpu")
    model(frame)
    frame[1, :, 20:22, 17:19] += 1
    model(frame)
    (computed,) = [layer.computed for layer in model.stats().layers if layer.path == "0"]
    assert 0 < computed <= 64
    for share in (0, 10, 30):
        frame[:, :, share:] = torch.randn_like(frame[:, :, share:])
        outputs = model(frame)
        assert_close(outputs, network(frame))
        model.reset()
        assert_same_bits(outputs, model(frame), f"from row {share}")


POOLS = {
    "global average": nn.AdaptiveAvgPool2d(1),
    "global maximum": nn.AdaptiveMaxPool2d(1),
    "averages of boxes": nn.AdaptiveAvgPool2d((3, 7)),
    "maxima of boxes": nn.AdaptiveMaxPool2d((7, 2)),
    "averages of rows": nn.AdaptiveAvgPool2d((None, 1)),
    "averages of columns": nn.AdaptiveAvgPool2d((1, None)),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("channels", [1, 5, 67])
@pytest.mark.parametrize("size", [(40, 60), (23, 37)])
def test_lines_of_pools_give_the_same_bits_alone(name, channels, size):
    """On cpu, whatever lines were read again, alone or with all others, in float32."""
    network = nn.Sequential(POOLS[name])
    frame = torch.randn(2, channels, *size)
    model = deltaconvert.convert(network.eval(), frame, backend="cpu")
    model(frame)
    for height in (1, 2, 9, 21, size[0]):
        frame[0, :, :height, 3 : 4 + height] = torch.randn_like(frame[0, :, :height, 3 : 4 + height])
        frame[1, :, -height:, 7] -= 3
        outputs = model(frame)
        assert_close(outputs, network(frame))
        model.reset()
        assert_same_bits(outputs, model(frame), f"{height} rows")


def test_the_average_of_many_equal_values():
    """What adds them up one after the other in float32 loses some of them."""
    frame = torch.full((1, 1, 300, 1001), 0.1)
    model = deltaconvert.convert(nn.Sequential(nn.AdaptiveAvgPool2d(1)).eval(), frame, backend="cpu")
    assert abs(model(frame).item() - 0.1) < 1e-6


SPELLINGS = {
    "upsample": lambda m, x: F.interpolate(x, None, 2),
    "recompute": lambda m, x: F.interpolate(
        x, scale_factor=1.3, mode="bilinear", recompute_scale_factor=True
    ),
    "adaptive": lambda m, x: F.adaptive_avg_pool2d(x, (1, 1)),
    "adaptive max": lambda m, x: F.adaptive_max_pool2d(x, output_size=2),
    "torch.mean": lambda m, x: torch.mean(x, dim=(2, 3), keepdim=True),
    "mean": lambda m, x: x.mean((-1, -2), True),
    "mean list": lambda m, x: x.mean([2, 3], keepdim=True),
    "mean of rows": lambda m, x: x.mean(3, keepdim=True) * x,
    "mean of columns": lambda m, x: x * torch.sigmoid(torch.mean(x, -2, True)),
    "largest of rows and of columns": lambda m, x: x.amax(3, True) + torch.max(x, 2, keepdim=True)[0],
    "sums": lambda m, x: (
        x.sum((2, 3), keepdim=True) * x + torch.sum(x, dim=[-1], keepdim=True) - x.sum(2, True)
    ),
    "amax": lambda m, x: x.amax((2, 3), keepdim=True) * torch.amax(x, axis=(-1, -2), keepdim=True),
    "size of another": lambda m, x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:]),
    "size of another by hand": lambda m, x: F.interpolate(
        F.max_pool2d(x, 2), size=(x.size(2), x.shape[-1]), mode="bilinear"
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(backend, name):
    check_operator(Call(SPELLINGS[name]), (2, 2, 7, 8), backend=backend)


DENSE = {
    "sums over rows and channels": (lambda m, x: x.sum((1, 3), keepdim=True), "along dimensions 1, 3"),
    "sums of integers": (lambda m, x: (x > 0).sum((2, 3), keepdim=True), "it adds up integers"),
    "channels among them": (lambda m, x: x.mean((1, 2), keepdim=True), "not a mean over height and width"),
    "maxima over rows and channels": (
        lambda m, x: x.amax((1, 2), keepdim=True),
        "not a maximum over height and width",
    ),
    "no keepdim": (lambda m, x: x.mean((2, 3)), "not N C H W"),
    "another rank": (lambda m, x: x[:, :, None].mean((2, 3), keepdim=True), "not N C H W"),
    "a mean of a matrix": (lambda m, x: x.flatten(1).mean((-2, -1), keepdim=True), "not N C H W"),
    "a signal": (lambda m, x: F.interpolate(x.flatten(2), scale_factor=2), "not N C H W"),
    "a volume": (lambda m, x: F.interpolate(x[None], size=3), "not N C H W"),
    "trilinear": (lambda m, x: F.interpolate(x[None], size=3, mode="trilinear"), "mode='trilinear'"),
    "indices": (lambda m, x: F.adaptive_max_pool2d(x, 2, return_indices=True), "adaptive_max_pool2d"),
}


@pytest.mark.parametrize("name", DENSE)
def test_stays_dense(backend, name):
    function, reason = DENSE[name]
    check_operator(Call(function), (2, 2, 6, 6), backend=backend, expect="dense", reason=reason)


@pytest.mark.parametrize("shape", [(2, 5, 90, 131), (1, 70, 64, 61), (2, 3, 5, 4200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_of_large_maps(backend, shape, dtype):
    """Those that the backends take in parts."""
    check_operator(nn.AdaptiveAvgPool2d(1), shape, dtype=dtype, threshold=0.1, backend=backend)
    if shape[1] == 5:
        gate = Call(
            lambda m, x: m.a(x) * m.b(x.mean((2, 3), keepdim=True).relu()).sigmoid(),
            a=nn.Conv2d(5, 5, 1),
            b=nn.Conv2d(5, 5, 1),
        )
        check_operator(gate, shape, dtype=dtype, threshold=0.1, backend=backend)


def coordinate_attention(m, x):
    """Hou et al. 2021, as timm's SimpleCoordAttn writes it: the means have no dimension where they were taken."""
    rows, columns = (F.silu(m.both(x.mean(dim=side).transpose(1, 2))) for side in (3, 2))
    rows, columns = m.rows(rows).transpose(1, 2)[..., None], m.columns(columns).transpose(1, 2).unsqueeze(-2)
    return x * torch.sigmoid(rows + columns)


@pytest.mark.parametrize("size", [(7, 12), (1, 9), (9, 1)])
def test_means_along_one_side(backend, size):
    parts = {"both": nn.Linear(3, 4), "rows": nn.Linear(4, 3), "columns": nn.Linear(4, 3)}
    check_operator(Call(coordinate_attention, **parts), (2, 3, *size), threshold=0.1, backend=backend)


@pytest.mark.parametrize("size", [(40, 60), (23, 37)])
def test_many_sums_along_one_side(backend, size):
    """Enough of them that the cpu backend reads single lines again."""
    network = Call(
        lambda m, x: x.sum(3, keepdim=True) - x.amax(2, keepdim=True) * x.sum((2, 3), keepdim=True)
    )
    check_operator(network, (2, 5, *size), dtype=torch.float32, backend=backend)
