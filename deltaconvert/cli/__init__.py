"""The deltaconvert command. It parses, calls and prints; what it does is in the modules it imports.

torch is imported inside the commands: --help and usage errors should not wait for it.
"""

from __future__ import annotations

import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deltaconvert.cli.bench import bench
from deltaconvert.cli.calibrate import calibrate
from deltaconvert.cli.convert import convert
from deltaconvert.cli.demo import demo
from deltaconvert.cli.explain import explain
from deltaconvert.cli.export import export
from deltaconvert.cli.report import report
from deltaconvert.cli.run import run
from deltaconvert.cli.serve import serve
from deltaconvert.cli.show import message, note, warning
from deltaconvert.cli.zoo import zoo
from deltaconvert.errors import DeltaConvertError


class Commands(TyperGroup):
    """Runs a command; a user's mistake is one message on stderr and exit code 1, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = warning
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about what torch itself calls
            try:
                return super().invoke(ctx)
            except (DeltaConvertError, OSError) as error:
                if ctx.params.get("debug"):
                    traceback.print_exc()
                note(f"error: {message(error)}")
                raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run pretrained CNNs on video, recomputing only the pixels that changed.",
)


def main() -> None:
    """The console script."""
    app(prog_name="deltaconvert")


def _version(wanted: bool) -> None:
    if wanted:
        import deltaconvert

        typer.echo(deltaconvert.__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


for command in (
    convert,
    export,
    explain,
    run,
    report,
    calibrate,
    bench,
    zoo,
    serve,
    demo,
):  # as --help has them
    app.command()(command)
