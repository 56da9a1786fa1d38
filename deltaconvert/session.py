"""Running an exported network: needs numpy and onnxruntime, and nothing else of this package.

session = DeltaSession("resnet18.onnx"); scores = session(frame), frame after frame, each float32 N C H W.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, InvalidProtobuf
except ImportError as error:
    raise ImportError("onnxruntime runs an exported network: pip install onnxruntime") from error

EVERY = "everything_changed"
FORMAT = 1
# onnxruntime's own choice, to try all algorithms, tries them anew for every number of tiles that a frame changes.
CUDA = ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"})
Array = np.ndarray[Any, Any]


class DeltaSession:
    """A network exported by deltaconvert.export_onnx, with the state of its streams: the images of a batch.

    The first frame, and the first after reset(), is computed in full. The stored maps are updated in place: each is one
    buffer, bound both as input and as output.

    path: of the .onnx file. providers: as onnxruntime takes them; by default CUDA where it is there, else the CPU.
    options: onnxruntime.SessionOptions, for the number of threads and the like; without, only errors are logged.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: Sequence[Any] | None = None,
        options: onnxruntime.SessionOptions | None = None,
    ):
        if providers is None:
            cpu = "CPUExecutionProvider"
            providers = [CUDA, cpu] if CUDA[0] in onnxruntime.get_available_providers() else [cpu]
        with open(path, "rb"):  # OSError where there is none
            pass
        if options is None:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # it warns of names that its own optimisations leave as they are
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except (InvalidProtobuf, InvalidArgument) as error:  # it cannot be parsed; there is no graph in it
            raise ValueError(
                f"{path} is no ONNX file, or is damaged: deltaconvert.export_onnx(model, frame, path) writes one"
            ) from error
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        if self.metadata.get("deltaconvert.format") != str(FORMAT):
            raise ValueError(f"{path} is no network of deltaconvert.export_onnx that this version reads")
        self._open()

    def _open(self) -> None:
        inputs = {value.name: value for value in self._session.get_inputs()}
        self.frames = [inputs[name] for name in json.loads(self.metadata["deltaconvert.frames"])]
        self.outputs: list[str] = json.loads(self.metadata["deltaconvert.outputs"])
        self.streams: int = inputs[EVERY].shape[0]
        device = self._place()
        self._binding = self._session.io_binding()
        self._states: dict[str, Any] = {}
        self._new = np.ones(self.streams, bool)  # streams whose next frame is computed in full
        for state in json.loads(self.metadata["deltaconvert.states"]):
            value = inputs[state["input"]]
            zeros = np.zeros(value.shape, _TYPES[value.type])
            held = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, *device)
            self._binding.bind_ortvalue_input(state["input"], held)
            self._binding.bind_ortvalue_output(state["output"], held)
            self._states[state["input"]] = held

    def _place(self) -> tuple[str, int]:
        """Where the state lies: on the GPU that runs the network, so that no frame takes it there and back."""
        given = self._session.get_provider_options().get("CUDAExecutionProvider")
        return ("cpu", 0) if given is None else ("cuda", int(given["device_id"]))

    def __call__(self, *frames: Array) -> Any:
        """The network's outputs for the next frame: an array, or a list of them. ValueError, with the state untouched,
        for frames that do not fit."""
        self._check(frames)
        for value, frame in zip(self.frames, frames, strict=True):
            self._binding.bind_cpu_input(value.name, np.ascontiguousarray(frame))
        self._binding.bind_cpu_input(EVERY, self._new)
        for name in self.outputs:  # anew for each frame, so that what the caller holds stays as it is
            self._binding.bind_output(name, "cpu")
        everything, self._new = self._new, np.ones(self.streams, bool)  # stays so if the frame fails half-way
        self._session.run_with_iobinding(self._binding)
        self._new = np.zeros_like(everything)
        found = [value.numpy() for value in self._binding.get_outputs()[-len(self.outputs) :]]
        return found[0] if len(found) == 1 else found

    def reset(self, stream: int | None = None) -> None:
        """Forget the last frames, of one stream or of all: the next one is computed in full."""
        if stream is None:
            self._new = np.ones(self.streams, bool)
        elif 0 <= stream < self.streams:
            self._new[stream] = True
        else:
            raise ValueError(f"there is no stream {stream}: the frames have {self.streams}")

    def another(self) -> DeltaSession:
        """The same loaded network with a state of its own, for another camera."""
        twin = type(self).__new__(type(self))
        twin._session, twin.metadata = self._session, self.metadata
        twin._open()
        return twin

    def _check(self, frames: Sequence[Array]) -> None:
        if len(frames) != len(self.frames):
            raise ValueError(f"the network takes {len(self.frames)} frames, not {len(frames)}")
        for value, frame in zip(self.frames, frames, strict=True):
            if list(frame.shape) != list(value.shape) or frame.dtype != _TYPES[value.type]:
                raise ValueError(
                    f"{value.name} is {frame.dtype} {list(frame.shape)}; the network was exported for "
                    f"{np.dtype(_TYPES[value.type])} {list(value.shape)}"
                )


_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}
