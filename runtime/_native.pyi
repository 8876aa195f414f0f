"""Native core; documented in wgap.runtime.postprocess."""

from collections.abc import Iterable
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
def _profile(
    features: Any, logits: Any, weight: Any, *, size: tuple[int, int], target: str = "", repeats: int = 200
) -> dict[str, float]:
    """Median microseconds of each stage for one image (top-1, adaptive), of the whole, and of reading the features."""

def cpu_targets() -> list[str]:
    """Instruction sets this machine runs, slowest first: of "baseline", "avx2", "avx512"."""

def active_target() -> str:
    """The instruction set in use: WGAP_TARGET from the environment, or the best this machine offers."""
