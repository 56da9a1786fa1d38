"""deltaconvert: pretrained CNNs on video, recomputing only what changed."""

from deltaconvert.convert import convert
from deltaconvert.errors import DeltaConvertError
from deltaconvert.model import DeltaModel

__all__ = ["DeltaConvertError", "DeltaModel", "convert"]
__version__ = "0.1.0"
