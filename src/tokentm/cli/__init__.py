"""The command line: parse, call the library, print. No arithmetic lives here."""

import sys

__all__ = ["main"]

_INTERRUPTED = 130  # what shells give a command that Ctrl-C ended


def main() -> None:
    """Entry point of the ``tokentm`` command."""
    try:
        from tokentm.cli._app import run

        code = run()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        sys.stderr.write("Interrupted; results that were complete are kept.\n")
    sys.exit(code)
