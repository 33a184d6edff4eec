"""Options that say where work is computed, and the engine they ask for."""

from typing import TYPE_CHECKING, Annotated

import typer

from tokentm.cli._options import whole_number
from tokentm.errors import InputError

if TYPE_CHECKING:
    from tokentm.engines.contract import Engine

__all__ = ["AddressOption", "EngineOption", "GpusOption", "WorkersOption", "device_of_driver", "make_engine"]

_ENGINES = ("local", "ray")


def _share(given: str | float) -> float:
    """Parse a share or number of GPUs: what Ray takes is a fraction, or a whole number from 1 on."""
    try:
        value = float(given)
    except ValueError:
        value = -1
    if value < 0 or value == float("inf") or (value > 1 and value != int(value)):
        raise typer.BadParameter(f"{str(given)!r} is neither a share of a GPU (0.25) nor a whole number of them")
    return value


EngineOption = Annotated[str, typer.Option("--engine", metavar="local|ray", help="This machine, or a Ray cluster.")]
AddressOption = Annotated[
    str | None,
    typer.Option(metavar="auto|HOST:PORT|ray://…", help="Of the cluster. [$RAY_ADDRESS, else one on this machine]"),
]
GpusOption = Annotated[
    float | None, typer.Option(parser=_share, metavar="N", help="GPUs, or share of one, of each Ray worker. [0]")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        parser=whole_number(0), metavar="N", help="Ray workers \\[as many as fit], or processes here that read images."
    ),
]


def make_engine(
    name: str, address: str | None, gpus: float | None, workers: int | None, local: "Engine", *, reads: bool
) -> "Engine":
    """The engine that the options ask for.

    Args:
        name: Value of ``--engine``.
        address: Of ``--address``.
        gpus: Of ``--gpus-per-worker``.
        workers: Of ``--workers``.
        local: Engine of this machine.
        reads: Whether ``--workers`` has a meaning on this machine.

    Raises:
        InputError: There is no such engine, or it takes none of the other options.
        MissingExtraError: Ray is not installed.
    """
    if name not in _ENGINES:
        raise InputError(f"--engine {name!r} is unknown; 'local' and 'ray' work.")
    if name == "local":
        given = {"--address": address, "--gpus-per-worker": gpus, "--workers": None if reads else workers}
        for option, value in given.items():
            if value is not None:
                raise InputError(f"{option} {value} belongs to --engine ray; add that, or leave it out.")
        return local
    if workers == 0:
        raise InputError("--workers 0 computes nothing on Ray; give 1 or more, or leave it out.")
    from tokentm.engines.on_ray import RayEngine, check_installed

    check_installed()
    return RayEngine(address, workers, gpus or 0.0)


def device_of_driver(engine: str, device: str) -> str:
    """Where this process holds the model: what Ray workers compute on is theirs to say.

    Raises:
        InputError: A device was given for workers that may be anywhere.
    """
    if engine != "ray":
        return device
    if device not in ("auto", "cpu"):
        raise InputError(f"--device {device} is this machine's; on Ray give --gpus-per-worker 1 to compute on GPUs.")
    return "cpu"
