"""The options that commands share, and what their text means."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from deltaconvert.errors import InputError

if TYPE_CHECKING:
    from deltaconvert.thresholds import Thresholds

T = TypeVar("T")
MAX_SIDE = 2**16  # pixels; an --input beyond it is a slip of the keyboard


def one_of(*words: str) -> dict[str, Any]:
    """The settings of an option that takes one of these words."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in words:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(words)}")
        return value

    return {"metavar": "|".join(words), "callback": check}


File = Annotated[Path, typer.Argument(help="A converted file.")]
MaybeFile = Annotated[Path | None, typer.Argument(help="A converted file; else give --arch.")]
Arch = Annotated[
    str | None,
    typer.Option(
        help="A network: a name listed by `zoo`, or package.module:factory; with arguments resnet18(classes=10)."
    ),
]
Input = Annotated[
    str | None, typer.Option(metavar="NxCxHxW", help="The size of the input, such as 1x3x720x1280.")
]
Threshold = Annotated[
    list[str] | None,
    typer.Option(
        help="The largest change that is dropped: 0.05, 10/255, or 10% of a node's mean magnitude; or by kind or "
        "path: input=0.04 (repeat the option for several). 0 is exact."
    ),
]
Gate = Annotated[
    list[str] | None,
    typer.Option(
        help="How frames are looked at: smooth=5, noise=3, dilate=2, cut=0.7, refresh=300, max_density=0.2, "
        "nonfinite=hold (repeat the option for several). Other settings stay as they are, also those of a file."
    ),
]
Monitor = Annotated[
    int,
    typer.Option(
        min=0,
        help="Compute a random tile of every so manyth frame again, dense, and tell the error; 0: none.",
    ),
]
Compare = Annotated[bool, typer.Option(help="Run the dense network beside it and compare.")]
Size = Annotated[
    str | None,
    typer.Option(metavar="WxH", help="Resize frames; else the network's only size, or the video's."),
]
Backend = Annotated[
    str,
    typer.Option(
        help="What computes; auto: the fastest of the device.", **one_of("auto", "cpu", "cuda", "reference")
    ),
]
Device = Annotated[str, typer.Option(help="Where it runs: cpu, cuda or cuda:1.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]


def usage_error(message: str, option: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=option)


@contextmanager
def as_usage(option: str) -> Iterator[None]:
    """An option that does not fit is a usage error: exit code 2."""
    try:
        yield
    except InputError as error:
        raise usage_error(str(error), option) from error


def needed(value: T | None, option: str, why: str = "") -> T:
    if value is None:
        raise usage_error(f"is needed{why}", option)
    return value


def writable(path: Path | None) -> Path | None:
    """The callback of options that name a file to write: what is wrong is said before the work, not after it."""
    if path is not None:
        if path.is_dir():
            raise typer.BadParameter(f"{path} is a folder: name a file in it")
        if not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}: make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise typer.BadParameter(f"{path} may not be written: name a file elsewhere")
    return path


def writable_folder(path: Path | None) -> Path | None:
    """The same for options that name a folder, which is made."""
    if path is not None and path.exists() and not path.is_dir():
        raise typer.BadParameter(f"{path} is a file: name a folder")
    return path


def expect_writable(path: Path, option: str) -> None:
    """The same for a default: a file that no option named, but that this one would have."""
    try:
        writable(path)
    except typer.BadParameter as error:
        raise usage_error(error.message, option) from error


def keep(out: Path | None, option: str, *read: Path | str | None) -> None:
    """What a command reads is not overwritten by what it writes."""
    there = [Path(source) for source in read if source is not None and Path(source).exists()]
    if out is not None and out.exists() and any(out.samefile(source) for source in there):
        raise usage_error(f"{out} is what the command reads: name another file", option)


def expect_video(source: str, folder: bool = False) -> None:
    """Raises where there is no such video, or folder of images: said before a network loads for half a minute."""
    from deltaconvert import video
    from deltaconvert.watching import inputs

    if folder:
        next(inputs.images_of(source))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a damaged frame: whoever reads it next tells it
        video.read(source).close()


def shape_of(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if not all(part.isdecimal() and 1 <= int(part) <= MAX_SIDE for part in parts):
        raise usage_error(f"{text!r} is no size such as 1x3x720x1280", "--input")
    return tuple(int(part) for part in parts)


def size_of(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 1 <= int(part) <= MAX_SIDE for part in parts):
        raise usage_error(f"{text!r} is no size such as 640x360", "--size")
    return int(parts[0]), int(parts[1])


def numbers_of(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise usage_error(f"{text!r} is no list of numbers such as 0.5,1,2.5", option) from None


def rules_of(given: Sequence[str] | None) -> Thresholds:
    """0.05 or 10% for all; input=0.04 activation=10% by kind or path; a file of them, with its gate."""
    from deltaconvert.thresholds import Thresholds

    rules: dict[str, float | str] = {}
    for rule in given or ():
        where, equals, amount = rule.rpartition("=")
        if not equals and ":" in rule and not rule.endswith(".json"):
            raise usage_error(f"{rule!r} is no rule: write it as {rule.replace(':', '=', 1)}", "--threshold")
        if not equals and len(given or ()) > 1:
            raise usage_error(
                f"{rule!r} names no node: one threshold, or one file of them, stands alone", "--threshold"
            )
        rules[where.strip()] = _number_or_text(amount.strip())
    with as_usage("--threshold"):
        return Thresholds.of(rules.get("", rules if given else 0.0))


def gated(rules: Thresholds, given: Sequence[str] | None) -> Thresholds:
    """With these settings of the gate, smooth=5 nonfinite=hold; the others stay."""
    with as_usage("--gate"):
        return rules.with_gate(_settings(given)) if given else rules


def _settings(given: Sequence[str]) -> dict[str, Any]:
    """Whole numbers are integers."""
    settings: dict[str, Any] = {}
    for setting in given:
        name, equals, text = setting.partition("=")
        if not equals:
            raise usage_error(f"{setting!r} sets nothing: write it as smooth=5", "--gate")
        amount = text.strip()
        settings[name.strip()] = int(amount) if amount.isdecimal() else _number_or_text(amount)
    return settings


def _number_or_text(text: str) -> float | str:
    """10/255 is a number. 10% stays text; Thresholds says what is wrong with other text."""
    above, line, below = text.partition("/")
    try:
        return float(above) / float(below) if line else float(text)
    except (ValueError, ZeroDivisionError):
        return text
