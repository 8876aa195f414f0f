"""What really runs: the graph after ONNX Runtime's optimiser, convolution by convolution."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from wgap.errors import CheckFailedError
from wgap.manifest import HEAD

__all__ = ["attest_int8"]

_FLOAT = {"Conv", "FusedConv", "NhwcFusedConv"}


def attest_int8(graph: Path, keep_float: int = 0) -> dict[str, Any]:
    """Let ONNX Runtime optimise a Q/DQ file for the CPU and count what its convolutions became.

    Args:
        graph: the Q/DQ file.
        keep_float: how many convolutions were asked to stay in float32.

    Returns:
        ``meant_int8`` (convolutions of the file between DequantizeLinear and QuantizeLinear), ``meant_float`` (its
        others), ``ran_int8`` and ``ran_float`` (integer and float convolutions of the optimised graph), ``operators``
        (how often each is in it), ``runtime`` (the library and its version). A foreground head's convolutions stay in
        float and count nowhere.

    Raises:
        BackendError: if ONNX Runtime refuses the file.
        CheckFailedError: if a convolution that was meant for INT8 does not run in it, or one was left out of the file.
    """
    import onnx
    import onnxruntime

    from wgap.runtime.networks.onnxruntime import open_session

    written = onnx.load(str(graph)).graph
    makers = {output: node.op_type for node in written.node for output in node.output}
    head = [node for node in written.node if node.op_type == "Conv" and node.name.startswith(HEAD)]
    convolutions = [node for node in written.node if node.op_type == "Conv" and node not in head]
    meant = sum(makers.get(node.input[0]) == makers.get(node.input[1]) == "DequantizeLinear" for node in convolutions)
    with tempfile.TemporaryDirectory(prefix="wgap-attest-") as folder:
        optimised_path = Path(folder) / "optimised.onnx"
        open_session(graph, None, optimised=optimised_path)
        optimised = onnx.load(str(optimised_path), load_external_data=False).graph
    operators = Counter(node.op_type for node in optimised.node)
    found = {
        "meant_int8": meant,
        "meant_float": len(convolutions) - meant,
        "ran_int8": operators["QLinearConv"],
        "ran_float": sum(operators[name] for name in _FLOAT) - len(head),
        "operators": dict(sorted(operators.items())),
        "runtime": f"onnxruntime {onnxruntime.__version__}",
    }
    if found["ran_int8"] != len(convolutions) - keep_float or found["ran_float"] != keep_float:
        slow = [node.name for node in optimised.node if node.op_type in _FLOAT]
        raise CheckFailedError(
            f"{graph.name}: expected {len(convolutions) - keep_float} of {len(convolutions)} convolutions in INT8, "
            f"{found['runtime']} runs {found['ran_int8']}; in float: {', '.join(slow[:8]) or 'none'}. The file would "
            "be slow and its precision not what it says; --keep-float NODE leaves one in float32"
        )
    return found
