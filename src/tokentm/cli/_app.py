"""The commands and what they share: how errors are told, where text goes."""

import functools
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.table import Table

from tokentm import __version__
from tokentm.errors import TokentmError

__all__ = ["DebugOption", "app", "command", "err", "fits", "out", "run", "show", "tell"]

app = typer.Typer(
    name="tokentm",
    help="Which parts of an image made a Vision Transformer decide as it did.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # a traceback is shown with --debug only, and then a plain one
    rich_markup_mode="rich",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_UNLIMITED = 100_000  # columns

EXIT_PARTIAL, EXIT_BAD_INPUT, EXIT_BUG, EXIT_INTERRUPTED = 1, 2, 3, 130

# What typer raises for an unknown option, a bad value, a missing argument. Its name is public in no version, and
# newer ones do not take it from click.
_UsageError: Any = typer.BadParameter.__base__


class _Command(typer.core.TyperCommand):
    """A command that takes an option once, unless its values add up: of two, one would be dropped in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # While a shell completes a line, nothing is refused.
        given = Counter([] if ctx.resilient_parsing else self.make_parser(ctx).parse_args(args=list(args))[2])
        for option, times in given.items():
            if times > 1 and isinstance(option, typer.core.TyperOption) and not (option.multiple or option.is_flag):
                raise _UsageError(f"Option {option.opts[0]} is given {times} times and takes one value", ctx=ctx)
        return super().parse_args(ctx, args)


def run() -> int:
    """Run the command that the process was called with; returns its exit code."""
    # Class names and file names are UTF-8; a terminal or pipe that is not must not turn them into a traceback.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return app(prog_name="tokentm", standalone_mode=False) or 0
    except _UsageError as error:
        tell(f"Error: {_with_hint(error)}")
        return EXIT_BAD_INPUT
    except typer.Abort:
        return EXIT_INTERRUPTED


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose errors are told in one sentence: exit code 2 for input, 3 for a bug of ours."""

    def register(do: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(do)
        def told(*args: Any, debug: bool = False, **kwargs: Any) -> None:
            try:
                do(*args, debug=debug, **kwargs)
            except (typer.Exit, typer.Abort):
                raise
            except Exception as error:  # the last line of defence: never a traceback without --debug
                if debug:
                    traceback.print_exc()
                if isinstance(error, TokentmError):
                    tell(f"Error: {error}")
                    raise typer.Exit(EXIT_BAD_INPUT) from error
                if type(error).__name__ == "OutOfMemoryError":  # torch's; --help must not wait for torch to load
                    tell("Error: The device has too little memory left; try a smaller batch, or the CPU.")
                    raise typer.Exit(EXIT_BAD_INPUT) from error
                tell(
                    f"Unexpected {type(error).__name__}: {_first_line(error)}; "
                    "this is a bug of tokentm, run again with --debug and report what it prints."
                )
                raise typer.Exit(EXIT_BUG) from error

        return app.command(name, cls=_Command)(told)

    return register


def tell(sentence: str, style: str = "red") -> None:
    """Print one line to standard error, as it is: no markup, no wrapping."""
    err.print(" ".join(sentence.splitlines()), markup=False, soft_wrap=True, style=style)


def fits(table: Table) -> bool:
    """Whether a table stands on the terminal as it is; a pipe has no width."""
    return not out.is_terminal or _width(table) <= out.width


def show(table: Table) -> None:
    """Print a table whole: what is too wide for the terminal is folded inside its column, and a pipe has no width."""
    for column in table.columns:
        column.overflow = "fold"
    if not out.is_terminal:
        table.width = _width(table)
    out.print(table, crop=False)


def _width(table: Table) -> int:
    return out.measure(table, options=out.options.update(max_width=_UNLIMITED)).maximum


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "no message"


def _with_hint(error: Any) -> str:
    message = error.format_message()
    if error.ctx is None or message.endswith("?"):  # it already says what was meant
        return str(message)
    return f"{message.rstrip('.')}; see '{error.ctx.command_path} --help'."


def _version(asked: bool) -> None:
    if asked:
        out.print(f"tokentm {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001  (handled by its callback)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(EXIT_BAD_INPUT)


from tokentm.cli import _cite, _compare, _demo, _evaluate, _explain, _lists, _serve  # noqa: E402, F401  (each registers its commands)
