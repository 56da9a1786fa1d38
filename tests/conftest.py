"""Shared by all tests: where the packages are, the backends that exist, fixed seeds."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# Examples are drawn the same way everywhere; DELTACONVERT_EXAMPLES=10 draws ten times as many, anew in each run.
MORE = int(os.environ.get("DELTACONVERT_EXAMPLES", "1"))
settings.register_profile(
    "deltaconvert",
    deadline=None,
    derandomize=MORE == 1,
    database=None,
    phases=(Phase.explicit, Phase.generate)
    if os.environ.get("NO_SHRINK")
    else (Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
    ],
)
settings.load_profile("deltaconvert")


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the workers are the parallelism


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
