"""Fleet: one or many workers, and which worker has which stream.

`Local` has one worker in this process. `Rays` has a Ray actor for each worker, on this machine or spread over the
machines of the cluster that RAY_ADDRESS names. A new stream goes to the worker with the fewest streams and stays there.
A worker that dies is restarted by Ray, empty; its streams join it again, and their next frame is a full one. So nothing
needs to be stored. A call that may have run is never repeated, only one that found its worker dead, or restarted and
without the stream.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import anyio
import anyio.to_thread

from deltaconvert.errors import InputError
from deltaconvert.serve.limits import Refused
from deltaconvert.serve.worker import Worker

RESTART = 120.0  # seconds that a dead worker may take to come back
PAUSE = 0.2  # seconds between two tries to reach it
PROMPT = 2.0  # seconds that a worker has to answer that it is alive
STATS = 10.0  # seconds that it has for its statistics, which wait for a step
ASKED = 8  # times that a call is made to a worker that does not know the stream
A_LITTLE = 0.001  # CPUs that each asks for: Ray would put all workers that ask for none on one machine
PLACED = 60  # seconds that Ray may take to find a place for all of them
CALLS = 256  # of one worker at a time; most of them wait, for a result or for a picture


class Fleet(Protocol):
    """Workers behind one interface: `call` runs a method of the worker that has the stream."""

    async def call(self, stream: str, method: str, *args: Any) -> Any: ...

    async def join(self, stream: str) -> None: ...

    async def drop(self, stream: str) -> None: ...

    async def move(self, stream: str, place: int) -> None: ...

    async def stats(self) -> dict[str, dict[str, Any]]: ...

    async def alive(self) -> list[bool]: ...

    def close(self) -> None: ...


class Local:
    """One worker in this process."""

    def __init__(self, **options: Any):
        self._worker = Worker(**options)
        self._calls = anyio.CapacityLimiter(CALLS)

    async def call(self, stream: str, method: str, *args: Any) -> Any:
        return await self._run(method, stream, *args)

    async def join(self, stream: str) -> None:
        await self.call(stream, "join")

    async def drop(self, stream: str) -> None:
        await self.call(stream, "drop")

    async def move(self, stream: str, place: int) -> None:
        if place != 0:
            raise Refused(400, f"there is no worker {place}: this server has one, 0")
        await self.call(stream, "result")  # refuses what is not there

    async def stats(self) -> dict[str, dict[str, Any]]:
        found = await self._run("stats")
        return {stream: {**stats, "worker": 0} for stream, stats in found.items()}

    async def alive(self) -> list[bool]:
        return [self._worker.alive()]

    def close(self) -> None:
        self._worker.close()

    async def _run(self, method: str, *args: Any) -> Any:
        call = functools.partial(getattr(self._worker, method), *args)
        return await anyio.to_thread.run_sync(call, limiter=self._calls)


class Rays:
    """Workers as Ray actors. A stream stays on its worker."""

    def __init__(self, workers: int, gpus: float = 0, **options: Any):
        """gpus: for each worker. options: of Worker; its threads are by default all CPUs, shared out among the workers.
        InputError if there are fewer GPUs, or if a worker cannot start."""
        import ray

        self._ray = ray
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        found = ray.cluster_resources()
        there = found.get("GPU", 0)
        if there < workers * gpus:  # Ray would wait for more
            raise InputError(
                f"{workers} workers take {workers * gpus:g} GPUs, and Ray has {there:g}: start fewer, or name a "
                "cluster in RAY_ADDRESS"
            )
        room = {"GPU": gpus} if gpus else {"CPU": A_LITTLE}
        self._group = ray.util.placement_group([room] * workers, strategy="SPREAD")
        if not self._group.wait(PLACED):
            ray.util.remove_placement_group(self._group)
            raise InputError(
                f"Ray found no room for {workers} workers in {PLACED} s: others hold its {next(iter(room))}s"
            )
        # Else one thread each: Ray goes by how many CPUs an actor asks for.
        options = {"threads": max(1, int(found.get("CPU", 1)) // workers), **options}
        actor: Any = ray.remote(Worker)
        self._workers: list[Any] = [
            actor.options(
                num_cpus=0,
                num_gpus=gpus,
                scheduling_strategy=ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=place
                ),
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=CALLS,
            ).remote(**options)
            for place in range(workers)
        ]
        self._places: dict[str, int] = {}
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._reviving: dict[int, asyncio.Task[None]] = {}
        self._sources: dict[str, Sequence[Any]] = {}
        self._moving = asyncio.Lock()  # two moves of a stream at once would leave it in neither place
        try:
            ray.get([worker.alive.remote() for worker in self._workers])  # they have loaded the file
        except ray.exceptions.ActorDiedError as error:
            self.close()
            raise InputError(f"a worker cannot start: {str(error).strip().splitlines()[-1]}") from error

    async def call(self, stream: str, method: str, *args: Any) -> Any:
        for attempt in range(ASKED):
            place = self._place(stream)
            try:
                result = await self._ask(place, method, stream, *args)
                break
            except Refused as error:
                if error.status != 404 or attempt == ASKED - 1:
                    raise
                if place == self._place(stream):  # else it moved meanwhile
                    await self._revive(place)
        if method == "watch" and stream in self._places:  # else it was dropped before the answer was here
            self._sources[stream] = args
        return result

    async def join(self, stream: str) -> None:
        """Several requests may bring the same new stream at once: it gets one place, and all wait until it has
        joined."""
        if stream not in self._places:
            held = list(self._places.values())
            place = self._places[stream] = min(range(len(self._workers)), key=held.count)
            self._joining[stream] = asyncio.create_task(self._join(stream, place))
        if stream in self._joining:
            await asyncio.shield(self._joining[stream])

    async def _join(self, stream: str, place: int) -> None:
        try:
            await self._ask(place, "join", stream)
        except BaseException:
            del self._places[stream]
            raise
        finally:
            del self._joining[stream]

    async def drop(self, stream: str) -> None:
        place = self._place(stream)
        del self._places[stream]  # at once: a worker that comes back now does not get it again
        self._sources.pop(stream, None)
        await self._forget(place, stream)

    async def move(self, stream: str, place: int) -> None:
        """Move a stream to another worker, where it goes on from a snapshot. A source that the server reads for it is
        read there from then on; where that is refused, the stream stays."""
        if not 0 <= place < len(self._workers):
            raise Refused(400, f"there is no worker {place}: they are 0 to {len(self._workers) - 1}")
        async with self._moving:
            snapshot, before = await self.call(stream, "snapshot"), self._place(stream)
            if place == before:
                return
            left = place  # by whichever way this ends, one of the two has the stream no longer
            try:
                await self._ask(place, "join", stream, snapshot)
                if stream in self._sources:
                    await self._ask(place, "watch", stream, *self._sources[stream])
                self._place(stream)  # it may have been dropped meanwhile
                self._places[stream], left = place, before
            finally:
                await self._forget(left, stream)

    async def stats(self) -> dict[str, dict[str, Any]]:
        """The statistics of all streams, but for those of a worker that does not answer now."""
        places = range(len(self._workers))
        found = await asyncio.gather(*(self._stats(place) for place in places))
        return {
            stream: {**stats, "worker": place}
            for place, streams in zip(places, found, strict=True)
            for stream, stats in streams.items()
        }

    async def alive(self) -> list[bool]:
        return list(await asyncio.gather(*map(self._answers, range(len(self._workers)))))

    def close(self) -> None:
        for worker in self._workers:
            self._ray.kill(worker)
        self._ray.util.remove_placement_group(self._group)

    async def _ask(self, place: int, method: str, *args: Any) -> Any:
        """Call a worker. If it is dead, wait for its restart, give it its streams back, and call it once more."""
        dead = (self._ray.exceptions.ActorDiedError, self._ray.exceptions.ActorUnavailableError)
        try:
            return await self._remote(place, method, *args)
        except dead:
            for _ in range(int(RESTART / PAUSE)):
                await asyncio.sleep(PAUSE)
                try:
                    await self._revive(place)
                    return await self._remote(place, method, *args)
                except dead:
                    continue
        raise Refused(503, f"worker {place} does not come back")

    async def _revive(self, place: int) -> None:
        """Give a restarted worker its streams back; many calls may need that at once."""
        task = self._reviving.get(place)
        if task is None or task.done():
            task = self._reviving[place] = asyncio.create_task(self._give_back(place))
        await asyncio.shield(task)

    async def _give_back(self, place: int) -> None:
        """A refusal here is not the caller's fault, and is ignored. A worker that never died has all of its streams."""
        held = await self._remote(place, "held")
        for stream in [stream for stream, where in self._places.items() if where == place]:
            with suppress(Refused):
                if stream not in held and stream not in self._joining:
                    await self._remote(place, "join", stream)
                if stream in self._sources and not held.get(stream):
                    await self._remote(place, "watch", stream, *self._sources[stream])

    async def _forget(self, place: int, stream: str) -> None:
        with suppress(Refused):  # it may have been forgotten there with the worker
            await self._ask(place, "drop", stream)

    async def _remote(self, place: int, method: str, *args: Any) -> Any:
        try:
            return await getattr(self._workers[place], method).remote(*args)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Refused) else error from None

    async def _answers(self, place: int) -> bool:
        try:
            # So that cameras that no request asks for go on as well.
            await asyncio.wait_for(self._revive(place), PROMPT)
            return bool(await asyncio.wait_for(self._remote(place, "alive"), PROMPT))
        except Exception:
            return False

    async def _stats(self, place: int) -> dict[str, dict[str, Any]]:
        try:
            await asyncio.wait_for(self._revive(place), PROMPT)
            found: dict[str, dict[str, Any]] = await asyncio.wait_for(self._remote(place, "stats"), STATS)
        except (asyncio.TimeoutError, self._ray.exceptions.RayError):
            return {}
        return found

    def _place(self, stream: str) -> int:
        if stream not in self._places:
            raise Refused(404, f"there is no stream {stream}")
        return self._places[stream]
