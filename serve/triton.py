"""What Triton's Python backend runs: :class:`wgap.serve.model.Model` between its requests and its responses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wgap.errors import DataError, WgapError
from wgap.serve.model import Model
from wgap.serve.repository import BUNDLE, PARAMETER, options_of
from wgap.serve.tensors import INPUTS

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """The model of a repository of `wgap serve`; the server calls its three methods."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle, run its selftest on this device, and warm up; what fails is why the model is not loaded."""
        import triton_python_backend_utils as triton

        self._triton = triton
        _require_arrays(triton)
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"], BUNDLE)
        on_gpu = args["model_instance_kind"] == "GPU"
        try:
            options = options_of(config["parameters"][PARAMETER]["string_value"])
            self._model = Model(folder, options, int(args["model_instance_device_id"]) if on_gpu else None)
        except (WgapError, ValueError, KeyError) as error:
            raise triton.TritonModelException(f"{type(error).__name__}: {error}") from None
        self._metrics = _Metrics(triton, args["model_name"], self._model)
        localizer = self._model.localizer
        triton.Logger.log_info(
            f"wgap: {args['model_instance_name']}: {localizer.backend} {localizer.network.version}, "
            f"{localizer.network.precision}, {localizer.rule}, at most {localizer.batch_size} pictures; selftest passed"
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, from one call of the localizer."""
        triton = self._triton
        given = []
        for request in requests:
            arrays = {one.name: triton.get_input_tensor_by_name(request, one.name) for one in INPUTS}
            given.append({name: tensor.as_numpy() for name, tensor in arrays.items() if tensor is not None})
        responses = []
        for request, answer in zip(requests, self._model.answer(given), strict=True):
            if isinstance(answer, WgapError):
                code = triton.TritonError.INVALID_ARG if isinstance(answer, DataError) else triton.TritonError.INTERNAL
                failed = triton.TritonError(f"{type(answer).__name__}: {answer}", code)
                responses.append(triton.InferenceResponse(error=failed))
                continue
            wanted = request.requested_output_names()
            tensors = [triton.Tensor(name, array) for name, array in answer.items() if name in wanted]
            responses.append(triton.InferenceResponse(output_tensors=tensors))
        self._metrics.update()
        return responses

    def finalize(self) -> None:
        """Free what the model holds."""
        self._model.close()


def _require_arrays(triton: Any) -> None:
    """Refuse a server whose arrays are not NumPy's: before 2.52 it gives NumPy 2 the first byte again and again."""
    given = np.arange(6, dtype=np.uint8)
    probe = triton.Tensor.from_dlpack("PROBE", triton.Tensor("GIVEN", given))  # its array is made by the server
    if not np.array_equal(probe.as_numpy(), given):
        raise triton.TritonModelException(
            f"this server's Python backend cannot hand arrays to NumPy {np.__version__}: Triton before 2.52 (24.11) "
            "was built for NumPy 1; take a later one, or NumPy 1.26 in the server's Python"
        )


class _Metrics:
    """The model's counts, among the server's own metrics."""

    def __init__(self, triton: Any, name: str, model: Model) -> None:
        counter = triton.MetricFamily.COUNTER
        self._model, self._labels = model, {"model": name}
        self._pictures = triton.MetricFamily(
            name="wgap_pictures_total", description="Pictures by outcome: ok, or the error's code", kind=counter
        )
        self._seconds = triton.MetricFamily(
            name="wgap_seconds_total", description="Seconds spent by stage: decode, localize", kind=counter
        )
        self._made: dict[tuple[str, str], tuple[Any, float]] = {}

    def update(self) -> None:
        """Add what was counted since the last time."""
        for what, value in self._model.counts.items():
            self._add(self._pictures, "outcome", what, value)
        for what, seconds in self._model.seconds.items():
            self._add(self._seconds, "stage", what, seconds)

    def _add(self, family: Any, label: str, what: str, value: float) -> None:
        metric, before = self._made.get((label, what), (None, 0.0))
        metric = metric or family.Metric(labels={**self._labels, label: what})
        if value > before:
            metric.increment(value - before)
        self._made[label, what] = metric, value
