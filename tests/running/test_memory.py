"""running/memory.py: out of memory is an error with a way out, and nothing stays behind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.backends import reference
from deltaconvert.errors import InputError


@pytest.fixture
def scarce(monkeypatch):
    """The reference backend with memory for two steps of maps larger than 16 pixels; the edges it made."""
    made: list[weakref.ref] = []
    real = reference.Backend.step

    def step(self, operator, reaches, inputs, kept, *rest):
        if kept.shape[2] > 16 and len([edge for edge in made if edge() is not None]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore words")
        result = real(self, operator, reaches, inputs, kept, *rest)
        if kept.shape[2] > 16:
            made.append(weakref.ref(result.edge))
        return result

    monkeypatch.setattr(reference.Backend, "step", step)
    return made


def network() -> nn.Module:
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.Conv2d(4, 2, 3, padding=1)).eval()


REMEDY = r"smaller batch.*half precision.*\(CUDA out of memory. Tried to allocate 2.00 GiB\.\)"


def test_converting_without_memory_says_the_way_out_and_leaves_nothing(scarce):
    with pytest.raises(InputError, match=REMEDY) as held:
        deltaconvert.convert(network(), torch.rand(1, 3, 32, 32), backend="reference")
    gc.collect()
    assert len(scarce) == 2 and all(edge() is None for edge in scarce), held


@pytest.mark.parametrize(
    "said",
    [
        "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        "cudaErrorMemoryAllocation: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    ],
)
def test_a_library_that_finds_no_memory(monkeypatch, said):
    """Not torch's own kind of error, in the network or in a step, then in a size that an older one stands beside."""
    model, small = network(), torch.rand(1, 3, 16, 16)
    delta = deltaconvert.convert(model, small, backend="reference")
    expected = delta(small)

    def full(*args, **options):
        raise RuntimeError(said)

    for where, name in ((nn.Conv2d, "forward"), (reference.Backend, "step")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, full)
            with pytest.raises(
                InputError, match=r"converted network does not fit.*smaller batch.*half precision"
            ):
                deltaconvert.convert(model, small, backend="reference")
    with monkeypatch.context() as patch:
        patch.setattr(reference.Backend, "step", full)
        with pytest.raises(InputError, match=r"a frame does not fit.*smaller batch"):
            delta(torch.rand(1, 3, 32, 32))
    assert torch.equal(delta(small), expected)


def test_a_size_that_does_not_fit_leaves_the_model_as_it_was(scarce):
    model, small = network(), torch.rand(1, 3, 16, 16)
    delta = deltaconvert.convert(model, small, backend="reference")
    delta(small)
    with pytest.raises(InputError, match=REMEDY) as held:
        delta(torch.rand(1, 3, 32, 32))
    gc.collect()
    assert scarce and all(edge() is None for edge in scarce), held
    small[..., :3, 4:9] += 1
    with torch.no_grad():
        assert torch.allclose(delta(small), model(small), atol=1e-5)
    assert delta.stats().frames == 2
