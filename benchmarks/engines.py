"""The alternatives to a converted network: the same dense network in torch and in other runtimes.

An engine is given a frame and returns the call to time, so that bringing the frame into the engine's own layout is not
timed. All engines compute in the network's type with the given number of threads, and may differ from torch by at most
TOLERANCES. They compute all outputs of a network; the call returns the first.
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

# As a share of the largest value. Another order of float32 sums differs by 1e-6, an engine in bfloat16 by 1e-2.
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
        """Export in float32 whatever the network's type, since the runtimes' CPU code reads no other file."""
        path = Path(self._folder.name) / "network.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            model = copy.deepcopy(self.model).float()
            torch.onnx.export(model, (self.frame.float(),), path, dynamo=True, verbose=False)
        return str(path)


@dataclass
class Engines:
    """The engines that run the network here, with version and seconds to prepare; and why the others do not."""

    ready: dict[str, Engine] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        return {"versions": self.versions, "prepare_seconds": self.seconds, "skipped": self.skipped}


def prepare(network: Network, wanted: list[str]) -> Engines:
    """Build the wanted engines, run each once and compare its output with torch's."""
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
        except Exception as error:  # if one runtime or compiler refuses, the others can still be measured
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
    # Its threads would keep spinning in wait of the next frame, and slow down the engine that is timed next.
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
        # By default it takes bfloat16 where the processor has it.
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
