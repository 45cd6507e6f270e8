"""Asking the hub, or not asking it where there is no network."""

from __future__ import annotations

import logging
import socket

import pytest
from huggingface_hub import constants

from wsol.models._hub import hub


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def refuse(*_args, **_keywords):
    raise socket.gaierror("no address")


@pytest.mark.parametrize("found", [True, False])
def test_the_cache_alone_where_the_hub_has_no_address(monkeypatch, found):
    monkeypatch.setattr(socket, "getaddrinfo", (lambda *_: []) if found else refuse)
    before = constants.HF_HUB_OFFLINE, logging.getLogger("huggingface_hub").level
    with hub():
        assert constants.HF_HUB_OFFLINE is (before[0] or not found)
    assert (constants.HF_HUB_OFFLINE, logging.getLogger("huggingface_hub").level) == before


def test_behind_a_proxy_the_hub_is_asked(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    before = constants.HF_HUB_OFFLINE
    with hub():
        assert constants.HF_HUB_OFFLINE is before


def test_the_switch_is_put_back_after_an_error(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(OSError, match="torn"), hub():
        raise OSError("torn")
    assert before is constants.HF_HUB_OFFLINE
