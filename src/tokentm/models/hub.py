"""Fetching from a hub: in silence, at once when it cannot be reached, and every failure as one sentence."""

import logging
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from tokentm.errors import HubUnreachableError, TokentmError
from tokentm.models._reading import LOAD_FAILURES, reason

__all__ = ["hub", "quiet"]

_PATIENCE = 5.0  # seconds for a connection to each address of a host


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the reports of model libraries and hub clients from the user, who is told in one sentence instead."""
    root = logging.getLogger()  # open_clip reports through it, and logging then gives it a handler
    loggers = [root, *(logging.getLogger(name) for name in ("huggingface_hub", "transformers", "httpx", "httpx2"))]
    levels, handlers = [logger.level for logger in loggers], list(root.handlers)
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        root.handlers[:] = handlers


@contextmanager
def hub(name: str, *, hugging_face: bool = True) -> Iterator[None]:
    """Fetch ``name``, from the Hugging Face hub or elsewhere, or take it from the local cache.

    Raises:
        HubUnreachableError: It is not in the cache, and the hub did not deliver it.
    """
    try:
        with quiet(), _cache_alone_if_unreachable() if hugging_face else nullcontext():
            yield
    except TokentmError:
        raise
    except (*LOAD_FAILURES, *_network_failures()) as error:
        raise HubUnreachableError(
            f"The weights of {name!r} are not in the local cache and their hub did not deliver them "
            f"({reason(error)}); check name and network, pass a local folder, or take a "
            "bundled model (--model shapes, --model cifar10)."
        ) from error


@contextmanager
def _cache_alone_if_unreachable() -> Iterator[None]:
    """Ask the cache alone where nothing answers: the client would try for most of a minute, for every file again."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before and not _answers(urlsplit(constants.ENDPOINT)):
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(endpoint: SplitResult) -> bool:
    """Whether somebody listens where the client would turn to: at the hub, or at the proxy in front of it."""
    host, proxies = endpoint.hostname or "", getproxies()
    proxy = None if proxy_bypass(host) else proxies.get(endpoint.scheme) or proxies.get("all")
    asked = endpoint if proxy is None else urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        port = asked.port or {"http": 80, "https": 443}[asked.scheme]
        socket.create_connection((asked.hostname or "", port), timeout=_PATIENCE).close()
    except (ValueError, KeyError):  # an address that only the client understands
        return True
    except OSError:
        return False
    return True


def _network_failures() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # Among its bases is that of the HTTP client in use (requests, httpx or httpx2, by release of the hub library).
    return tuple(kind for kind in HfHubHTTPError.__mro__ if kind is not Exception and issubclass(kind, Exception))
