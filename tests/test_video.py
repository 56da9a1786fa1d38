"""Real files, made here: what is written is read back, and for every broken file a message says what is wrong."""

import math
import os
import random
import struct
import sys
import warnings

import pytest
import torch

from deltaconvert import video
from deltaconvert.errors import VideoError

av = pytest.importorskip("av")


def moving_picture(frames=12, height=48, width=64):
    """Colour waves that move: uint8 frames (H, W, 3).

    They are smooth, since yuv420p halves the colour resolution: sharp edges come to less than 30 dB even if lossless.
    """
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    wave = 2 * math.pi * torch.stack((x, y, x + y), -1)
    return [(128 + 90 * torch.sin(wave + 0.1 * t)).to(torch.uint8) for t in range(frames)]


def noise(frames, height=48, width=64):
    generator = torch.Generator().manual_seed(0)
    shape = (frames, height, width, 3)
    return list(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))


def write(path, frames, **options):
    height, width = frames[0].shape[:2]
    with video.VideoWriter(path, 25, (width, height), **options) as out:
        for frame in frames:
            out.write(frame)
    return path


def raw_write(path, frames, codec="libx264", **open_options):
    """Writes a file in a container or with options that VideoWriter does not offer."""
    with av.open(str(path), "w", **open_options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
        container.mux(stream.encode())
    return path


def psnr(a, b):
    return float(10 * torch.log10(255**2 / (a.double() - b.double()).square().mean()))


@pytest.mark.parametrize("ending", ["mp4", "mkv", "mov"])
def test_round_trip(tmp_path, ending):
    frames = moving_picture()
    path = write(tmp_path / f"clip.{ending}", frames)
    with video.read(path) as reader:
        assert (reader.width, reader.height, reader.fps, reader.frames) == (64, 48, 25.0, 12)
        assert reader.source == str(path)
        back = list(reader)
    assert len(back) == 12
    assert all(b.dtype == torch.uint8 and b.shape == (48, 64, 3) and b.is_contiguous() for b in back)
    assert min(psnr(a, b) for a, b in zip(frames, back, strict=True)) > 30
    assert os.listdir(tmp_path) == [path.name]


def test_frames_are_the_callers_own(tmp_path):
    path = write(tmp_path / "clip.mp4", moving_picture())
    kept = [frame for frame in video.read(path)]
    copies = [frame.clone() for frame in video.read(path)]
    for frame in kept[::2]:
        frame.zero_()
    assert all(torch.equal(a, b) for a, b in zip(kept[1::2], copies[1::2], strict=True))


def test_colours_survive(tmp_path):
    red = torch.tensor([200, 30, 40], dtype=torch.uint8).expand(48, 64, 3)
    (back,) = video.read(write(tmp_path / "red.mp4", [red]))
    assert (back.int() - red.int()).abs().max() <= 4


def test_odd_sizes_are_padded(tmp_path):
    frames = moving_picture(height=47, width=63)
    back = list(video.read(write(tmp_path / "odd.mp4", frames)))
    assert back[0].shape == (48, 64, 3)
    assert min(psnr(a, b[:47, :63]) for a, b in zip(frames, back, strict=True)) > 30
    assert psnr(back[0][:47, 63], back[0][:47, 62]) > 30


def test_a_limit_ends_a_video_early(tmp_path):
    path = write(tmp_path / "clip.mp4", moving_picture())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = video.read(path, limit=5)
        assert reader.frames == 5
        assert len(list(reader)) == 5
        assert video.read(path, limit=99).frames == 12
    with pytest.raises(VideoError, match="limit is 0"):
        video.read(path, limit=0)


def test_a_closed_reader_is_at_its_end(tmp_path):
    with video.read(write(tmp_path / "clip.mp4", moving_picture())) as reader:
        next(reader)
    assert list(reader) == []


def test_a_phone_video_is_turned_upright(tmp_path):
    frames = moving_picture()
    path = write(tmp_path / "phone.mp4", frames)
    data = bytearray(path.read_bytes())
    fixed = 1 << 16
    upright = struct.pack(">9i", fixed, 0, 0, 0, fixed, 0, 0, 0, 1 << 30)
    at = data.index(upright, data.index(b"tkhd"))
    clockwise = struct.pack(">9i", 0, fixed, 0, -fixed, 0, 0, 0, 0, 1 << 30)
    data[at : at + 36] = clockwise
    path.write_bytes(data)
    reader = video.read(path)
    assert (reader.width, reader.height) == (48, 64)
    assert psnr(next(reader), torch.rot90(frames[0], -1, (0, 1))) > 30


def test_no_such_file(tmp_path):
    with pytest.raises(VideoError, match=r"nothing\.mp4: no such file"):
        video.read(tmp_path / "nothing.mp4")


def test_a_folder(tmp_path):
    with pytest.raises(VideoError, match="is a folder"):
        video.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.mp4", b"", "the file is empty"),
        ("random.mp4", random.Random(0).randbytes(20_000), "not a video"),
        ("letter.txt", b"to whom it may concern\n" * 900, "not a video but text"),
    ],
)
def test_not_a_video(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VideoError, match=says) as error:
        video.read(path)
    assert path.name in str(error.value)


def test_what_a_stranger_may_give(tmp_path):
    """Frames of a bounded size, and a file that is what its name says: not a list of other files."""
    path = write(tmp_path / "clip.mp4", moving_picture())
    formats = ("mov", "avi")
    assert len(list(video.read(path, max_pixels=64 * 48, formats=formats))) == 12
    with pytest.raises(VideoError, match="its frames have 64x48 pixels, more than 3071"):
        video.read(path, max_pixels=64 * 48 - 1)
    others = tmp_path / "others.mp4"
    others.write_text("ffconcat version 1.0\nfile clip.mp4\n")
    assert len(list(video.read(others))) == 12
    with pytest.raises(VideoError, match=r"others\.mp4: not a video"):
        video.read(others, formats=formats)


def test_only_sound(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        sound.sample_rate = 16000
        sound.planes[0].update(bytes(4096))
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"sound\.mp4: has no video stream \(found: audio\)"):
        video.read(path)


def test_cut_before_the_index(tmp_path):
    path = write(tmp_path / "cut.mp4", noise(20))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])  # the index (moov) was at the end
    with pytest.raises(VideoError, match=r"cut\.mp4: not a video, or damaged or cut short"):
        video.read(path)


def test_cut_between_two_frames(tmp_path):
    path = raw_write(tmp_path / "cut.mp4", noise(60), options={"movflags": "+faststart"})
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: ends[39]])
    with pytest.warns(RuntimeWarning, match=r"cut\.mp4: 40 of 60 frames decoded"):
        assert len(list(video.read(path))) == 40


def test_cut_inside_a_frame(tmp_path):
    path = raw_write(tmp_path / "cut.mp4", noise(60), options={"movflags": "+faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(VideoError, match=r"cut\.mp4: frame \d+ cannot be decoded"):
        list(video.read(path))


def test_cut_without_a_frame_count(tmp_path):
    path = write(tmp_path / "cut.mkv", noise(60))  # Matroska only stores the duration
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.warns(RuntimeWarning, match=r"of 60 frames decoded") as caught:
        list(video.read(path))
    assert caught[0].filename == __file__


def test_no_frame_can_be_decoded(tmp_path):
    path = raw_write(tmp_path / "hollow.mp4", noise(20), options={"movflags": "+faststart"})
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))
    with pytest.raises(VideoError, match=r"hollow\.mp4: (not one frame|frame 0 cannot)"):
        video.read(path)


def test_damage_in_mid_stream(tmp_path):
    path = write(tmp_path / "damaged.mp4", noise(60))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = b"\xff" * 3000
    path.write_bytes(data)
    good = []
    reader = video.read(path)
    with pytest.raises(VideoError, match=r"damaged\.mp4: frame \d+ cannot be decoded") as error:
        good.extend(reader)
    assert len(good) > 5
    assert f"frame {len(good)} cannot" in str(error.value)
    assert f"limit={len(good)}" in str(error.value)
    assert list(reader) == []
    assert len(list(video.read(path, limit=len(good)))) == len(good)


def test_size_change_in_mid_stream(tmp_path):
    small = raw_write(tmp_path / "small.ts", moving_picture(), format="mpegts")
    large = raw_write(tmp_path / "large.ts", moving_picture(height=64, width=80), format="mpegts")
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    good = []
    with pytest.raises(VideoError, match="size changes at frame 12, from 64x48 to 80x64"):
        good.extend(video.read(path))
    assert len(good) == 12
    with pytest.raises(VideoError, match=r"frame 1[012] cannot be decoded"):  # two may be on their way
        list(video.read(path, max_pixels=64 * 48))


@pytest.mark.skipif(sys.platform != "linux", reason="camera devices are files on Linux only")
@pytest.mark.parametrize("index", [7345, "7345"])
def test_no_such_camera(index):
    with pytest.raises(VideoError, match=r"camera 7345: /dev/video7345 does not exist; this machine has"):
        video.read(index)


def test_no_such_stream():
    with pytest.raises(VideoError, match=r"127\.0\.0\.1:9/door: cannot be opened \(Connection refused\)"):
        video.read("rtsp://127.0.0.1:9/door")
    with pytest.raises(VideoError, match="must start with rtsp://"):
        video.read("gopher://127.0.0.1/door")


def test_without_pyav(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    advice = r'pip install "deltaconvert\[video\]"'
    with pytest.raises(VideoError, match=advice):
        video.read("clip.mp4")
    with pytest.raises(VideoError, match=advice):
        video.VideoWriter(tmp_path / "clip.mp4", 25, (64, 48))


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = write(tmp_path / "clip.mp4", moving_picture())
    old = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), video.VideoWriter(path, 25, (64, 48)) as out:
        for frame in moving_picture(6):
            out.write(frame)
        raise KeyboardInterrupt
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["clip.mp4"]
    write(path, moving_picture(6))
    assert len(list(video.read(path))) == 6


def test_writing_nothing_leaves_the_old_file(tmp_path):
    path = write(tmp_path / "clip.mp4", moving_picture())
    old = path.read_bytes()
    with pytest.raises(VideoError, match="no frame was written"), video.VideoWriter(path, 25, (64, 48)):
        pass
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("frame", [torch.zeros(48, 64, 3), torch.zeros(64, 48, 3, dtype=torch.uint8)])
def test_a_frame_that_does_not_fit(tmp_path, frame):
    out = video.VideoWriter(tmp_path / "clip.mp4", 25, (64, 48))
    with pytest.raises(VideoError, match=r"frame 0 is .* was opened for torch.uint8 \(48, 64, 3\)"), out:
        out.write(frame)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["clip", "clip.what", "none/clip.mp4"])
def test_a_name_that_cannot_be_written(tmp_path, name):
    with pytest.raises(VideoError, match=f"{name}: "):
        video.VideoWriter(tmp_path / name, 25, (64, 48))
    assert os.listdir(tmp_path) == []


def test_a_size_or_rate_that_cannot_be_written(tmp_path):
    for fps, size in ((0, (64, 48)), (25, (0, 48))):
        with pytest.raises(VideoError, match="cannot write"):
            video.VideoWriter(tmp_path / "clip.mp4", fps, size)


def test_closing_twice(tmp_path):
    out = video.VideoWriter(tmp_path / "clip.mp4", 29.97, (64, 48))
    out.write(moving_picture(1)[0])
    out.close()
    out.close()
    with pytest.raises(VideoError, match="is closed"):
        out.write(moving_picture(1)[0])
    assert video.read(tmp_path / "clip.mp4").fps == pytest.approx(29.97)
