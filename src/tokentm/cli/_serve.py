"""``tokentm serve``: the page."""

from typing import Annotated

import typer

from tokentm.cli._app import DebugOption, command, err, out, tell
from tokentm.cli._options import whole_number
from tokentm.errors import InputError

__all__ = ["serve"]

_LOCAL = ("127.0.0.1", "localhost", "::1")


@command("serve")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(parser=whole_number(0, 65535), metavar="N", help="0 takes a free one.")] = 7860,
    allow_model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FOLDER", help="A model that visitors may choose, beside the bundled; any: all names."
        ),
    ] = None,
    auth: Annotated[
        list[str] | None,
        typer.Option(
            metavar="USER:PASSWORD", envvar="TOKENTM_AUTH", help="Who may look; the variable keeps it out of ps."
        ),
    ] = None,
    max_megabytes: Annotated[int, typer.Option(parser=whole_number(1, 1024), metavar="N", help="Largest photo.")] = 16,
    max_pixels: Annotated[
        int, typer.Option(parser=whole_number(1), metavar="N", help="Most pixels of a photo.")
    ] = 40_000_000,
    time_limit: Annotated[
        int, typer.Option(parser=whole_number(1), metavar="SECONDS", help="Work on one request.")
    ] = 60,
    queue: Annotated[int, typer.Option(parser=whole_number(1), metavar="N", help="Requests that may wait.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    debug: DebugOption = False,  # noqa: ARG001  (read by the command wrapper)
) -> None:
    """Serve the page: choose a photo, see what the model saw in it, compare methods. Works offline."""
    users = [_user(pair) for pair in auth or []]
    with err.status("Starting…"):
        from tokentm.cli._explain import chosen_device
        from tokentm.web import Limits
        from tokentm.web import serve as start

        limits = Limits(file_bytes=max_megabytes << 20, pixels=max_pixels, seconds=float(time_limit), waiting=queue)
        if host not in _LOCAL and not users:
            tell(f"Note: {host} lets everyone in who can reach this machine; --auth USER:PASSWORD asks them.", "yellow")
        page = start(
            allow_models=allow_model or [],
            host=host,
            port=port,
            auth=users,
            limits=limits,
            device=chosen_device(device),
            block=False,
        )
    out.print(f"The page is at {page.local_url} (Ctrl-C ends it).", markup=False, soft_wrap=True)
    page.block_thread()


def _user(pair: str) -> tuple[str, str]:
    name, colon, password = pair.partition(":")
    if not (name and colon and password):
        raise InputError("--auth takes USER:PASSWORD, with both of them.")
    return name, password
