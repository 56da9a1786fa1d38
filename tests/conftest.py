"""Shared by all tests: import paths, the backends, fixed seeds."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).resolve().parents[1]
# The packages, and modules that tests share.
for folder in (ROOT, ROOT / "tests", ROOT / "tests" / "kernels"):
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
        # Conversions make objects by the thousand, and most stay: to look for dead ones after 700 took 3 to 11 %.
        gc.set_threshold(10_000, 10, 10)


def pytest_sessionstart() -> None:
    """`make test-cuda` without a GPU ends at once, not with two thousand failures."""
    if os.environ.get("DELTACONVERT_NEEDS_GPU") and (reason := _why_no_gpu()):
        pytest.exit(f"{reason}; `make test` runs the tests that need none", returncode=1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def _why_no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    from deltaconvert.backends.cuda import why_not

    return why_not(torch.device("cuda", 0))


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """The first CUDA device, on which the test then makes its tensors, and computes in strict float32."""
    reason = _why_no_gpu()
    if reason is not None:
        # `make test-cuda` asks for a GPU: a run that tests nothing must not look like one that passes.
        (pytest.fail if os.environ.get("DELTACONVERT_NEEDS_GPU") else pytest.skip)(reason)
    device, before = torch.device("cuda", 0), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    with device:
        yield device
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(params=["reference", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend; under "cuda" the test's tensors are made on the GPU."""
    if request.param == "cuda":
        request.getfixturevalue("gpu")
    return str(request.param)
