"""What Triton's onnxruntime backend does with a request: inputs and states by name, run, outputs, states."""

import ctypes
import json
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

import numpy as np
import onnxruntime

triton = ctypes.CDLL(None)
KINDS = {
    "BOOL": (1, np.bool_),
    "UINT8": (2, np.uint8),
    "INT32": (8, np.int32),
    "INT64": (9, np.int64),
    "FP32": (11, np.float32),
}
BY_NUMBER = dict(KINDS.values())
_models = {}


def call(name, *arguments):
    function = getattr(triton, name)
    function.restype = c_void_p
    error = function(*arguments)
    if error:
        message = triton.TRITONSERVER_ErrorMessage
        message.restype = c_char_p
        raise RuntimeError(f"{name}: {message(c_void_p(error)).decode()}")


class Model:
    def __init__(self, instance):
        model, message, text, size = c_void_p(), c_void_p(), c_char_p(), c_size_t()
        call("TRITONBACKEND_ModelInstanceModel", instance, byref(model))
        call("TRITONBACKEND_ModelConfig", model, c_uint32(1), byref(message))
        call("TRITONSERVER_MessageSerializeToJson", message, byref(text), byref(size))
        self.config = json.loads(ctypes.string_at(text, size.value))
        kind, folder, version = c_int(), c_char_p(), c_uint64()
        call("TRITONBACKEND_ModelRepository", model, byref(kind), byref(folder))
        call("TRITONBACKEND_ModelVersion", model, byref(version))
        self.session = onnxruntime.InferenceSession(
            f"{folder.value.decode()}/{version.value}/model.onnx", providers=["CPUExecutionProvider"]
        )


def execute(instance, request):
    instance, request = c_void_p(instance), c_void_p(request)
    if instance.value not in _models:
        _models[instance.value] = Model(instance)
    model = _models[instance.value]
    names = [value.name for value in model.session.get_outputs()]
    found = dict(zip(names, model.session.run(None, inputs_of(request)), strict=True))
    for state in model.config["sequence_batching"]["state"]:
        write_state(request, state["output_name"], found[state["output_name"]])
    response = c_void_p()
    call("TRITONBACKEND_ResponseNew", byref(response), request)
    for output in model.config["output"]:
        write_output(response, output["name"], found[output["name"]])
    call("TRITONBACKEND_ResponseSend", response, c_uint32(1), None)
    call("TRITONBACKEND_RequestRelease", request, c_uint32(1))


def inputs_of(request):
    count, found = c_uint32(), {}
    call("TRITONBACKEND_RequestInputCount", request, byref(count))
    for place in range(count.value):
        value, name, kind, shape = c_void_p(), c_char_p(), c_int(), POINTER(c_int64)()
        dims, size, buffers = c_uint32(), c_uint64(), c_uint32()
        call("TRITONBACKEND_RequestInputByIndex", request, c_uint32(place), byref(value))
        call(
            "TRITONBACKEND_InputProperties",
            *(value, byref(name), byref(kind), byref(shape), byref(dims), byref(size), byref(buffers)),
        )
        data = b""
        for number in range(buffers.value):
            buffer, length, memory, device = c_void_p(), c_uint64(), c_int(), c_int64()
            call(
                "TRITONBACKEND_InputBuffer",
                *(value, c_uint32(number), byref(buffer), byref(length), byref(memory), byref(device)),
            )
            data += ctypes.string_at(buffer, length.value)
        sides = [shape[axis] for axis in range(dims.value)]
        found[name.value.decode()] = np.frombuffer(data, BY_NUMBER[kind.value]).reshape(sides).copy()
    return found


def write_output(response, name, array):
    output, buffer, memory, device = c_void_p(), c_void_p(), c_int(), c_int64()
    call("TRITONBACKEND_ResponseOutput", response, byref(output), *described(name, array))
    call(
        "TRITONBACKEND_OutputBuffer",
        output,
        byref(buffer),
        c_uint64(array.nbytes),
        byref(memory),
        byref(device),
    )
    ctypes.memmove(buffer, np.ascontiguousarray(array).ctypes.data, array.nbytes)


def write_state(request, name, array):
    state, buffer, memory, device = c_void_p(), c_void_p(), c_int(), c_int64()
    call("TRITONBACKEND_StateNew", byref(state), request, *described(name, array))
    call(
        "TRITONBACKEND_StateBuffer",
        state,
        byref(buffer),
        c_uint64(array.nbytes),
        byref(memory),
        byref(device),
    )
    ctypes.memmove(buffer, np.ascontiguousarray(array).ctypes.data, array.nbytes)
    call("TRITONBACKEND_StateUpdate", state)


def described(name, array):
    kind = next(number for number, dtype in KINDS.values() if dtype == array.dtype.type)
    return name.encode(), c_int(kind), (c_int64 * array.ndim)(*array.shape), c_uint32(array.ndim)
