"""What a plan must not do is made an error."""

from __future__ import annotations

import socket

import pytest
import safetensors
import safetensors.torch


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No socket, no weights file and no cache of the hub."""

    def refuse(*args, **kwargs):
        raise AssertionError("a plan reads no weights and asks nobody")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    monkeypatch.setattr(safetensors.torch, "load_file", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
