"""The command line: parse, call the library, print. No arithmetic lives here."""

__all__ = ["main"]


def main() -> None:
    """Entry point of the ``tokentm`` command."""
    from tokentm.cli._app import app

    app(prog_name="tokentm")
