"""backends/cuda, as it is called: from any stream, thread and device, from host memory, a thousand times, with too
little memory. What it computes is tested everywhere else."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from one_each import ONE_EACH, network_of, small
from oracle import assert_close, assert_same_bits, generator, no_waiting, scripted_video
from poisoned import assert_writes_its_mask
from torch import Tensor, nn

import deltaconvert
import model_zoo
from deltaconvert.backends import cuda
from deltaconvert.errors import InputError

pytestmark = pytest.mark.gpu
SHAPE = (2, 3, 66, 94)


def dense(network: nn.Module, frames: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [network(frame) for frame in frames]


def assert_all_close(outputs: list[Tensor], expected: list[Tensor]) -> None:
    torch.cuda.synchronize()
    for t, (output, want) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(output, want, f"frame {t}")


def busy(stream: torch.cuda.Stream) -> None:
    """Gives `stream` some milliseconds of work, so that whatever fails to wait for the stream comes too early."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(5_000_000)


def test_each_frame_from_another_stream(gpu):
    """Nothing waits on the host, yet outputs and statistics follow the order of the calls."""
    network = model_zoo.create("resnet18", seed=0).to(gpu)
    video = scripted_video(SHAPE, torch.float32)
    expected = dense(network, video)
    model, alone = (deltaconvert.convert(network, video[0]) for _ in range(2))
    streams = [torch.cuda.Stream() for _ in range(3)]
    outputs = []
    torch.cuda.synchronize()
    for t, frame in enumerate(video):
        busy(streams[t % 3])
        with torch.cuda.stream(streams[t % 3]):
            outputs.append(model(frame))
        alone(frame)
    stats, masks = model.stats(), model.masks()
    assert_all_close(outputs, expected)
    assert stats == alone.stats()
    assert all(torch.equal(mask, masks[path]) for path, mask in alone.masks().items())


def test_reset_on_another_stream(gpu):
    """The reset takes effect after the frame before it and before the next one."""
    network = model_zoo.create("resnet18", seed=0).to(gpu)
    video = scripted_video(SHAPE, torch.float32)
    expected = dense(network, video)
    model = deltaconvert.convert(network, video[0])
    one, other = torch.cuda.Stream(), torch.cuda.Stream()
    outputs, works = [], []
    torch.cuda.synchronize()
    for t, frame in enumerate(video):
        busy(one)
        with torch.cuda.stream(one):
            outputs.append(model(frame))
        if t < 3:  # it waits, and the other frames must not
            works.append(model.stats().work)
        busy(other)
        with torch.cuda.stream(other):
            model.reset(t % 2 if t % 3 else None)
    assert_all_close(outputs, expected)
    assert works[1] == 1 and 0.5 <= works[2] < 1  # all streams, then one of two


def test_frames_from_host_memory(gpu):
    """Float frames in pageable or pinned memory act like frames on the device, and nothing waits."""
    network = model_zoo.create("resnet18", seed=0).to(gpu)
    video = [frame.cpu() for frame in scripted_video(SHAPE, torch.float32)]
    expected = dense(network, [frame.to(gpu) for frame in video])
    model = deltaconvert.convert(network, video[0].to(gpu))
    outputs = [model(video[0])]
    with no_waiting():
        for t, frame in enumerate(video[1:]):
            mine = frame.pin_memory() if t % 2 else frame.clone(memory_format=torch.channels_last)
            outputs.append(model(mine))
            if not t % 2:
                mine.fill_(float("nan"))  # it was read before the call returned
    assert all(output.device == gpu for output in outputs)
    assert_all_close(outputs, expected)


@pytest.mark.parametrize("where", ["device", "pinned", "pageable"])
@pytest.mark.parametrize("name", ["resnet18", "unet"])
def test_a_call_returns_while_the_device_is_busy(gpu, name, where):
    """Half a second of work is queued first, since torch's debug mode does not see if CuPy or the driver waits."""
    network = model_zoo.create(name, seed=0).to(gpu)
    video = scripted_video(SHAPE, torch.float32)
    expected = dense(network, video)
    frames = [frame if where == "device" else frame.cpu() for frame in video]
    if where == "pinned":
        frames = [frame.pin_memory() for frame in frames]
    model = deltaconvert.convert(network, video[0])
    outputs = [model(frame) for frame in frames[:2]]
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    before = torch.cuda.Event()
    before.record()
    outputs += [model(frame) for frame in frames[2:]]
    assert not before.query(), "the frames waited for what stood before them"
    assert_all_close(outputs, expected)


def test_frames_that_are_not_copied(gpu):
    """Frames are written where the graph reads them, on the call's stream; earlier outputs stay as they were."""
    network = model_zoo.create("resnet18", seed=0).to(gpu)
    video = scripted_video(SHAPE, torch.float32)
    expected = dense(network, video)
    model = deltaconvert.convert(network, video[0])
    with pytest.raises(InputError, match="call the network once"):
        model.frame_buffers()
    outputs = [model(video[0])]
    (buffer,) = model.frame_buffers()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with no_waiting(), torch.cuda.stream(stream):
        for frame in video[1:]:
            buffer.copy_(frame)
            outputs.append(model(buffer))
    assert_all_close(outputs, expected)


def test_outputs_that_are_lent(gpu):
    """Lent outputs equal those of a call, and the next frame writes to the same memory."""
    network = model_zoo.create("unet", seed=0).to(gpu)
    video = scripted_video(SHAPE, torch.float32)
    model, owner = (deltaconvert.convert(network, video[0]) for _ in range(2))
    places = []
    for t, frame in enumerate(video):
        lent = model.lend(frame)
        places.append(lent.data_ptr())
        assert_same_bits(lent, owner(frame), f"frame {t}")
    assert len(set(places[3:])) == 1  # from when on the frame is a graph


def test_models_on_two_devices_at_once(gpu):
    """Each model runs in a thread of its own, whose current device is the other one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    devices = [torch.device("cuda", place) for place in range(2)]
    networks = [model_zoo.create("resnet18", seed=place).to(device) for place, device in enumerate(devices)]
    videos = [
        [frame.to(device) for frame in scripted_video(SHAPE, torch.float32, place)]
        for place, device in enumerate(devices)
    ]
    expected = [dense(network, video) for network, video in zip(networks, videos, strict=True)]

    def work(place: int) -> list[Tensor]:
        with torch.cuda.device(1 - place):
            model = deltaconvert.convert(networks[place], videos[place][0], threshold={"activation": 0.0})
            outputs = [model(frame) for frame in videos[place]]
            model.reset()
            again = [model(frame) for frame in videos[place]]
            torch.cuda.synchronize(devices[place])
        for t, (one, other) in enumerate(zip(outputs, again, strict=True)):
            assert_same_bits(one, other, f"frame {t} on device {place}, after a reset")
        return outputs

    with ThreadPoolExecutor(2) as pool:
        for place, outputs in enumerate(pool.map(work, range(2))):
            assert all(output.device == devices[place] for output in outputs)
            assert_all_close(outputs, expected[place])


def test_a_stream_moves_to_another_device(gpu):
    """A stream's snapshot continues in a model on another device, with the same bits."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    video = scripted_video(SHAPE, torch.float32)
    models = []
    for place in range(2):
        device = torch.device("cuda", place)
        network = model_zoo.create("resnet18", seed=0).to(device)
        models.append(deltaconvert.convert(network, video[0].to(device)))
    for frame in video[:4]:
        models[0](frame.to("cuda:0"))
    models[1](video[0].to("cuda:1"))
    for stream in range(SHAPE[0]):
        models[1].restore(stream, models[0].snapshot(stream))
    here, there = models[0](video[4].to("cuda:0")), models[1](video[4].to("cuda:1"))
    assert_same_bits(here.cpu(), there.cpu(), "on two devices")
    assert models[0].stats().work == models[1].stats().work < 1


def test_models_in_threads(gpu):
    """Each thread converts, plays and resets its own model, while another keeps waiting for the device."""
    failures, over = [], threading.Event()
    networks = [model_zoo.create("resnet18", seed=seed).to(gpu) for seed in range(4)]
    videos = [scripted_video((1, 3, 50, 70 + seed), torch.float32, seed) for seed in range(4)]
    expected = [dense(network, video) for network, video in zip(networks, videos, strict=True)]

    def work(place: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                model = deltaconvert.convert(networks[place], videos[place][0])
                for _ in range(3):
                    outputs = [model(frame) for frame in videos[place]]
                    model.reset()
                torch.cuda.current_stream().synchronize()
            for t, (output, want) in enumerate(zip(outputs, expected[place], strict=True)):
                assert_close(output, want, f"thread {place}, frame {t}")
            assert model.explain().rows and not model._program.outside
        except BaseException as error:  # a thread's own failure would be printed and forgotten
            failures.append(error)

    def wait() -> None:
        while not over.is_set():
            torch.ones(8, device=gpu).sum().item()

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    waiter = threading.Thread(target=wait)
    for thread in (waiter, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    waiter.join()
    if failures:
        raise failures[0]


def test_captures_leave_torchs_streams_alone(gpu, monkeypatch, tmp_path):
    """A user may launch in any of torch's streams while tiles are measured and a frame is captured."""
    from cupy.cuda import runtime

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    streams = {torch.cuda.Stream().cuda_stream for _ in range(64)}
    launch, captures = cuda.Backend.launch, []

    def watched(*args, **options):
        launch(*args, **options)
        if torch.cuda.is_current_stream_capturing():
            captures.append([stream for stream in streams if runtime.streamIsCapturing(stream)])

    monkeypatch.setattr(cuda.Backend, "launch", watched)
    network = model_zoo.create("resnet18", seed=0).to(gpu)
    video = scripted_video((1, 3, 540, 960), torch.float32)
    model = deltaconvert.convert(network, video[0])
    measured = len(captures)
    assert_close(model(video[0]), dense(network, video[:1])[0])
    assert len(captures) > measured > 0 and not any(captures)
    assert model._program._backend._side is not None


@pytest.mark.parametrize("backend", ["cuda", "reference"])
def test_the_second_device(gpu, backend):
    """While the first one is the current device."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    second = torch.device("cuda", 1)
    network = model_zoo.create("resnet18", seed=0).to(second)
    video = [frame.to(second) for frame in scripted_video(SHAPE, torch.float32)]
    expected = dense(network, video)
    model = deltaconvert.convert(network, video[0], backend=backend)
    with torch.cuda.device(0):
        outputs = [model(frame) for frame in video]
        model.reset(1)
        outputs.append(model(video[-1].cpu()))
    assert all(output.device == second for output in outputs)
    torch.cuda.synchronize(second)
    assert_all_close(outputs, [*expected, expected[-1]])


def test_a_thousand_frames(gpu):
    """No error adds up: the last frame's bits are those of a reset model, and memory does not grow."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.SiLU(), nn.Conv2d(24, 8, 1)
    ).eval()
    draw = generator(3)
    frame = torch.randn(2, 3, 41, 53, generator=draw)
    model = deltaconvert.convert(network, frame, threshold={"activation": 0.0})
    fresh = copy.deepcopy(model)
    places = torch.randint(0, 36, (1000, 3), device="cpu", generator=torch.Generator("cpu").manual_seed(1))
    for t, (stream, y, x) in enumerate(places.tolist()):
        frame[stream % 2, :, y : y + 5, x : x + 9] = torch.randn(3, 5, 9, generator=draw)[:, : 41 - y]
        output = model(frame)
        if t == 10:
            held = torch.cuda.memory_allocated()
        if t % 100 == 99:
            fresh.reset()
            assert_same_bits(output, fresh(frame), f"frame {t}")
            assert_close(output, dense(network, [frame])[0], f"frame {t}")
    del output
    assert torch.cuda.memory_allocated() <= held + fresh.stats().state_bytes + (1 << 20)


NETWORKS = {
    "bottleneck": lambda: model_zoo.create("resnet50", seed=0).layer2[:2].eval(),
    "inverted": lambda: model_zoo.create("efficientnet_b0", seed=0),
    "unet": lambda: model_zoo.create("unet_bilinear", seed=0),
    "tokens": lambda: model_zoo.create("convnext_tiny", seed=0),
}


@pytest.mark.parametrize("threshold", [0.0, 0.02])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_candidate_is_written_and_no_other_pixel(gpu, name, threshold):
    network = NETWORKS[name]().to(gpu)
    first = next(p for p in network.parameters() if p.dim() == 4)
    base = torch.rand(2, first.shape[1], 45, 70)
    moved = base.clone()
    moved[1, :, 11:18, 22:30] += 0.5
    assert_writes_its_mask(network, base, moved, threshold)


@pytest.mark.parametrize("name", [*ONE_EACH, "depthwise"])
def test_each_kernel_writes_its_candidates_and_no_other_pixel(gpu, name):
    """Networks of one operator each, which together use every source of kernels/ that computes."""
    network = small() if name == "depthwise" else network_of(name)
    base = torch.rand(2, 3, 13, 19)
    moved = base.clone()
    moved[1, :, 4:7, 9:13] += 0.5
    assert assert_writes_its_mask(network.to(gpu), base, moved), "by torch, all of it"


def test_too_little_memory(gpu):
    """If converting, a new size or a frame does not fit, the error says what to do, nothing is kept, and the model goes
    on as before."""
    network = model_zoo.create("resnet18", seed=0).to(gpu)
    small, large = torch.rand(1, 3, 64, 64), torch.rand(8, 3, 1024, 1024)
    model = deltaconvert.convert(network, small)
    expected = model(small)
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    free = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 30)) / free)
    try:
        for attempt in (lambda: model(large), lambda: deltaconvert.convert(network, large)):
            with pytest.raises(
                InputError, match="does not fit into the device's memory: use a smaller batch"
            ):
                attempt()
            gc.collect()
            assert torch.cuda.memory_allocated() <= held + (1 << 20)
            assert_same_bits(model(small), expected, "after the error")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def beside_torch() -> int:
    """Bytes in use on the card that this process's torch has not reserved: its context takes half a gigabyte."""
    free, every = torch.cuda.mem_get_info()
    return every - free - torch.cuda.memory_reserved()


@contextmanager
def full_but_for(room: int, reserved: int) -> Iterator[None]:
    """Fills the card's memory outside of torch, except `room` bytes, and `reserved` ones that torch holds: tensors may
    use these, but not the driver, for kernels and graphs."""
    from cupy.cuda import runtime

    gc.collect()
    torch.cuda.empty_cache()
    torch.empty(reserved, dtype=torch.uint8, device="cuda")  # freed at once, and kept by torch
    taken = [runtime.malloc(runtime.memGetInfo()[0] - room - (64 << 20))]
    while runtime.memGetInfo()[0] > room:
        try:
            taken.append(runtime.malloc(2 << 20))
        except runtime.CUDARuntimeError:
            break
    try:
        yield
    finally:
        for each in taken:
            runtime.free(each)


@pytest.mark.parametrize("room, reserved", [(0, 0), (64, 0), (400, 0), (0, 2048), (16, 2048)])
def test_a_card_that_others_fill(gpu, room, reserved, monkeypatch, tmp_path):
    """Converting (with tiles to measure) and a new size either run, or an error says what to do. An older model then
    continues with the same bits."""
    if beside_torch() > 1 << 30:
        pytest.skip("others use this card, and would be without memory")
    network = model_zoo.create("resnet18", seed=0).to(gpu)
    small, large = torch.rand(1, 3, 64, 64), torch.rand(2, 3, 512, 512)
    model = deltaconvert.convert(network, small)
    expected = [model(small) for _ in range(2)]
    refused = []
    with full_but_for(room << 20, reserved << 20), monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        for attempt in (lambda: deltaconvert.convert(network, large)(large), lambda: model(large)):
            try:
                attempt()
            except InputError as error:
                assert "does not fit into the device's memory: use a smaller batch" in str(error)
                refused.append(str(error))
    print(f"{room} MiB, {reserved} of torch:", *refused, sep="\n  ")
    assert refused or room or reserved
    assert_same_bits(model(small), expected[-1], "behind the errors")
    assert_close(deltaconvert.convert(network, large)(large), dense(network, [large])[0])


def allocated() -> int:
    """Bytes, without what cuBLAS keeps for each stream that ever called it."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


def test_a_deleted_model_frees_its_memory(gpu):
    network = model_zoo.create("resnet18", seed=0).to(gpu)
    frame = torch.rand(1, 3, 64, 96)
    before = allocated()
    model = deltaconvert.convert(network, frame)
    for _ in range(2):
        model(frame)
    assert torch.cuda.memory_allocated() > before + (1 << 20)
    del model
    assert allocated() <= before
