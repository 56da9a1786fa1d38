"""backends/cuda/in_place.py: which frames are read in place (tested on the CPU), and that these are not copied (on a
GPU)."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from graph_on_cpu import with_graphs
from on_cpu import GXX, without_a_gpu
from oracle import assert_close, assert_same_bits, no_waiting, scripted_video
from poisoned import assert_writes_its_mask
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends.cuda.in_place import lies_as, read_in_place

SHAPE = (2, 3, 32, 48)


class Network(nn.Module):
    """levels: frames are bytes. turned: frames come as N H W C. residual: another node reads the frame as well."""

    def __init__(self, levels: bool = False, turned: bool = False, residual: str = ""):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.levels, self.turned, self.residual = levels, turned, residual

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        given = x
        x = x.permute(0, 3, 1, 2) if self.turned else x
        x = cast = x.to(self.first.weight.dtype) if self.levels else x
        x = x / 255 if self.levels else x
        out = self.second(self.first(x).relu())
        if self.residual == "sum":
            return out + x
        if self.residual == "island":
            return out + x.cumsum(1)
        if self.residual == "cast":
            return out + cast.cumsum(1)
        if self.residual == "turned output":
            return out, given.permute(0, 2, 3, 1)
        return (out, given) if self.residual == "output" else out


def video_of(network: Network, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    frames = [frame.to(device, dtype) for frame in scripted_video(SHAPE, torch.float32)]
    if network.levels:
        frames = [(40 * frame + 128).clamp(0, 255).to(torch.uint8) for frame in frames]
    return [frame.permute(0, 2, 3, 1).contiguous() for frame in frames] if network.turned else frames


KINDS = {
    "floats": ({}, {}, True),
    "bytes": ({"levels": True}, {}, True),
    "bytes N H W C": ({"levels": True, "turned": True}, {}, True),
    "a sum": ({"residual": "sum"}, {}, True),
    "an output": ({"residual": "output"}, {}, True),
    "an output turned": ({"residual": "turned output"}, {}, False),
    "an island": ({"residual": "island"}, {}, False),
    "an island behind": ({"levels": True, "residual": "island"}, {}, True),
    "a cast for others too": ({"levels": True, "residual": "cast"}, {}, False),
    "a gate": ({}, {"threshold": {"input": 0.1}, "gate": {"smooth": 5, "dilate": 3}}, True),
    "a ceiling": ({}, {"threshold": {"input": 0.1}, "gate": {"max_density": 0.5}}, True),
}


@pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")
@pytest.mark.parametrize("kind", KINDS)
def test_which_frames_need_no_copy(kind, monkeypatch):
    without_a_gpu(monkeypatch)
    options, converted, expected = KINDS[kind]
    network = Network(**options).eval()
    model = deltaconvert.convert(network, video_of(network)[0], backend="cuda", **converted)
    program = model._program
    assert read_in_place(program._steps, program._inputs) == (set(program._inputs) if expected else set())


def test_no_steps_no_frames():
    assert read_in_place([], []) == set()


def test_how_frames_lie():
    """Strides of dimensions of length 1 do not matter, all others do; and vectors have to be whole."""
    image = torch.rand(32, 48, 3)
    last = image.permute(2, 0, 1)[None]
    own = torch.empty(1, 3, 32, 48).contiguous(memory_format=torch.channels_last)
    assert last.stride() != own.stride() and lies_as(last, own)
    assert not lies_as(last.contiguous(), own) and not lies_as(own, last.contiguous())
    assert not lies_as(torch.rand(2, 3, 20, 48)[..., :40], torch.rand(2, 3, 20, 40))
    assert not lies_as(torch.rand(1, 3, 8, 8).expand(2, -1, -1, -1), torch.rand(2, 3, 8, 8))
    odd = torch.rand(1 + 192)[1:].view(1, 3, 8, 8)
    assert lies_as(odd.clone(), odd) and not lies_as(odd, odd.clone())


WAYS = {
    "floats": ({}, torch.float32, torch.contiguous_format),
    "floats, channels last": ({}, torch.float32, torch.channels_last),
    "half": ({}, torch.float16, torch.contiguous_format),
    "half, channels last": ({}, torch.float16, torch.channels_last),
    "bytes": ({"levels": True}, torch.float16, torch.contiguous_format),
    "bytes, channels last": ({"levels": True}, torch.float32, torch.channels_last),
    "bytes N H W C": ({"levels": True, "turned": True}, torch.float16, torch.contiguous_format),
}
GATES = [
    {},
    {"threshold": {"input": 0.1}, "gate": {"smooth": 5, "recent": 3, "dilate": 2}},
    {"threshold": {"input": 0.1}, "gate": {"max_density": 0.3, "dilate": 1}},
]


def played(
    way: str, device: str = "cuda", **options
) -> tuple[deltaconvert.DeltaModel, Network, list[Tensor]]:
    kind, dtype, order = WAYS[way]
    network = Network(**kind).to(device, dtype).eval()
    video = [frame.contiguous(memory_format=order) for frame in video_of(network, device, dtype)]
    return deltaconvert.convert(network, video[0], backend="cuda", **options), network, video


def assert_like(output: Tensor, expected: Tensor, where: str) -> None:
    """Half precision rounds each of two maps by 5e-4 of its values, in another order of sums."""
    if expected.dtype != torch.float16:
        return assert_close(output, expected, where)
    off = float((output.float() - expected.float()).abs().max() / expected.float().abs().max())
    assert off < 5e-3, f"{where}: off by {off:.3g}"


@torch.no_grad()
def assert_not_copied(way: str, options: dict, device: str) -> None:
    """The memory for copies holds noise before and after. Outputs have the bits of frames that are copied, because they
    lie at odd addresses. After a call, the frame's memory may be overwritten."""
    model, network, video = played(way, device, **options)
    apart = copy.deepcopy(model)
    outputs, copied = [model(video[0])], [apart(video[0])]
    (buffer,), (other,) = model.frame_buffers(), apart.frame_buffers()
    noise = torch.rand_like(buffer, dtype=torch.float32).mul(200).to(buffer.dtype)
    buffer.copy_(noise)
    on_gpu = device == "cuda"
    with no_waiting() if on_gpu else nullcontext():
        for frame in video[1:]:
            memory = torch.empty(frame.numel() + 1, dtype=frame.dtype, device=device)
            odd = memory[1:].as_strided(frame.shape, frame.stride())
            odd.copy_(frame)
            copied.append(apart(odd))
            mine = frame.clone()
            if on_gpu:
                torch.cuda._sleep(1_000_000)  # the call returns before the frame is read
            outputs.append(model(mine))
            mine.copy_(noise)
            del mine
            torch.empty_like(frame).copy_(noise)  # most likely where it was
    assert torch.equal(buffer, noise), "nothing was copied"
    assert torch.equal(other, video[-1])
    for t, (output, want) in enumerate(zip(outputs, copied, strict=True)):
        assert_same_bits(output, want, f"frame {t}")
        if not options:
            assert_like(output, network(video[t]), f"frame {t}")


@pytest.mark.gpu
@pytest.mark.parametrize("options", GATES, ids=["plain", "gate", "ceiling"])
@pytest.mark.parametrize("way", WAYS)
def test_frames_are_not_copied(gpu, way, options):
    assert_not_copied(way, options, "cuda")


@pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")
@pytest.mark.parametrize("options", GATES, ids=["plain", "gate", "ceiling"])
@pytest.mark.parametrize("way", ["floats", "bytes, channels last"])
def test_replays_without_a_gpu(way, options, monkeypatch):
    with_graphs(monkeypatch)
    assert_not_copied(way, options, "cpu")


@pytest.mark.gpu
@torch.no_grad()
def test_frames_that_lie_otherwise_are_copied(gpu):
    """They come between frames that are not; also the graph's own memory, two inputs in one memory, an island."""
    model, network, video = played("floats")
    model(video[0])
    (buffer,) = model.frame_buffers()
    larger = torch.rand(2, 3, 40, 60, device=gpu)

    def inside(frame: Tensor) -> Tensor:
        larger[:, :, 4:36, 6:54] = frame
        return larger[:, :, 4:36, 6:54]

    ways = (torch.clone, inside, buffer.copy_, lambda x: x.contiguous(memory_format=torch.channels_last))
    for t, frame in enumerate(3 * video):
        assert_close(model(ways[t % 4](frame)), network(frame), f"frame {t}")

    for kind in ("island", "turned output", "output"):
        network = Network(residual=kind).to(gpu).eval()
        model = deltaconvert.convert(network, video[0], backend="cuda")
        for t, frame in enumerate(video):
            for got, want in zip(model(frame), network(frame), strict=True):
                assert_close(got, want, f"{kind}, frame {t}")


@pytest.mark.gpu
@torch.no_grad()
def test_two_frames_in_one_memory(gpu):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (self.left(x) + self.right(y)).relu()

    network = Two().to(gpu).eval()
    video = [frame.to(gpu) for frame in scripted_video((4, *SHAPE[1:]), torch.float32)]
    model = deltaconvert.convert(network, (video[0][2:], video[0][:2]), backend="cuda")
    for t, frame in enumerate(2 * video):
        x, y = (frame[2:], frame[:2]) if t % 3 else (frame[:2], frame[:2])
        assert_close(model(x, y), network(x, y), f"frame {t}")


@pytest.mark.gpu
def test_frames_in_place_from_threads(gpu):
    """Each thread has a network and a stream, and both feed a third network, under inference_mode."""
    shared, network, video = played("half, channels last")
    with torch.no_grad():
        expected = [network(frame) for frame in video]
    torch.cuda.synchronize()

    def work(place: int) -> list[Tensor]:
        model, found = deltaconvert.convert(network, video[0], backend="cuda"), []
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            for t in range(60):
                frame = video[t % len(video)].clone()
                found.append((t, model(frame)))
                found.append((t, shared(frame)))
                del frame
            torch.cuda.current_stream().synchronize()
        return found

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(work, range(2)):
            for t, output in found:
                assert_like(output, expected[t % len(video)], f"frame {t}")


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS)
def test_each_pixel_of_the_mask_is_written(gpu, way):
    _, network, video = played(way)
    assert_writes_its_mask(network, video[0], video[2])
