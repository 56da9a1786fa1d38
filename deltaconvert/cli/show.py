"""What is printed: results on stdout; notes, warnings and bars on stderr."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import typer

from deltaconvert.errors import VideoError

T = TypeVar("T")


def note(text: str) -> None:
    typer.echo(text, err=True)


def message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        hint = _meant_by(Path(error.filename)) if isinstance(error, FileNotFoundError) else ""
        return f"{error.filename}: {error.strerror}{hint}"
    return str(error)


def _meant_by(file: Path) -> str:
    """What else a name may mean that no file has: one of its neighbours, or a network."""
    import model_zoo

    near = sorted(other.name for other in file.parent.iterdir()) if file.parent.is_dir() else []
    close = get_close_matches(file.name, near, n=1, cutoff=0.8)
    if close:
        return f"; did you mean {file.with_name(close[0])}?"
    if str(file) in model_zoo.names():
        size = "x".join(map(str, (1, *model_zoo.recipe(str(file)).input_size)))
        return (
            f"; {file} is a network: `deltaconvert convert --arch {file} WEIGHTS --input {size} -o {file}.delta` makes "
            "a file of it"
        )
    return ""


def warning(message: Warning | str, *_: Any, **__: Any) -> None:
    note(f"warning: {message}")


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def print_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Lines that wrap inside their columns on a terminal; plain padded text in files and pipes."""
    if not sys.stdout.isatty():
        from deltaconvert.text import table

        typer.echo(table(head, body))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*head)
    for row in body:
        shown.add_row(*map(Text, row))  # as text: [1, 3] would be a style
    Console().print(shown)


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[Iterable[T]], Iterator[T]]]:
    """Gives a function that wraps an iterable: on a terminal a bar on stderr follows it, elsewhere lines."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    from deltaconvert.progress import Lines

    # A long path leaves room for the bar on 80 columns.
    name = TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=36))
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def follow(items: Iterable[T]) -> Iterator[T]:
            task, lines, of_all = bar.add_task(title, total=total), Lines(), f" of {total}" if total else ""
            for done, item in enumerate(items, 1):
                yield item
                bar.advance(task)
                if bar.disable:
                    lines.tell(f"{title}: {done}{of_all}")

        yield follow


@contextmanager
def until_interrupted() -> Iterator[Callable[[Iterable[T]], Iterator[T]]]:
    """Gives a function that wraps frames: Ctrl-C ends them after the one that runs, and what was seen is told, since a
    camera has no end of its own. A second Ctrl-C ends the command."""
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # `before` ignores it in background jobs
        note("stopped after this frame; once more Ctrl-C ends at once")

    def follow(frames: Iterable[T]) -> Iterator[T]:
        for frame in frames:
            if stopped:
                return
            yield frame

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield follow
    finally:
        signal.signal(signal.SIGINT, before)


class UntilBroken:
    """Wraps frames: a video that breaks off after its first frame, or a camera that is lost, ends there, so that what
    was seen is told. `tell` then raises the error."""

    def __init__(self) -> None:
        self.error: VideoError | None = None

    def __call__(self, frames: Iterable[T]) -> Iterator[T]:
        seen = False
        try:
            for frame in frames:
                seen = True
                yield frame
        except VideoError as error:
            if not seen:
                raise
            self.error = error

    def tell(self) -> None:
        if self.error is not None:
            raise self.error


@contextmanager
def working(title: str) -> Iterator[None]:
    """On a terminal, a sign of life on stderr for as long as the work inside takes."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(title):
        yield
