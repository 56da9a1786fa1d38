"""Workers on a cluster of two machines, both of them this one: the same code, by RAY_ADDRESS. One machine dies."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch
from serving import PATIENCE, frame, png, until

ray = pytest.importorskip("ray", reason="several workers need Ray")

from ray.cluster_utils import Cluster  # noqa: E402

from deltaconvert.serve.fleet import Rays  # noqa: E402
from deltaconvert.serve.limits import Limits  # noqa: E402


@pytest.fixture
def cluster(monkeypatch):
    node = {"num_cpus": 1, "object_store_memory": 2**27}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    others = cluster.add_node(**node)
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    ray.init(log_to_driver=False, configure_logging=False)
    until(lambda: ray.cluster_resources().get("CPU") == 2)  # a node is there before its resources are known
    ray.get([_probe(node["NodeID"]) for node in ray.nodes()])  # and is known before an actor may go there
    yield cluster, others
    ray.shutdown()
    cluster.shutdown()


def _probe(node):
    """Of a task that must run on a node: it waits until the node is known."""
    where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(lambda: None).options(num_cpus=0, scheduling_strategy=where).remote()


async def play(fleet, stream, seed, expected):
    result = await fleet.call(stream, "frame", png(frame(seed)), "image/png")
    torch.testing.assert_close(torch.tensor(result["outputs"][0]["values"]), expected(frame(seed)))
    return result["frame"]


@pytest.mark.slow
def test_a_machine_dies(cluster, file, expected):
    """Each machine has a worker; the worker of the one that dies starts anew on the other."""
    cluster, other = cluster
    fleet = Rays(2, file=str(file), limits=Limits(), threads=1)

    async def machine(place):
        return await fleet._workers[place].__ray_call__.remote(
            lambda _: ray.get_runtime_context().get_node_id()
        )

    async def scenario():
        machines = [await machine(place) for place in range(2)]
        assert set(machines) == {node["NodeID"] for node in ray.nodes()}
        for stream in "ab":
            await fleet.join(stream)
            assert [await play(fleet, stream, seed, expected) for seed in range(3)] == [1, 2, 3]
        lost = machines.index(other.node_id)
        (begins_anew,) = [stream for stream, place in fleet._places.items() if place == lost]
        (goes_on,) = set("ab") - {begins_anew}
        cluster.remove_node(other, allow_graceful=False)
        end, numbers = time.monotonic() + PATIENCE, [3]
        while numbers[-1] != 1:  # its process may outlive its machine's by a second
            assert time.monotonic() < end, numbers
            numbers.append(await play(fleet, begins_anew, len(numbers), expected))
        assert numbers[:-1] == [*range(3, 2 + len(numbers))]
        assert await play(fleet, goes_on, 4, expected) == 4
        assert await machine(lost) == machines[1 - lost]

    asyncio.run(scenario())
    fleet.close()
