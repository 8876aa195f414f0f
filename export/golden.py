"""Golden cases made anew, once a graph has scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from wgap.bundle import Bundle
from wgap.extend import NewFile
from wgap.extras import require
from wgap.manifest import BundleFile
from wgap.rule import Rule

__all__ = ["golden_cases"]


def golden_cases(bundle: Bundle, graph: Path, score_shape: Sequence[int], rules: Iterable[Rule]) -> list[NewFile]:
    """A bundle's golden pictures and outputs, with the scores of a new graph, under each of some rules.

    Args:
        bundle: whose golden cases they are.
        graph: with the output ``foreground``.
        score_shape: (1, h', w') of it.
        rules: map, level and boxes are made anew under each, by the PyTorch reference.

    Raises:
        MissingDependencyError: PyTorch is not installed.
    """
    import numpy as np

    require("exporting", "torch")
    import torch
    from safetensors.torch import save

    from wgap.runtime.networks.onnxruntime import open_session
    from wgap.train.reference import by_rule

    session, weight = open_session(graph, None), torch.tensor(np.asarray(bundle.classifier()[0]))
    size = bundle.manifest.model.input_size
    files: list[NewFile] = []
    old = [(case, entry.training) for case, entry in zip(bundle.golden(), _goldens(bundle), strict=True)]
    pictures = {case["logits"].tobytes() + case["features"].tobytes(): (case, made) for case, made in old}
    for each in dict.fromkeys(rules):
        for case, made in pictures.values():
            tensors = {name: torch.from_numpy(case[name].copy()) for name in ("logits", "features", "class_id")}
            if "image" in case:
                tensors["image"] = torch.from_numpy(case["image"].copy())
                [scores] = session.run(["foreground"], {"image": case["image"][None]})
                tensors["foreground"] = torch.from_numpy(scores[0])
            else:  # a network that saw nothing
                tensors["foreground"] = torch.full(tuple(score_shape), -1.0)
            shown = tensors.get("image", torch.zeros((*size, 3), dtype=torch.uint8))
            found = by_rule(each, size, tensors, weight[int(case["class_id"][0])], shown)
            tensors |= {
                "map": found.map,
                "level": torch.tensor([found.level], dtype=torch.int32),
                "box": torch.tensor(found.box, dtype=torch.int32),
                "threshold": torch.tensor([found.threshold], dtype=torch.float64),
                "degenerate": torch.tensor([found.degenerate], dtype=torch.uint8),
            }
            content = save({name: value.contiguous() for name, value in tensors.items()},
                           {"rule": json.dumps(each.to_json())})  # fmt: skip
            path = f"golden/case-{len(files)}.safetensors"
            files.append(NewFile(content, path, "golden", "", {"training": made}))
    return files


def _goldens(bundle: Bundle) -> list[BundleFile]:
    return [entry for entry in bundle.manifest.files if entry.role == "golden"]
