"""What a user can run instead of a converted network: the same dense network in torch and in other runtimes.

An engine takes a frame and gives the call to time: bringing the frame into the engine's own layout is not timed. All
compute in the network's type with the given number of threads, and none may differ from torch by more than
TOLERANCES says. Of a network's outputs all are computed, and the first is what a call gives.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from deltaconvert.signature import tensors_of

Engine = Callable[[Tensor], Callable[[], Tensor]]

# Of the largest value. Float32's sums in another order differ by 1e-6, by 1e-2 where an engine computes in bfloat16.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2}


@dataclass
class Network:
    """A dense network, its normalised graph (batch norm folded) and a frame of the size to run."""

    model: nn.Module
    graph: fx.GraphModule
    frame: Tensor
    threads: int

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory()

    @cached_property
    def onnx_file(self) -> str:
        """In float32, whatever the network's type: the runtimes' own CPU code knows no other file."""
        path = Path(self._folder.name) / "network.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            model = copy.deepcopy(self.model).float()
            torch.onnx.export(model, (self.frame.float(),), path, dynamo=True, verbose=False)
        return str(path)


@dataclass
class Engines:
    """Those that run the network here; for each its version and seconds to prepare; the others with the reason."""

    ready: dict[str, Engine] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        return {"versions": self.versions, "prepare_seconds": self.seconds, "skipped": self.skipped}


def prepare(network: Network, wanted: list[str]) -> Engines:
    """Build the wanted engines, run each once and hold its output against torch's."""
    found = Engines()
    with torch.inference_mode():
        expected = tensors_of(network.model(network.frame))[0]
    for name in wanted:
        start = time.perf_counter()
        try:
            engine, version = ENGINES[name](network)
            with torch.inference_mode():
                got = engine(network.frame)()
        except ImportError as error:
            found.skipped[name] = f'{error}; pip install "deltaconvert[bench]"'
            continue
        except (
            Exception
        ) as error:  # whatever a runtime or a compiler refuses, the others can still be measured
            found.skipped[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            continue
        error = difference(got, expected)
        if error > TOLERANCES[expected.dtype]:
            found.skipped[name] = f"its output differs from torch's by {error:.2g} of the largest value"
            continue
        found.ready[name], found.versions[name] = engine, version
        found.seconds[name] = time.perf_counter() - start
    return found


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((got - expected).abs().max() / expected.abs().max())


def folded(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a normalised graph in channels_last."""
    return copy.deepcopy(graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _eager(network: Network) -> tuple[Engine, str]:
    return _torch(folded(network.graph)), torch.__version__


def _compiled(network: Network) -> tuple[Engine, str]:
    # Freezing makes the weights constants, which lets Inductor bring them into oneDNN's order once.
    compiled = torch.compile(folded(network.graph), options={"freezing": True})
    return _torch(compiled), f"{torch.__version__}, inductor, freezing"


def _torch(graph: Callable[[Tensor], list[Tensor]]) -> Engine:
    def engine(frame: Tensor) -> Callable[[], Tensor]:
        last = frame.contiguous(memory_format=torch.channels_last)
        return lambda: graph(last)[0]

    return engine


def _onnxruntime(network: Network) -> tuple[Engine, str]:
    import onnxruntime

    if network.frame.dtype != torch.float32:
        raise NotImplementedError("its convolutions on a CPU are float32's")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = network.threads
    # Its threads would go on spinning for the next frame, and slow down whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(network.onnx_file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def engine(frame: Tensor) -> Callable[[], Tensor]:
        feed = {name: frame.contiguous().numpy()}
        return lambda: torch.from_numpy(session.run(None, feed)[0])

    return engine, onnxruntime.__version__


def _openvino(network: Network) -> tuple[Engine, str]:
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": network.threads,
        # Unasked it takes bfloat16 where the processor has it.
        "INFERENCE_PRECISION_HINT": "f32" if network.frame.dtype == torch.float32 else "bf16",
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(network.onnx_file), "CPU", options)

    def engine(frame: Tensor) -> Callable[[], Tensor]:
        values = frame.float().contiguous().numpy()
        return lambda: torch.from_numpy(compiled(values)[0])

    return engine, openvino.__version__


ENGINES: dict[str, Callable[[Network], tuple[Engine, str]]] = {
    "torch channels_last": _eager,
    "torch.compile": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
