"""Broken images in mid-stream, as a worker of the server gets them; another stream must not be affected."""

from __future__ import annotations

import io

import pytest
import torch
from oracle import assert_close
from PIL import Image
from torch import nn

import deltaconvert
from deltaconvert import feed
from deltaconvert.serve.limits import Refused
from deltaconvert.serve.worker import Worker

SIZE = (48, 64)


@pytest.fixture
def cameras(tmp_path):
    """A worker with the streams a and b, and what the dense network gives for an image."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    recipe = feed.recipe_for("small", (1, 3, *SIZE))
    model = deltaconvert.convert(network.eval(), torch.rand(1, 3, *SIZE), backend="cpu")
    model.info = {"recipe": feed.to_json(recipe)}
    model.save(tmp_path / "small.delta")
    worker = Worker(tmp_path / "small.delta", threads=1)
    worker.join("a"), worker.join("b")

    def expected(image):
        with torch.no_grad():
            return network(recipe.prepare(image))[0]

    yield worker, expected
    worker.close()


def picture(seed, size=SIZE):
    return torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def encoded(image, kind):
    out = io.BytesIO()
    Image.fromarray(image.numpy()).save(out, kind)
    return out.getvalue()


def broken_jpegs():
    """Images that are cut short, empty, noise behind a good header, or have a header that claims too much."""
    good = encoded(picture(1), "JPEG")
    noise = bytes(torch.randint(0, 256, (400,), generator=torch.Generator().manual_seed(0)).tolist())
    claims = good.replace(SIZE[0].to_bytes(2, "big") + SIZE[1].to_bytes(2, "big"), b"\xff\xff\xff\xff")
    return {"cut": good[: len(good) // 2], "empty": b"", "noise": good[:20] + noise, "claims": claims}


@pytest.mark.parametrize("name", sorted(broken_jpegs()))
def test_a_corrupted_jpeg(cameras, name):
    """It is refused with a reason; its stream continues from the frame before, and the other is unaffected."""
    worker, expected = cameras
    for seed in range(3):
        with pytest.raises(Refused) as caught:
            worker.frame("a", broken_jpegs()[name], "image/jpeg")
        assert caught.value.status == (413 if name == "claims" else 422) and str(caught.value)
        for stream, image in (("a", picture(seed)), ("b", picture(seed + 9))):
            result = worker.frame(stream, encoded(image, "PNG"), "image/png")
            assert_close(torch.tensor(result["outputs"][0]["values"]), expected(image))
            assert result["frame"] == seed + 1
    assert all(stats["failed"] == 0 and stats["frames"] == 3 for stats in worker.stats().values())


def test_another_size_in_mid_stream(cameras):
    """Images are brought to the network's size; the next frame changes everywhere, the other stream's nowhere."""
    worker, expected = cameras
    still = encoded(picture(7), "PNG")
    worker.frame("b", still, "image/png")
    for seed, size in enumerate((SIZE, (96, 128), (17, 200), SIZE)):
        image = picture(seed, size)
        result = worker.frame("a", encoded(image, "PNG"), "image/png")
        resting = worker.frame("b", still, "image/png")
        if size == SIZE:
            assert_close(torch.tensor(result["outputs"][0]["values"]), expected(image))
        assert len(result["outputs"][0]["values"]) == 4
        assert_close(torch.tensor(resting["outputs"][0]["values"]), expected(picture(7)))
        assert worker.stats()["b"]["density"] == 0 and result["frame"] == seed + 1
