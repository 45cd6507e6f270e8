"""The hub of pretrained weights: without a network, say so at once."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


@contextmanager
def hub() -> Iterator[None]:
    """Hold back the hub client's log; where the hub has no address, let it look into its cache only.

    The client itself repeats for a minute what cannot be reached. Behind a proxy names need no address here.
    """
    from huggingface_hub import constants

    log, before = logging.getLogger("huggingface_hub"), constants.HF_HUB_OFFLINE
    level = log.level
    log.setLevel(logging.CRITICAL)
    constants.HF_HUB_OFFLINE = before or not (urllib.request.getproxies() or _resolves(constants.ENDPOINT))
    try:
        yield
    finally:
        log.setLevel(level)
        constants.HF_HUB_OFFLINE = before


def _resolves(address: str) -> bool:
    try:
        socket.getaddrinfo(urlsplit(address).hostname, None)
    except OSError:
        return False
    return True
