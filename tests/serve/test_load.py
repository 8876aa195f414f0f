"""`wgap bench --url` on a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.serve.server import Server
from typer.testing import CliRunner

from wgap.cli import app
from wgap.errors import ImageError, ServerError

pytestmark = pytest.mark.usefixtures("triton")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_is_loaded_at_rates_up_to_its_knee(server: Server, tiny_bundle: Path, protocol: str) -> None:
    words = [
        "bench",
        str(tiny_bundle),
        "--url",
        getattr(server, protocol),
        "--callers",
        "4",
        "--duration",
        "0.4",
        "--json",
    ]
    done = CliRunner().invoke(app, [*words, "--bound", "500"])
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert len(report["steps"]) == 9
    assert report["knee"] in [step["arrivals"] for step in report["steps"]]
    assert report["closed"]["answered"] > 0
    assert report["closed"]["batch"] >= 1
    assert len(report["bound"]["tried"]) == 6
    text = CliRunner().invoke(app, [*words[:-1], "--arrivals", "10,20"]).stdout
    assert "the knee is at" in text
    assert "closed loop" in text


def test_what_a_full_queue_refuses_is_counted(server: Server, slow: bytes, tmp_path: Path) -> None:
    """Eight at once, where two may wait and one is at work."""
    (tmp_path / "slow.png").write_bytes(slow)
    words = [
        "bench",
        "--image",
        str(tmp_path / "slow.png"),
        "--url",
        server.http,
        "--model",
        "narrow",
        "--callers",
        "8",
    ]
    done = CliRunner().invoke(
        app, [*words, "--duration", "1", "--arrivals", "1000", "--export", str(tmp_path / "r.json")]
    )
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["closed"]["refused"]["OverloadError"] > 0
    assert report["steps"][0]["answered"] > 0
    assert "OverloadError" in done.stdout


def test_what_cannot_be_loaded_is_said_at_once(server: Server, tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["bench", str(tiny_bundle), "--url", server.http]
    for more, kind, said in (
        (["--model", "nosuch"], ServerError, "nosuch"),
        (["--image", str(tmp_path / "no.jpg")], ImageError, "no.jpg"),
    ):
        done = CliRunner().invoke(app, [*words, *more])
        assert isinstance(done.exception, kind)
        assert said in str(done.exception)
