"""Boxes from a server of `wgap serve`, without wgap: python triton_client.py http://127.0.0.1:8000 IMAGE...

    pip install 'tritonclient[grpc,http]'
    python triton_client.py grpc://127.0.0.1:8001 a.jpg b.png
    python triton_client.py http://127.0.0.1:8000 a.jpg --pixels --shared-memory

Prints a JSON line for each image. ``--pixels`` decodes here (with OpenCV) and sends pixels; ``--shared-memory`` puts
them where a server on the same machine reads them, if it was started to allow that (`wgap serve --shared-memory`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np


def tensor(image: Path, pixels: bool) -> tuple[str, str, np.ndarray]:
    """Name, datatype and array of a request: one image, encoded or as RGB pixels."""
    if not pixels:
        return "IMAGE", "BYTES", np.array([[image.read_bytes()]], np.object_)
    import cv2

    decoded = cv2.imread(str(image), cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise ValueError(f"{image} is no image")
    return "PIXELS", "UINT8", decoded[None]


def record(image: Path, answer: Any) -> dict[str, Any]:
    """The first picture's results, by name; boxes are (x0, y0, x1, y1) in its pixels, half-open."""
    if code := answer.as_numpy("CODE")[0, 0].decode():
        return {"image": str(image), "error": answer.as_numpy("ERROR")[0, 0].decode(), "code": code}
    count = answer.as_numpy("BOX_COUNT")[0]
    classes = [
        {
            "class_name": answer.as_numpy("CLASS_NAME")[0, k].decode(),
            "score": float(answer.as_numpy("SCORE")[0, k]),
            "boxes": answer.as_numpy("BOXES")[0, k, : count[k]].tolist(),
        }
        for k in range(len(count))
    ]
    return {"image": str(image), "classes": classes}


def main() -> int:
    """Exit code 1 if an image failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--model", default="wgap")
    parser.add_argument("--pixels", action="store_true")
    parser.add_argument("--shared-memory", action="store_true")
    options = parser.parse_args()
    parts, failed = urlsplit(options.url), False
    if parts.scheme == "grpc":
        import tritonclient.grpc as protocol
    else:
        import tritonclient.http as protocol
    with protocol.InferenceServerClient(parts.netloc) as client:
        for image in options.images:
            name, datatype, array = tensor(image, options.pixels)
            given = protocol.InferInput(name, list(array.shape), datatype)
            if options.shared_memory and options.pixels:
                answer = through_shared_memory(client, options.model, given, array)
            else:
                given.set_data_from_numpy(array)
                answer = client.infer(options.model, [given])
            found = record(image, answer)
            failed |= "error" in found
            print(json.dumps(found))
    return int(failed)


def through_shared_memory(client: Any, model: str, given: Any, array: np.ndarray) -> Any:
    """One request whose pixels lie in a region of the system's shared memory; one that is kept costs less."""
    import tritonclient.utils.shared_memory as shared

    name = f"wgap-client-{os.getpid()}"
    region = shared.create_shared_memory_region(name, f"/{name}", array.nbytes)
    try:
        shared.set_shared_memory_region(region, [array])
        client.register_system_shared_memory(name, f"/{name}", array.nbytes)
        try:
            given.set_shared_memory(name, array.nbytes)
            return client.infer(model, [given])
        finally:
            client.unregister_system_shared_memory(name)
    finally:
        shared.destroy_shared_memory_region(region)


if __name__ == "__main__":
    sys.exit(main())
