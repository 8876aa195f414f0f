"""Native core; documented in wgap.runtime.postprocess."""

from collections.abc import Iterable, Sequence
from typing import Any

__version__: str

class Classifier:
    """Classifier weights, copied and checked: float32[K, C], every value finite."""

    def __init__(self, weight: Any) -> None: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def channels(self) -> int: ...

class BoxRecord:
    """One class of one image, localized. Boxes are half-open (x0, y0, x1, y1) in map pixels."""

    @property
    def class_id(self) -> int: ...
    @property
    def score(self) -> float:
        """Softmax probability."""
    @property
    def logit(self) -> float: ...
    @property
    def level(self) -> int:
        """Chosen level 0..20; -1 for a fixed threshold or a degenerate map."""
    @property
    def threshold(self) -> float: ...
    @property
    def box(self) -> tuple[int, int, int, int]: ...
    @property
    def degenerate(self) -> bool:
        """The map is flat: the box is the whole image."""
    @property
    def heatmap(self) -> memoryview | None:
        """float32[H, W] in [0, 1]."""
    @property
    def edge_mean(self) -> tuple[float, ...] | None:
        """V_l for l = 0..20; NaN where the edge set is empty."""

def resize(src: Any, height: int, width: int, out: Any = None) -> Any: ...
def postprocess(
    features: Any,
    logits: Any,
    classifier: Classifier,
    *,
    size: tuple[int, int],
    classes: int | Iterable[int] | None = None,
    top_k: int = 1,
    map: str = "recombined",  # noqa: A002
    threshold: str = "adaptive",
    heatmaps: bool = False,
    edge_means: bool = False,
    threads: int = 1,
    target: str = "",
) -> list[list[BoxRecord]]: ...
def cpu_targets() -> list[str]:
    """Instruction sets this machine runs, slowest first: of "baseline", "avx2", "avx512"."""

def active_target() -> str:
    """The instruction set in use: WGAP_TARGET from the environment, or the best this machine offers."""

_CUDA_RESULT_BYTES: int

def _cuda_layout(shape: Sequence[int], room: int) -> tuple[int, int]:
    """(shared, global) bytes that a block of the CUDA kernel needs; shape is C, h, w, H, W, K."""

def _cuda_task(
    shape: Sequence[int],
    images: int,
    per_image: int,
    map: str,  # noqa: A002
    threshold: str,
    room: int,
    pointers: Sequence[int],
) -> bytes:
    """The argument of a launch; pointers: features, logits, weight, classes, heatmaps, results, scratch."""

def _cuda_records(
    results: bytes, images: int, per_image: int, adaptive: bool, maps: Sequence[Any] | None = None
) -> list[list[BoxRecord]]: ...
