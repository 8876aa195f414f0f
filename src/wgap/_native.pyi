"""Native core; documented in wgap.runtime.postprocess, wgap.images and wgap.rule."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wgap.rule import Rule

__version__: str
LEVELS: int
MAX_BOXES: int

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
    def error(self) -> str | None:
        """Why there is no box: an output is not finite. The rest is meaningful only where this is None."""
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
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """The best component's first."""
    @property
    def degenerate(self) -> bool:
        """The mask is empty: the box is the whole image."""
    @property
    def heatmap(self) -> memoryview | None:
        """float32[H, W] in [0, 1]."""
    @property
    def edge_means(self) -> tuple[float, ...] | None:
        """V_l for l = 0..20, where asked for and searched; NaN where the edge set is empty."""

def parse_rule(text: str, map: str | None = None) -> tuple[str, str, float | None]:  # noqa: A002
    """(kind, map, eta) of a rule's text, the map None being the kind's own; RuleError where it names none."""

def resize(src: Any, height: int, width: int, out: Any = None) -> Any: ...
def localize(
    logits: Any, features: Any, classifier: Classifier, *, size: tuple[int, int], rule: Rule | None = None,
    classes: int | Iterable[int] | None = None, top_k: int = 1, heatmaps: bool = False, edge_means: bool = False,
    threads: int = 1, target: str = "", scores: Any = None, pictures: Any = None, max_boxes: int = 1,
) -> list[list[BoxRecord]]:  # fmt: skip
    """As wgap.runtime.postprocess.postprocess, but an image that fails says so in its records."""

def cpu_targets() -> list[str]:
    """Instruction sets this machine runs, slowest first: of "baseline", "avx2", "avx512"."""

def active_target() -> str:
    """The instruction set in use: WGAP_TARGET from the environment, or the best this machine offers."""

_CUDA_RECORD_BYTES: int

def _cuda_class_ids(classes: int | Iterable[int], images: int, known: int) -> bytes:
    """int64[images], every one of 0..known - 1."""

def _cuda_layout(
    classifier: Classifier, logits: Sequence[int], features: Sequence[int], scores: Sequence[int],
    size: tuple[int, int], rule: Rule | None, top_k: int, max_boxes: int, room: int,
) -> tuple[list[int], int, int]:  # fmt: skip
    """Judges the shapes [N, K], [C, h, w], [h, w], the last two empty where they are not read.

    (shape, shared, scratch): what the memory of a block depends on, and the bytes that it needs.
    """

def _cuda_logs() -> bytes:
    """The kernel's table of logarithms for maps of any size, int32."""

def _cuda_task(
    shape: Sequence[int], images: int, per_image: int, rule: Rule | None, shared: int, scratch: int,
    addresses: Mapping[str, int], max_boxes: int = 1,
) -> bytes:  # fmt: skip
    """The argument of a launch.

    Addresses: logits, features, foreground, picture, logs, weight, class_ids, heatmaps, edge_means, records, scratch.
    """

def _cuda_records(
    records: bytes, images: int, per_image: int, heatmaps: Sequence[Any] | None = None, edge_means: bytes = b"",
    max_boxes: int = 1,
) -> list[list[BoxRecord]]: ...  # fmt: skip
