"""A real tritonserver on this machine alone, for tests and benchmarks; `make test-serve` brings one."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

START_S = 90
"""For the server to load its models, on a busy machine."""


def server_program() -> Path | None:
    """The program in the wheel of pytriton, of which nothing else is used; None where that is not installed."""
    found = importlib.util.find_spec("pytriton")
    return Path(found.origin).parent / "tritonserver" / "bin" / "tritonserver" if found and found.origin else None


def free_ports(count: int) -> list[int]:
    """So many ports that nothing listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Server:
    """One server, from its start until the ``with`` ends; then it is ended, whatever happened.

    Args:
        repository: of models.
        log: file for what it writes.
        flags: further ones, such as ``--exit-timeout-secs=5``; of those given here already, these win.
        python: folder of the ``python3`` that its models run in; None for that of this process.

    Attributes:
        http: its address, as `wgap.serve.client.Client` takes it.
        grpc: likewise.
        metrics: URL of its metrics.
        process: the process.
    """

    def __init__(self, repository: Path, log: Path, *flags: str, python: Path | None = None) -> None:
        self._repository, self.log, self._flags, self._python = repository, log, flags, python
        self._opened = ExitStack()

    def __enter__(self) -> Server:
        for attempt in range(3):
            ports = free_ports(3)
            self.http, self.grpc = f"http://127.0.0.1:{ports[0]}", f"grpc://127.0.0.1:{ports[1]}"
            self.metrics = f"http://127.0.0.1:{ports[2]}/metrics"
            self._start(ports)
            try:
                self._await_ready()
            except RuntimeError as error:
                if "already in use" not in str(error) or attempt == 2:  # another took the port meanwhile
                    raise
            except BaseException:
                self.end()
                raise
            else:
                return self
        raise AssertionError

    def __exit__(self, *_: object) -> None:
        self.end()

    def _start(self, ports: list[int]) -> None:
        program = server_program()
        assert program is not None, "needs tritonserver: make test-serve"
        if re.search(r"\s", str(program)):  # the Python backend hands its own path to a shell, unquoted
            link = Path(self._opened.enter_context(tempfile.TemporaryDirectory())) / "server"
            link.symlink_to(program.parents[1])
            program = link / "bin" / program.name
        given = {
            "model-repository": self._repository, "backend-directory": program.parents[1] / "backends",
            "disable-auto-complete-config": "", "http-port": ports[0], "grpc-port": ports[1],
            "metrics-port": ports[2], "exit-timeout-secs": 20,
            **{f"{part}-address": "127.0.0.1" for part in ("http", "grpc", "metrics")},
        }  # fmt: skip
        given.update(flag.removeprefix("--").partition("=")[::2] for flag in self._flags)
        words = [f"--{name}={value}".removesuffix("=") for name, value in given.items()]
        place, libraries = self._python or Path(sys.executable).parent, sysconfig.get_config_var("LIBDIR")
        path = {"PATH": f"{place}:{os.environ['PATH']}", "LD_LIBRARY_PATH": libraries}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [program, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **path},
                start_new_session=True, preexec_fn=_end_with_parent,  # noqa: PLW1509  # one system call, no locks
            )  # fmt: skip

    def _await_ready(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                why = [line for line in self.text().splitlines() if re.search(r"^E|^error|already in use", line)]
                raise RuntimeError("\n".join([f"tritonserver ended with {self.process.returncode}:", *why]))
            with suppress(urllib.error.URLError, OSError):
                if urllib.request.urlopen(f"{self.http}/v2/health/ready", timeout=1).status == 200:
                    return
            time.sleep(0.05)
        raise TimeoutError(f"tritonserver was not ready after {START_S} s: {self.text()[-2000:]}")

    def text(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def counts(self) -> dict[str, float]:
        """Its metrics: name and labels to value."""
        lines = urllib.request.urlopen(self.metrics, timeout=5).read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    def end(self, *_: Any) -> None:
        """Kill it and its models' processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._opened.close()
