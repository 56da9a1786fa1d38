"""Loops that are split in shares among torch's threads."""

import multiprocessing
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from deltaconvert.backends.cpu.native import machine_code
from deltaconvert.backends.cpu.native.threads import pool

pytestmark = pytest.mark.skipif(not machine_code.FOUND, reason="numba is not installed")


@machine_code.shared
def count(thread, first, last, visits, threads):
    for item in range(first, last):
        visits[item] += 1
        threads[item] = thread


@pytest.fixture(params=(1, 2, 3))
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def visits_of(items, grain):
    visits, by = np.zeros(items), np.full(items, -1)
    count(items, grain, visits, by)
    return visits, by


@pytest.mark.parametrize("items, grain", ((0, 4), (1, 4), (4, 4), (5, 4), (10_007, 1), (10_007, 100)))
def test_every_item_is_done_once(threads, items, grain):
    visits, by = visits_of(items, grain)
    assert (visits == 1).all()
    assert ((by >= 0) & (by < threads)).all()


def test_without_a_pool_one_thread_does_all(monkeypatch):
    monkeypatch.setattr(pool(), "address", 0)
    visits, by = visits_of(1000, 10)
    assert (visits == 1).all() and (by == 0).all()


def test_models_of_several_threads_do_not_meet(threads):
    found = []

    def play():
        torch.set_num_threads(threads)  # each thread of Python has its own number
        found.append(all((visits_of(5000, 10)[0] == 1).all() for _ in range(50)))

    players = [threading.Thread(target=play) for _ in range(4)]
    for player in players:
        player.start()
    for player in players:
        player.join()
    assert found == [True] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="where libraries lie is asked of Linux")
def test_the_pool_is_that_of_torch():
    """The pool's address lies in the one OpenMP library that torch has loaded."""
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this torch has other threads")
    holders = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= pool().address < last:
            holders.add(Path(line.split()[-1]).name)
    assert len(holders) == 1 and "omp" in holders.pop()


def _forked(answers):
    answers.put(bool((visits_of(1000, 10)[0] == 1).all()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_wait_for_its_parents_threads():
    visits_of(1000, 10)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_forked, args=(answers,))
    child.start()
    assert answers.get(timeout=60)
    child.join(60)


def test_machine_code_is_kept_by_all_that_it_may_call(tmp_path):
    (tmp_path / "loop.py").write_text("called = 1")
    (tmp_path / "called.py").write_text("def called(): ...")
    before = machine_code.digest(tmp_path)
    machine_code.digest.cache_clear()
    (tmp_path / "called.py").write_text("def called(): return 2")
    assert machine_code.digest(tmp_path) != before
    machine_code.digest.cache_clear()
    named = machine_code._compile(lambda x: x)
    assert named.py_func.__qualname__.endswith(machine_code.digest(machine_code.FOLDER))
