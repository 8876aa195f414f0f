"""Repositories and a running server, where there is one; WGAP_REQUIRE_TRITON=1 turns its absence into a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.conftest import encode, scene
from tests.serve.server import Server, server_program

from wgap.serve.repository import Options, Queue, write_repository

WIDE = Options(top_k=2, max_boxes=3, max_bytes=8 << 20, max_pixels=1 << 24, max_request=24 << 20)
"""Of the model ``wgap``."""


@pytest.fixture(scope="session")
def triton() -> None:
    """A server is installed."""
    if server_program() is None:
        reason = "needs tritonserver and tritonclient: make test-serve"
        if os.environ.get("WGAP_REQUIRE_TRITON") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def repository(triton: None, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``wgap``, of two classes and three boxes a picture; ``narrow``, in which two requests may wait, one at a time."""
    root = tmp_path_factory.mktemp("repository")
    write_repository(tiny_bundle, root, options=WIDE)
    write_repository(
        tiny_bundle, root, "narrow", Options(threads=1, max_batch=1), Queue(delay_us=0, size=2, timeout_ms=60_000)
    )
    return root


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of ``repository``."""
    with Server(repository, tmp_path_factory.mktemp("log") / "server.txt") as server:
        yield server


@pytest.fixture(scope="session")
def slow() -> bytes:
    """A picture of 12 million pixels, which takes some tenths of a second to decode."""
    return encode(scene(3000, 4000), ".png", 16, 1)
