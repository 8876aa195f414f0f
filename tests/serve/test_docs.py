"""The page on serving: its code runs, and its configuration is Triton's and a bundle's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.conftest import encode, scene

from wgap import Localizer
from wgap.bundle import Bundle

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="docs are not beside the tests (installed wheel)")


def block(language: str, with_: str) -> str:
    [found] = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.S) if with_ in text]
    return found


@pytest.mark.parametrize("name", ["tiny_bundle", "scored_bundle"])
def test_the_kernel_behind_a_served_engine_gives_the_localizers_boxes(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    bundle = request.getfixturevalue(name)
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "a.jpg").write_bytes(encode(scene(150, 100), ".jpg"))
    monkeypatch.chdir(tmp_path)
    localizer = Localizer(bundle)

    def infer(inputs: dict[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return localizer.network.run(inputs["image"], outputs)

    names: dict[str, Any] = {"infer": infer}
    exec(block("python", "open_locator"), names)
    assert names["box"] == localizer.one("a.jpg").box
    assert names["found"].class_id == localizer.one("a.jpg").class_id


def test_the_engines_configuration_has_the_tensors_of_a_bundle(tiny_bundle: Path) -> None:
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient: make test-serve")
    from google.protobuf import text_format

    config = text_format.Parse(block("pbtxt", "tensorrt_plan"), messages.ModelConfig())
    model = Bundle.open(tiny_bundle).manifest.model
    kinds = {"uint8": config.input[0].data_type, "float32": config.output[0].data_type}
    assert [messages.DataType.Name(kind) for kind in kinds.values()] == ["TYPE_UINT8", "TYPE_FP32"]
    for written, real in ((config.input, model.inputs), (config.output, model.outputs)):
        assert [(one.name, one.data_type, len(one.dims) + 1) for one in written] == [
            (one.name, kinds[one.dtype], len(one.shape)) for one in real
        ]


def test_every_option_that_the_page_names_is_one() -> None:
    import typer.main

    from wgap.cli import app

    verb = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    options = {name for parameter in verb.params for name in parameter.opts}
    theirs = {"--allow-grpc", "--exit-timeout-secs", "--http-max-input-size", "--memory", "--shm-size", "--time"}
    theirs |= {"--transports", "--body", "--requests", "--clients"}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE.read_text())) <= options | theirs
