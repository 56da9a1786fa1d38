"""Workers as Ray actors: streams stick, a killed worker touches nobody else, a stream moves with its snapshot."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
import torch
from serving import PATIENCE, frame, png

ray = pytest.importorskip("ray", reason="several workers need Ray")

import deltaconvert  # noqa: E402
from deltaconvert.errors import InputError  # noqa: E402
from deltaconvert.serve.fleet import A_LITTLE, RESTART, Rays  # noqa: E402
from deltaconvert.serve.limits import Limits, Refused  # noqa: E402

STREAMS = ["a", "b", "c", "d"]
TF32 = 1e-2  # what is left of a number there, on a GPU


@pytest.fixture(scope="module")
def fleet(file):
    ray.init(
        address="local",  # not the cluster of another test that runs beside
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=2**27,
    )
    fleet = Rays(2, file=str(file), limits=Limits())
    yield fleet
    fleet.close()
    ray.shutdown()


async def play(fleet, stream, seed, expected, tolerance=None):
    result = await fleet.call(stream, "frame", png(frame(seed)), "image/png")
    found = torch.tensor(result["outputs"][0]["values"])
    torch.testing.assert_close(found, expected(frame(seed)), rtol=tolerance, atol=tolerance)
    return result


async def all_alive(fleet):
    """A worker on a busy machine may take longer than a health check waits for it."""
    end = time.monotonic() + PATIENCE
    while not all(await fleet.alive()):
        assert time.monotonic() < end, "a worker does not answer"


def test_the_threads_of_a_worker(fleet):
    """The CPUs are shared out: Ray's own number, for an actor that asks for none, is one."""

    async def scenario():
        for worker in fleet._workers:
            assert await worker.__ray_call__.remote(lambda _: torch.get_num_threads()) == 2

    asyncio.run(scenario())


def test_killed_under_load(fleet, expected):
    async def scenario():
        for stream in STREAMS:
            await fleet.join(stream)
        stats = await fleet.stats()
        places = {stream: stats[stream]["worker"] for stream in STREAMS}
        assert sorted(places.values()) == [0, 0, 1, 1]

        numbers = {stream: [] for stream in STREAMS}
        killed = asyncio.Event()

        async def camera(stream):
            after = 0  # frames since the kill: it is waited for, however fast the machine is
            while after < 6:
                after += killed.is_set()
                numbers[stream].append((await play(fleet, stream, len(numbers[stream]), expected))["frame"])

        pid = await fleet._remote(0, "pid")
        cameras = [asyncio.create_task(camera(stream)) for stream in STREAMS]
        while min(map(len, numbers.values())) < 2:
            await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        killed.set()
        await asyncio.gather(*cameras)
        for stream, place in places.items():
            frames = numbers[stream]
            before = frames.index(1, 1) if place == 0 else len(frames)  # counted anew since the restart
            assert frames == [*range(1, before + 1), *range(1, len(frames) - before + 1)]
        await all_alive(fleet)

    asyncio.run(scenario())


async def killed(fleet, stream):
    """Kill the worker of a stream, and wait until another one is there in its place; nobody asks for its streams."""
    place = fleet._places[stream]
    pid = await fleet._remote(place, "pid")
    os.kill(pid, signal.SIGKILL)
    others = {other for other, where in fleet._places.items() if where != place}
    end = time.monotonic() + PATIENCE
    while True:
        began = time.monotonic()
        seen = set(await fleet.stats())
        assert time.monotonic() - began < RESTART / 2, "it waits for the worker that died"
        if others <= seen:  # the others' may not answer in time on a busy machine
            break
        assert time.monotonic() < end, "another worker does not answer"
    while True:
        assert time.monotonic() < end, "no other worker"
        try:
            if await fleet._remote(place, "pid") != pid:
                return
        except ray.exceptions.RayError:
            await asyncio.sleep(0.05)


def test_killed_while_nobody_asks(fleet, expected, clip):
    """Whoever asks later gets an answer, what the server reads is read again, and what is dropped is gone."""

    async def scenario():
        for stream in ("quiet", "read", "gone"):
            await fleet.join(stream)
            await fleet.move(stream, 0)
        await play(fleet, "quiet", 0, expected)
        await fleet.call("read", "watch", str(clip), True)
        await killed(fleet, "quiet")
        await fleet.drop("gone")
        assert (await play(fleet, "quiet", 0, expected))["frame"] == 1
        assert (await play(fleet, "quiet", 1, expected))["frame"] == 2
        await killed(fleet, "quiet")
        await all_alive(fleet)  # a health check is enough for it
        assert {"quiet": False, "read": True}.items() <= (await fleet._remote(0, "held")).items()
        before = (await fleet.stats())["read"]["frames"]
        end = time.monotonic() + PATIENCE
        while (await fleet.stats())["read"]["frames"] <= before:
            assert time.monotonic() < end, "it is not read"
            await asyncio.sleep(0.05)
        assert "gone" not in await fleet._remote(0, "held")
        for stream in ("quiet", "read"):
            await fleet.drop(stream)
            with pytest.raises(Refused, match="no stream"):
                await fleet.call(stream, "result")

    asyncio.run(scenario())


def test_frames_while_a_stream_moves(fleet, expected):
    """None is refused because it came to the worker that the stream has just left."""

    async def scenario():
        await fleet.join("mover")
        moved = asyncio.Event()

        async def camera():
            while not moved.is_set():
                await play(fleet, "mover", 0, expected)

        cameras = [asyncio.create_task(camera()) for _ in range(3)]
        for place in (1, 0, 1, 0):
            await fleet.move("mover", place)
        moved.set()
        await asyncio.gather(*cameras)
        await fleet.drop("mover")

    asyncio.run(scenario())


def test_a_stream_moves(fleet, expected):
    async def scenario():
        await fleet.join("mover")
        await play(fleet, "mover", 0, expected)
        before = (await fleet.stats())["mover"]["worker"]
        await fleet.move("mover", 1 - before)
        await play(fleet, "mover", 0, expected)
        after = (await fleet.stats())["mover"]
        assert after["worker"] == 1 - before
        assert after["density"] == 0  # it knew the frame
        await fleet.drop("mover")
        with pytest.raises(Refused, match="no stream"):
            await fleet.call("mover", "result")

    asyncio.run(scenario())


def test_a_stream_moves_with_what_the_server_reads(fleet, clip):
    async def scenario():
        await fleet.join("road")
        await fleet.call("road", "watch", str(clip), True)
        for place in (0, 1, 0):
            await fleet.move("road", place)
            before = (await fleet.stats())["road"]
            assert (before["worker"], before["source"]) == (place, "clip.mp4")
            end = time.monotonic() + PATIENCE
            while (await fleet.stats())["road"]["frames"] < before["frames"] + 3:
                assert time.monotonic() < end, "it is not read there"
                await asyncio.sleep(0.05)
        with pytest.raises(Refused, match="no worker 2"):
            await fleet.move("road", 2)
        # A video that is not there any more: the stream stays, and is nowhere else.
        fleet._sources["road"] = (str(clip.parent / "gone.mp4"), True)
        with pytest.raises(Refused, match="no such file"):
            await fleet.move("road", 1)
        assert (await fleet.stats())["road"]["worker"] == 0
        assert "road" not in await fleet._remote(1, "held")
        await fleet.drop("road")

    asyncio.run(scenario())


def test_a_new_stream_in_many_requests_at_once(fleet):
    async def scenario():
        await asyncio.gather(*(fleet.join(name) for name in ["twin", "other", "twin", "other", "twin"]))
        held = [await fleet._remote(place, "stats") for place in (0, 1)]
        for name in ("twin", "other"):
            assert [name in stats for stats in held].count(True) == 1
            await fleet.call(name, "result")
            await fleet.drop(name)

    asyncio.run(scenario())


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_gpu_for_each_worker(file, expected, fleet):
    """Streams on two GPUs, one that moves from one to the other, one whose worker is killed."""

    async def scenario():
        workers = Rays(2, gpus=1, file=str(file), limits=Limits(), device="cuda", threads=1)
        seen = [
            await worker.__ray_call__.remote(lambda self: os.environ["CUDA_VISIBLE_DEVICES"])
            for worker in workers._workers
        ]
        assert len(set(seen)) == 2, seen
        for stream in STREAMS:
            await workers.join(stream)
        for seed in range(3):
            await asyncio.gather(*(play(workers, stream, seed, expected, TF32) for stream in STREAMS))
        stats = await workers.stats()
        assert sorted(stats[stream]["worker"] for stream in STREAMS) == [0, 0, 1, 1]
        await workers.move("a", 1 - stats["a"]["worker"])
        await play(workers, "a", 2, expected, TF32)
        assert (await workers.stats())["a"]["density"] == 0  # it knew the frame
        os.kill(await workers._remote(0, "pid"), signal.SIGKILL)
        await asyncio.gather(*(play(workers, stream, 3, expected, TF32) for stream in STREAMS))
        await all_alive(workers)
        workers.close()

    asyncio.run(scenario())


def test_what_no_worker_can_start_with(fleet, network, tmp_path, monkeypatch):
    """It is said: not waited for, and not as an accident of an actor."""
    with pytest.raises(InputError, match="2 workers take 200 GPUs"):
        Rays(2, gpus=100, file="small.delta")
    deltaconvert.convert(network, torch.rand(1, 3, 48, 64), backend="cpu").save(tmp_path / "bare.delta")
    with pytest.raises(InputError, match=r"cannot start: .*does not say how images become its input"):
        Rays(1, file=str(tmp_path / "bare.delta"), threads=1)
    monkeypatch.setattr("deltaconvert.serve.fleet.PLACED", 1)
    free = ray.cluster_resources()["CPU"] - 2 * A_LITTLE
    others = ray.util.placement_group([{"CPU": free}])
    assert others.wait(PATIENCE)
    with pytest.raises(InputError, match="no room for 1 workers in 1 s: others hold its CPUs"):
        Rays(1, file="small.delta")
    ray.util.remove_placement_group(others)


def test_refusals_come_through(fleet):
    async def scenario():
        await fleet.join("a")
        with pytest.raises(Refused, match="cannot be decoded") as caught:
            await fleet.call("a", "frame", b"nonsense", "image/png")
        assert caught.value.status == 422

    asyncio.run(scenario())
