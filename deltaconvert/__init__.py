"""deltaconvert: pretrained CNNs on video, recomputing only what changed."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltaconvert.calibrate import calibrate
    from deltaconvert.container import load
    from deltaconvert.convert import convert
    from deltaconvert.errors import DeltaConvertError
    from deltaconvert.export import export_onnx, export_pt2
    from deltaconvert.formats import load_network
    from deltaconvert.gate import Gate
    from deltaconvert.model import DeltaModel
    from deltaconvert.program import DeltaProgram
    from deltaconvert.session import DeltaSession
    from deltaconvert.streams import StreamPool

__all__ = [
    "DeltaConvertError",
    "DeltaModel",
    "DeltaProgram",
    "DeltaSession",
    "Gate",
    "StreamPool",
    "calibrate",
    "convert",
    "export_onnx",
    "export_pt2",
    "load",
    "load_network",
]
__version__ = "0.1.0"

_HOMES = {
    "DeltaConvertError": "errors",
    "DeltaModel": "model",
    "DeltaProgram": "program",
    "DeltaSession": "session",
    "Gate": "gate",
    "StreamPool": "streams",
    "calibrate": "calibrate",
    "convert": "convert",
    "export_onnx": "export",
    "export_pt2": "export",
    "load": "container",
    "load_network": "formats",
}


if not TYPE_CHECKING:  # or a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        """The public names, imported when they are first used: `deltaconvert --help` need not wait for torch."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Those too that were not used yet: for completion at a prompt."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`convert` and `calibrate` stay functions when Python stores the imported submodules of those names here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("convert", "calibrate") and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
