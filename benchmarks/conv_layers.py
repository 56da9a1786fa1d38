"""Single convolutions on a GPU: every kernel and tile that could compute one, beside cuDNN.

    python benchmarks/conv_layers.py [--layers NAME,...] [--types half,tf32,float] [--batches 1,8] [--out FILE]

Each variant computes the listed pixels of boxes that cover several shares of the map. A time is the median over replays
of a CUDA graph that holds several launches. cuDNN runs in channels_last with cudnn.benchmark on the whole map, without
the activation and the added map. The table is in microseconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deltaconvert.backends import cuda
from deltaconvert.backends.base import Map
from deltaconvert.backends.cuda import conv_kernels, convs, wgmma_kernels
from deltaconvert.backends.cuda.depthwise import THREADS_OF_CHANNELS, by_channel
from deltaconvert.backends.cuda.layout import steps_of
from deltaconvert.backends.cuda.marks import Listed, list_of
from deltaconvert.backends.cuda.tail import Tail
from deltaconvert.backends.cuda.tuning import box, seconds_of
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.pointwise import Pointwise
from deltaconvert.reach import Window

TYPES = {"half": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float": torch.float32}
# in, out, kernel, stride, height and width of the input, whether a map is added to the result; "dw" is depthwise
LAYERS = {
    "r50 7x7 /2": (3, 64, 7, 2, 1080, 1920, False),
    "r50 1x1 64>64": (64, 64, 1, 1, 270, 480, False),
    "r50 3x3 64": (64, 64, 3, 1, 270, 480, False),
    "r50 1x1 64>256+": (64, 256, 1, 1, 270, 480, True),
    "r50 1x1 256>64": (256, 64, 1, 1, 270, 480, False),
    "r50 3x3 128 /2": (128, 128, 3, 2, 270, 480, False),
    "r50 3x3 128": (128, 128, 3, 1, 135, 240, False),
    "r50 1x1 128>512+": (128, 512, 1, 1, 135, 240, True),
    "r50 1x1 512>128": (512, 128, 1, 1, 135, 240, False),
    "r50 3x3 256": (256, 256, 3, 1, 68, 120, False),
    "r50 1x1 256>1024+": (256, 1024, 1, 1, 68, 120, True),
    "r50 1x1 1024>256": (1024, 256, 1, 1, 68, 120, False),
    "deeplab 3x3 512": (512, 512, 3, 1, 135, 240, False),
    "unet 3x3 1024>512": (1024, 512, 3, 1, 135, 240, False),
    "r50 3x3 512": (512, 512, 3, 1, 34, 60, False),
    "r50 1x1 512>2048+": (512, 2048, 1, 1, 34, 60, True),
    "unet 3x3 64": (64, 64, 3, 1, 540, 960, False),
    "unet 3x3 256>128": (256, 128, 3, 1, 270, 480, False),
    "mbv2 1x1 16>96": (16, 96, 1, 1, 540, 960, False),
    "mbv2 1x1 144>24": (144, 24, 1, 1, 270, 480, False),
    "mbv2 1x1 192>64": (192, 64, 1, 1, 68, 120, False),
    "mbv2 dw 96": (96, 96, 3, 1, 540, 960, False),
    "mbv2 dw 96 /2": (96, 96, 3, 2, 540, 960, False),
    "mbv2 dw 384": (384, 384, 3, 1, 68, 120, False),
    "effnet dw5 240": (240, 240, 5, 1, 135, 240, False),
}


def variants(
    steps: int, single: bool, depthwise: bool = False, added: bool = False
) -> dict[str, tuple[str, dict[str, int]]]:
    found: dict[str, tuple[str, dict[str, int]]] = {}

    def mma(name: str, **tile: int) -> None:
        found["m" + name] = ("tiles", {"WARPS_K": 1, "SPLIT": 1, **tile})

    def wgmma(bm: int, bn: int, stages: int, split: int = 1, **more: int) -> None:
        name = f"w{bm}x{bn}s{stages}" + (f"/{split}" if split > 1 else "")
        name += "".join(f" {key.lower()}{value}" for key, value in more.items())
        found[name] = ("wgmma", {"BM": bm, "BN": bn, "STAGES": stages, "SPLIT": split, **more})

    if depthwise:
        ways = THREADS_OF_CHANNELS
        return {f"c{w}x{r}/{a}": ("channel", {"thread": (w, r, a)}) for w, r, a in ways}  # type: ignore[dict-item]
    mma("64x64", BM=64, BN=64, WARPS_M=2, WARPS_N=2, STAGES=5)
    mma("128x64", BM=128, BN=64, WARPS_M=4, WARPS_N=2, STAGES=4)
    wgmma(64, 64, 3)
    wgmma(128, 64, 3, AT_ONCE=2)
    wgmma(128, 64, 3)
    wgmma(64, 128, 3)
    wgmma(128, 128, 3)
    wgmma(128, 128, 3, SMALL=0)
    if single:
        wgmma(128, 128, 3, ROUND=0)
    for split in (2, 4, 8):
        if steps >= 4 * split:
            wgmma(64, 64, 4, split)
            wgmma(64, 128, 3, split)
    return found


class Layer:
    """One convolution with its maps, and the ways to compute it."""

    def __init__(self, spec: tuple[Any, ...], batch: int, kind: str, depthwise: bool = False):
        inputs, outputs, kernel, stride, height, width, self.added = spec
        self.dtype = TYPES[kind]
        self.depthwise, summed = depthwise, 1 if depthwise else inputs
        weight = torch.randn(outputs, summed, kernel, kernel, device="cuda") / (summed * kernel**2) ** 0.5
        bias = torch.randn(outputs, device="cuda")
        self.operator = Conv2d(
            weight.to(self.dtype),
            bias.to(self.dtype),
            (stride, stride),
            (kernel // 2,) * 2,
            (1, 1),
            inputs // summed,
        ).cuda()
        shape = (batch, inputs, height, width)
        size = ((side + 2 * (kernel // 2) - kernel) // stride + 1 for side in (height, width))
        self.shape = (batch, outputs, *size)
        self.source, self.edge = self._edge(shape), self._edge(self.shape)
        self.source.values.copy_(torch.randn(shape, device="cuda").relu())
        self.other = self._edge(self.shape) if self.added else None
        if self.other is not None:
            self.other.values.copy_(torch.randn(self.shape, device="cuda"))
        (self.reach,) = self.operator.reaches([shape], self.shape)
        self.steps = steps_of(self.operator, self.source)

    def _edge(self, shape: tuple[int, ...]) -> cuda.Edge:
        return cuda.Edge(Map(shape, self.dtype, torch.device("cuda", 0)))

    def launch(self, backend: cuda.Backend, way: str, tile: dict[str, int]) -> Any:
        window = self.reach if isinstance(self.reach, Window) else None
        parts = self.operator, window, self.source, self.edge
        by: dict[str, Callable[..., conv_kernels.Head]] = {
            "pixel": conv_kernels.by_pixel,
            "wgmma": wgmma_kernels.by_wgmma,
            "tiles": conv_kernels.by_tiles,
            "exact": conv_kernels.by_exact,
        }
        head = (
            by_channel(*parts, **tile)  # type: ignore[arg-type]
            if way == "channel"
            else by[way](*parts, *([tile] if tile else []))
        )
        tail = Tail(self.shape[1], self.dtype, self.edge.values.device)
        if self.other is not None:
            tail.then(Arithmetic("add", None, False), ["v", tail.operand(self.other, self.shape[2:])])
        tail.then(Pointwise("relu", {}), ["v"])
        return cuda.Launch(backend, head, tail, self.edge)

    def listed(self, density: float) -> Listed:
        """A box of each stream."""
        n, _, *size = self.shape
        return list_of(box(size, density, self.edge.values.device).expand(n, 1, -1, -1))

    def dense(self) -> Tensor:
        return self.operator(self.source.values)  # type: ignore[no-any-return]


def exact(layer: Layer) -> dict[str, tuple[str, dict[str, int]]]:
    """The tiles of strict float32 that the tuner would try."""
    return {name: ("exact", tile) for name, tile in convs.exact_tiles(layer.edge, layer.steps).items()}


def microseconds(run: Callable[[], Any]) -> float:
    return seconds_of(run, torch.device("cuda", 0), budget=0.012) * 1e6


@torch.no_grad()
def measure(name: str, batch: int, kind: str, densities: list[float]) -> dict[str, Any]:
    torch.manual_seed(0)
    layer = Layer(LAYERS[name], batch, kind, "dw" in name)
    backend = cuda.Backend()
    n, channels, height, width = layer.shape
    macs = n * height * width * layer.operator.weight.numel()
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    row: dict[str, Any] = {"layer": name, "batch": batch, "type": kind, "macs": macs, "us": {}}
    row["cudnn_us"] = microseconds(layer.dense)
    lists = [layer.listed(density) for density in densities]
    whole = layer.dense()
    if layer.other is not None:
        whole = whole + layer.other.values
    whole = whole.relu()
    scale = float(whole.float().norm())
    found = variants(layer.steps, kind == "tf32", layer.depthwise, layer.added)
    if kind == "float" and not layer.depthwise:
        found = exact(layer)
    for variant, (way, tile) in found.items():
        if tile.get("BN", 0) > max(64, 2 * channels):
            continue
        launch = layer.launch(backend, way, tile)
        layer.edge.values.fill_(float("nan"))
        with cuda.kernels.on_current_stream(torch.device("cuda", 0)):
            launch(layer.edge.values, lists[-1])
        if densities[-1] == 1:
            error = float((layer.edge.values.float() - whole.float()).norm()) / scale
            if not error < 1e-2:
                print(f"BAD {name} {kind} {variant}: {error:.2e} from cuDNN")
        row["us"][variant] = [microseconds(partial(launch, layer.edge.values, listed)) for listed in lists]
    print(f"{name} batch {batch} {kind}: cuDNN {row['cudnn_us']:.0f} us, {macs / 1e9:.1f} GMAC")
    for variant, times in sorted(row["us"].items(), key=lambda item: item[1][-1]):
        print(f"   {variant:>22} " + " ".join(f"{t:8.1f}" for t in times))
    sys.stdout.flush()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--types", default="half,tf32")
    parser.add_argument("--batches", default="8")
    parser.add_argument("--densities", default="1,5,25,100", help="percent of the map")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this long")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    start = time.perf_counter()
    kinds = options.types.split(",")
    compile_all(kinds)
    print(f"compiled after {time.perf_counter() - start:.1f} s", flush=True)
    densities = [float(d) / 100 for d in options.densities.split(",")]
    rows = []
    for batch in options.batches.split(","):
        for name in options.layers.split(","):
            for kind in kinds:
                if time.perf_counter() - start > options.seconds:
                    print("out of time")
                    return
                rows.append(measure(name, int(batch), kind, densities))
                if options.out:
                    about = {
                        "gpu": torch.cuda.get_device_name(),
                        "torch": torch.__version__,
                        "python": platform.python_version(),
                        "date": time.strftime("%Y-%m-%d"),
                        "command": " ".join(sys.argv),
                        "densities": densities,
                    }
                    options.out.write_text(json.dumps({**about, "results": rows}, indent=1) + "\n")
    print(f"done after {time.perf_counter() - start:.1f} s")


def compile_all(kinds: list[str]) -> None:
    """Compile all variants in parallel."""
    torch.zeros(1, device="cuda")
    launches = []
    for kind in kinds:
        for added in (False, True):
            layer = Layer((64, 64, 3, 1, 8, 8, added), 1, kind)
            layer.steps = 1000
            found = exact(layer) if kind == "float" else variants(1000, kind == "tf32", added=added)
            launches += [layer.launch(cuda.Backend(), way, tile) for way, tile in found.values()]
    for launch in launches:
        launch._kernel._function  # noqa: B018, waits for it


if __name__ == "__main__":
    main()
