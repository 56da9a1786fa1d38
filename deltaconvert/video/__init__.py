"""Reading and writing real video: the only folder that imports PyAV (`av`), and only when it is used.

    with video.read("street.mp4") as frames, video.VideoWriter("out.mp4", frames.fps, (w, h)) as out:
        for frame in frames:            # uint8 (H, W, 3), RGB, 0..255
            out.write(frame)

Nothing ends quietly: a broken frame is a VideoError that names it, fewer frames than declared are a warning.
"""

from deltaconvert.video.reader import VideoReader, read
from deltaconvert.video.sources import is_address, is_live
from deltaconvert.video.writer import VideoWriter

__all__ = ["VideoReader", "VideoWriter", "is_address", "is_live", "read"]
