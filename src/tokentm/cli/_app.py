"""The commands and what they share: how errors are told, where text goes."""

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from tokentm import __version__
from tokentm.errors import TokentmError

__all__ = ["DebugOption", "app", "command", "err", "out"]

app = typer.Typer(
    name="tokentm",
    help="Which parts of an image made a Vision Transformer decide as it did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback is shown with --debug only, and then a plain one
    rich_markup_mode="rich",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

EXIT_PARTIAL, EXIT_BAD_INPUT, EXIT_BUG = 1, 2, 3


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose errors are told in one sentence: exit code 2 for input, 3 for a bug of ours."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(run)
        def told(*args: Any, debug: bool = False, **kwargs: Any) -> None:
            try:
                run(*args, debug=debug, **kwargs)
            except TokentmError as error:
                if debug:
                    raise
                _tell(f"Error: {error}")
                raise typer.Exit(EXIT_BAD_INPUT) from error
            except (typer.Exit, typer.Abort):
                raise
            except Exception as error:  # the last line of defence: never a traceback without --debug
                if debug:
                    raise
                _tell(
                    f"Unexpected {type(error).__name__}: {_first_line(error)}; "
                    "this is a bug of tokentm, run again with --debug and report what it prints."
                )
                raise typer.Exit(EXIT_BUG) from error

        return app.command(name)(told)

    return register


def _tell(sentence: str) -> None:
    err.print(sentence, markup=False, soft_wrap=True, style="red")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def _version(asked: bool) -> None:
    if asked:
        out.print(f"tokentm {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[  # noqa: ARG001  (handled by its callback)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    # Class names and file names are UTF-8; a terminal or pipe that is not must not turn them into a traceback.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


from tokentm.cli import _demo, _explain, _lists  # noqa: E402, F401  (each registers its commands)
