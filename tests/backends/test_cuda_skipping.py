"""backends/cuda/skipping.py: what still frames skip. Without a GPU graphs are tests/kernels/graph_on_cpu.py's."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import pytest
import torch
from graph_on_cpu import with_graphs
from on_cpu import GXX
from oracle import Call, Dense, assert_close, assert_same_bits
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends import cuda
from deltaconvert.backends.cuda import recording, skipping

needs_gxx = pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")
SHAPE = (2, 3, 18, 21)


@pytest.fixture
def always(monkeypatch):
    """However few launches it saves."""
    monkeypatch.setattr(skipping, "WORTH", 1)


def network() -> nn.Module:
    """With what torch computes in the graph (a sum along rows), a map that is handed out, and a mean of a whole map."""
    torch.manual_seed(0)
    return Call(
        lambda m, x: (m.first(x).relu(), m.last(m.first(x).cumsum(3)) * x.mean((2, 3), keepdim=True)),
        first=nn.Conv2d(3, 4, 3, padding=1),
        last=nn.Conv2d(4, 3, 3, padding=1),
    ).eval()


def still_and_moving(shape: tuple[int, ...] = SHAPE) -> Iterator[tuple[Tensor, bool]]:
    """Frames, and whether each is the one before."""
    torch.manual_seed(1)
    frame = torch.rand(shape)
    yield frame, False
    for still in (True, False, True, True, False, False, True):
        if not still:
            frame = frame.clone()
            frame[0, :, 4:7, 5:9] = torch.rand(3, 3, 4)
        yield frame, still


def played(model: deltaconvert.DeltaModel, frame: Tensor) -> list[Tensor]:
    return [output.clone() for output in model(frame)]


@needs_gxx
@pytest.mark.parametrize("options", [{}, {"threshold": {"activation": 0.05}}], ids=str)
def test_outputs_masks_and_counts_are_those_of_a_graph_that_skips_nothing(monkeypatch, always, options):
    with_graphs(monkeypatch)
    video = [*still_and_moving()]
    ours, theirs = (
        deltaconvert.convert(network(), video[0][0], backend=b, **options) for b in ("cuda", "reference")
    )
    for t, (frame, still) in enumerate(video):
        for output, expected in zip(ours(frame), theirs(frame), strict=True):
            assert_close(output, expected, f"frame {t}")
        masks = theirs.masks()
        for path, mask in ours.masks().items():
            assert torch.equal(mask, masks[path]), f"frame {t}: masks of {path} differ"
        first, *others = [(row.computed, row.density) for row in ours.stats().layers]
        counted = [(row.computed, row.density) for row in theirs.stats().layers]
        assert [first, *others] == ([(1, 0), *[(0, 0)] * len(others)] if still else counted), f"frame {t}"
    assert "skips" in str(ours.explain()) and "nothing" not in str(ours.explain())


@needs_gxx
def test_what_cannot_be_captured_as_a_part_is_captured_as_ever(monkeypatch, always):
    with_graphs(monkeypatch)

    @contextlib.contextmanager
    def refused(*_):
        raise RuntimeError("no such nodes")
        yield

    monkeypatch.setattr(recording, "body", refused)
    dense = Dense(network())
    for t, (frame, _) in enumerate(still_and_moving()):
        if t == 0:
            model = deltaconvert.convert(network(), frame, backend="cuda")
        for output, expected in zip(model(frame), dense((frame,)), strict=True):
            assert_close(output, expected, f"frame {t}")
    assert "a still frame skips nothing: no such nodes" in str(model.explain())


READS = {
    "its frame alone": (lambda m, x, y: m.conv(m.conv(x)), 1, 2),
    "two frames, the second one in the middle": (lambda m, x, y: m.conv(m.conv(x) + y), 2, 2),
    "a frame again, as it is": (lambda m, x, y: m.conv(x) @ x.transpose(2, 3), None, 1),
}


@needs_gxx
@pytest.mark.parametrize("reads", READS)
def test_what_is_skipped_reads_no_frame(monkeypatch, always, reads):
    """It begins behind the last comparison of a frame: after so many, and there are so many steps at least."""
    forward, compared, least = READS[reads]
    with_graphs(monkeypatch)
    torch.manual_seed(0)
    video = [torch.rand(2, 1, 3, 12, 13) for _ in range(2)]
    both = Call(forward, conv=nn.Conv2d(3, 3, 3, padding=1)).eval()
    model = deltaconvert.convert(both, tuple(video[0]), backend="cuda")
    frames, dense = tuple(video[0]), Dense(both)
    for t in range(6):
        if t % 2:
            frames = (frames[0], frames[1].clone()) if t == 3 else (frames[0].clone(), frames[1])
            frames[t == 3][..., 2:4, 3:5] = t
        assert_close(model(*frames), dense(frames), f"frame {t}")
    steps = [step for step in model._program._steps if step.node.op != "get_attr"]
    first = skipping.behind_frames(steps)
    assert len(steps) - first >= least if compared else first == len(steps)
    assert sum(step.edge is not None for step in steps[:first]) >= (compared or 0)


@contextlib.contextmanager
def counting(entered: Tensor) -> Iterator[None]:
    """What is captured inside adds one to a number whenever the part that can be skipped runs."""
    apart = cuda.Backend.apart

    @contextlib.contextmanager
    def counted(backend: cuda.Backend) -> Iterator[None]:
        with apart(backend):
            entered.add_(1)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda.Backend, "apart", counted)
        yield


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, {"threshold": {"activation": 0.05}}], ids=str)
@torch.no_grad()
def test_a_still_frame_skips_it(gpu, always, monkeypatch, dtype, options):
    """And gives the outputs of the frame before, which are the user's own, with the state untouched."""
    model = deltaconvert.convert(network().to(dtype), torch.rand(SHAPE).to(dtype), **options)
    plain = copy.deepcopy(model)
    entered, ran, before = torch.zeros((), dtype=torch.int64), 0, []
    with monkeypatch.context() as patch:
        patch.setattr(skipping, "WORTH", 1 << 30)
        plain(torch.zeros(SHAPE, dtype=dtype))
    assert "nothing" in plain._program.still
    for t, (frame, still) in enumerate(still_and_moving()):
        state = {name: edge.values.clone() for name, edge in model._program.edges.items()}
        with counting(entered):
            outputs = model(frame.to(dtype))
        ran += t > 0 and not still  # the first frame plays step by step
        assert int(entered) == ran, f"frame {t}"
        for output, expected in zip(outputs, plain(frame.to(dtype)), strict=True):
            assert_same_bits(output, expected, f"frame {t}")
        masks = plain.masks()
        assert all(torch.equal(mask, masks[path]) for path, mask in model.masks().items()), f"frame {t}"
        assert model.stats().work == plain.stats().work
        if still:
            assert model.stats().work == 0
            for name, edge in model._program.edges.items():
                assert_same_bits(edge.values, state[name], f"frame {t}, {name}")
            for output, same in zip(outputs, before, strict=True):
                assert_same_bits(output, same, f"frame {t}")
        before = [output.clone() for output in outputs]
        for output in outputs:
            output.fill_(7)  # nothing of ours
    assert "skips" in model._program.still and "nothing" not in model._program.still
    model.reset(1)
    model(frame.to(dtype))
    assert int(entered) == ran + 1, "a stream that starts over"


@pytest.mark.gpu
def test_a_driver_without_such_nodes(gpu, always, monkeypatch):
    monkeypatch.setattr(skipping, "OLDEST", 1 << 30)
    frame = torch.rand(SHAPE)
    model, dense = deltaconvert.convert(network(), frame), Dense(network().to(gpu))
    for frame, _ in still_and_moving():
        for output, expected in zip(model(frame), dense((frame,)), strict=True):
            assert_close(output, expected)
    assert "a driver for CUDA 12.4" in str(model.explain())
