"""One exception family: everything deltaconvert raises on purpose derives from DeltaConvertError."""


class DeltaConvertError(Exception):
    """Base of all errors that deltaconvert raises on purpose: the message says what to do about it."""


class UnsupportedModel(DeltaConvertError):
    """The network as a whole could not be traced; single operators never raise this, they stay dense."""


class InputError(DeltaConvertError, ValueError):
    """A frame, an option or a threshold does not fit; raised before any state changes."""


class GraphError(DeltaConvertError):
    """A pass broke an invariant of the graph: a defect of deltaconvert, never of the model."""


class CheckpointError(DeltaConvertError):
    """A checkpoint file cannot be read safely or does not fit its architecture."""


class ContainerError(DeltaConvertError):
    """A converted file is truncated, altered, or written by a newer version."""


class VideoError(DeltaConvertError):
    """A video cannot be opened, decoded or written."""


class StreamError(DeltaConvertError):
    """A stream cannot join a pool, or is not in it."""


class ExportError(DeltaConvertError):
    """A converted network cannot be written in the form asked for."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough to stand in one of ours."""
    text = repr(error) if isinstance(error, KeyError) else str(error) or type(error).__name__
    return text.strip().splitlines()[0][:160]
