"""Pictures to a running server, results back, as a localizer gives them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import SplitResult, urlsplit

import numpy as np

from wgap.errors import ImageError, OverloadError, ServerError
from wgap.extras import require
from wgap.images import read_file
from wgap.serve.tensors import outputs, results_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from wgap.runtime.localization import Failure, Localization

__all__ = ["Client", "Picture"]

Picture: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[np.uint8]"
"""A path, which is read here; the bytes of an image file; or RGB pixels uint8[H, W, 3]."""

_NAMES = tuple(one.name for one in outputs(1, 1))
_OVERLOAD = ("UNAVAILABLE", "503", "RESOURCE_EXHAUSTED")


class Client:
    """A model of a running server, by the KServe v2 protocol.

    ::

        with Client("http://127.0.0.1:8000") as client:
            for result in client(["a.jpg", "b.jpg"]):
                print(result.class_name, result.score, result.box)

    For one thread: each thread makes its own.

    Args:
        url: ``http://HOST:PORT`` or ``grpc://HOST:PORT``; ``https`` and ``grpcs`` with TLS.
        model: its name on the server.
        timeout: seconds that an answer may take.

    Raises:
        ServerError: the address is none of these.
        MissingDependencyError: tritonclient is not installed.
    """

    def __init__(self, url: str, model: str = "wgap", timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        schemes = ("http", "https", "grpc", "grpcs")
        if parts.scheme not in schemes or not parts.hostname or not _has_port(parts) or parts.path.strip("/"):
            raise ServerError(f"{url}: expected http://HOST:PORT or grpc://HOST:PORT (https and grpcs with TLS)")
        require("a client", "tritonclient")
        self.url, self.model, self.timeout = url, model, timeout
        secure = parts.scheme.endswith("s")
        if parts.scheme.startswith("http"):
            import tritonclient.http as protocol

            options: dict[str, Any] = {"connection_timeout": timeout, "network_timeout": timeout, "ssl": secure}
        else:
            import tritonclient.grpc as protocol

            largest = 2**31 - 1  # of gRPC itself; its default of 4 MB is a small picture
            channel = [("grpc.max_send_message_length", largest), ("grpc.max_receive_message_length", largest)]
            options = {"ssl": secure, "channel_args": channel}
        self._protocol = protocol
        self._answered = {} if parts.scheme.startswith("http") else {"client_timeout": timeout}
        self._client = protocol.InferenceServerClient(parts.netloc, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def require_ready(self) -> None:
        """Find out whether the model can answer.

        Raises:
            ServerError: the server cannot be reached, is not ready, or has no such model.
        """
        with self._errors():
            if not self._client.is_server_live(**self._answered):
                raise ServerError(f"{self.url}: the server is there and not live")
            if not self._client.is_model_ready(self.model, **self._answered):
                raise ServerError(
                    f"{self.url}: no model {self.model!r} is ready; its name may be another (--name), or the server's "
                    "log says why it was not loaded"
                )

    @cached_property
    def metadata(self) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
        """The model's ``inputs`` and ``outputs``: name to datatype and shape, the batch first.

        Raises:
            ServerError: see :meth:`require_ready`.
        """
        told = self._told("metadata")
        return {
            part: {one["name"]: (one["datatype"], tuple(map(int, one["shape"]))) for one in told[part]}
            for part in ("inputs", "outputs")
        }

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's configuration, as the server has it.

        Raises:
            ServerError: see :meth:`require_ready`.
        """
        told = self._told("config")
        return dict(told.get("config", told))

    def statistics(self) -> dict[str, Any]:
        """What the server counted of the model: ``inference_count``, ``execution_count`` and times.

        Raises:
            ServerError: see :meth:`require_ready`.
        """
        with self._errors():
            if self._answered:
                told = self._client.get_inference_statistics(self.model, as_json=True, **self._answered)
            else:
                told = self._client.get_inference_statistics(self.model)
        return dict(told["model_stats"][0])

    def __call__(self, pictures: Sequence[Picture]) -> Iterator[Localization | Failure]:
        """Localize pictures, in requests as large as the server takes: a result for each, in order.

        Neighbours go together in one request where all are encoded, or all are pixels of one size. A picture that could
        not be localized is a :class:`wgap.runtime.localization.Failure`, as with ``on_error="yield"``.

        Raises:
            as :meth:`request`.
        """
        largest = max(1, int(self.config.get("max_batch_size", 1)))
        waiting: list[Picture] = []
        kind: tuple[int, ...] = ()
        for picture in pictures:
            shape = getattr(picture, "shape", ())
            if waiting and (shape != kind or len(waiting) == largest):
                yield from self.request(waiting)
                waiting = []
            waiting.append(picture)
            kind = shape
        if waiting:
            yield from self.request(waiting)

    def request(self, pictures: Sequence[Picture]) -> list[Localization | Failure]:
        """One request: all of the pictures encoded, or all of them pixels of one size.

        Raises:
            ImageError: a path cannot be read, or there are pixels that are not uint8[H, W, 3] of one size.
            OverloadError: the server's queue is full, or the request waited in it for too long.
            ServerError: the server cannot be reached, did not answer in time, or refused the request.
        """
        name, datatype, array = _input(pictures)
        given = self._protocol.InferInput(name, list(array.shape), datatype)
        given.set_data_from_numpy(array)
        wanted = [self._protocol.InferRequestedOutput(one) for one in _NAMES]
        with self._errors():
            answer = self._client.infer(self.model, [given], outputs=wanted, **self._answered)
        paths = [os.fspath(one) if isinstance(one, str | os.PathLike) else None for one in pictures]
        return results_of({one: answer.as_numpy(one) for one in _NAMES}, paths)

    def _told(self, what: str) -> Mapping[str, Any]:
        self.require_ready()
        json = {"as_json": True, **self._answered} if self._answered else {}
        with self._errors():
            told: Mapping[str, Any] = getattr(self._client, f"get_model_{what}")(self.model, **json)
        return told

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the client's library as ours."""
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            status, text = str(error.status()), error.message()
            if "Deadline Exceeded" in text or "DEADLINE_EXCEEDED" in status or "timed out" in text:
                raise ServerError(f"{self.url}: no answer within {self.timeout:g} s") from error
            if "failed to connect" in text.lower() or "connection refused" in text.lower():
                raise self._absent() from error
            overload = any(word in status for word in _OVERLOAD)
            raise (OverloadError if overload else ServerError)(f"{self.url}: {text}") from error
        except TimeoutError as error:
            raise ServerError(f"{self.url}: no answer within {self.timeout:g} s") from error
        except (OSError, EOFError) as error:
            raise self._absent() from error

    def _absent(self) -> ServerError:
        return ServerError(f"{self.url}: no server answers there; is it running, and is this its port?")


def _has_port(parts: SplitResult) -> bool:
    try:
        return parts.port is not None
    except ValueError:  # of more than 65535
        return False


def _input(pictures: Sequence[Picture]) -> tuple[str, str, NDArray[Any]]:
    """Name, datatype and array of a request's only input."""
    if pixels := [one for one in pictures if hasattr(one, "shape")]:
        arrays = [np.asarray(one) for one in pixels]
        shapes = {(str(one.dtype), one.shape) for one in arrays}
        if len(pixels) < len(pictures) or len(shapes) > 1:
            raise ImageError("a request: expected pictures that are all encoded, or all pixels of one size")
        ((dtype, shape),) = shapes
        if dtype != "uint8" or len(shape) != 3 or shape[2] != 3:
            raise ImageError(f"expected RGB pixels uint8[H, W, 3], got {dtype}{list(shape)}")
        return "PIXELS", "UINT8", arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    encoded = np.empty((len(pictures), 1), np.object_)
    encoded[:, 0] = [one if isinstance(one, bytes) else read_file(one) for one in pictures]  # type: ignore[arg-type]
    return "IMAGE", "BYTES", encoded
