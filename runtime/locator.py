"""A network's outputs to boxes, for one bundle and one rule: the same request and the same records on every device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wgap._native import BoxRecord, Classifier, localize
from wgap.errors import FeatureError
from wgap.rule import Rule
from wgap.runtime.cuda.arrays import on_device
from wgap.runtime.network import Outputs

if TYPE_CHECKING:
    from typing_extensions import Self

    from wgap.bundle import Bundle
    from wgap.runtime.cuda.driver import Context

__all__ = ["CpuLocator", "Locator", "Request", "open_locator"]


@dataclass(frozen=True)
class Request:
    """What is asked of a batch.

    Attributes:
        classes: one class id for each image; None for the ``top_k`` best.
        top_k: records per image where ``classes`` is None.
        heatmaps: also return the normalised maps.
        edge_means: also return V_l.
        max_boxes: boxes per class: of the heaviest components of its mask, each of at least a tenth of the heaviest's
            weight.
    """

    classes: Sequence[int] | None = None
    top_k: int = 1
    heatmaps: bool = False
    edge_means: bool = False
    max_boxes: int = 1

    def rows(self, rows: slice) -> Request:
        """The same of some rows of the batch."""
        return self if self.classes is None else replace(self, classes=self.classes[rows])

    @property
    def per_image(self) -> int:
        """Records per image."""
        return self.top_k if self.classes is None else 1


class Locator(ABC):
    """Outputs to boxes on one device. May be called from several threads at once.

    Attributes:
        size: (H, W) of the map the boxes are on, the network's input.
        rule: which map, and where it is cut.
        device: ordinal of the GPU it runs on; None for the CPU.
    """

    size: tuple[int, int]
    rule: Rule
    device: int | None = None

    @abstractmethod
    def locate(self, outputs: Outputs, request: Request | None = None) -> list[list[BoxRecord]]:
        """Boxes on the map for each image, best class first; where its outputs are not finite, the records say so.

        Args:
            outputs: those that the rule reads: ``logits`` float32[N, K], ``features`` float32[N, C, h, w],
                ``foreground`` float32[N, 1, h', w'], and for ``foreground+colour`` ``picture`` uint8[N, H, W, 3] RGB,
                the network's input; C-contiguous, in host memory or on this locator's device.
            request: what is asked; None for the top class.

        Raises:
            FeatureError: the outputs do not fit the bundle or the device.
            ValueError: a class id or ``top_k`` is out of range.
        """

    @abstractmethod
    def with_rule(self, rule: Rule) -> Self:
        """The same under another rule; it shares everything else, and is closed with this one."""

    def close(self) -> None:
        """Free what it holds on a device; no call may be under way."""
        return


class CpuLocator(Locator):
    """The kernel on the CPU.

    Args:
        classifier: the weights that made the logits.
        size: (H, W) of the map.
        rule: which map, and where it is cut.
        threads: that share a batch's images and classes.
    """

    def __init__(self, classifier: Classifier, size: tuple[int, int], rule: Rule, threads: int = 1) -> None:
        self.classifier, self.size, self.rule, self.threads = classifier, size, rule, threads

    def locate(self, outputs: Outputs, request: Request | None = None) -> list[list[BoxRecord]]:
        """See :meth:`Locator.locate`."""
        request = request or Request()
        read = require_outputs(outputs, self.rule)
        for name, value in read.items():
            if on_device(value):
                raise FeatureError(
                    f"{name} are on a GPU, this locator is on the CPU; open one there: open_locator(bundle, device=)"
                )
        return localize(
            read["logits"], read.get("features"), self.classifier, size=self.size, rule=self.rule,
            classes=request.classes, top_k=request.top_k, heatmaps=request.heatmaps, edge_means=request.edge_means,
            threads=self.threads, scores=read.get("foreground"), pictures=read.get("picture"),
            max_boxes=request.max_boxes,
        )  # fmt: skip

    def with_rule(self, rule: Rule) -> CpuLocator:
        """See :meth:`Locator.with_rule`."""
        return CpuLocator(self.classifier, self.size, rule, self.threads)


def require_outputs(outputs: Outputs, rule: Rule) -> dict[str, Any]:
    """Of the outputs, and the picture, those that a rule reads.

    Raises:
        FeatureError: one of them is missing.
    """
    names = (*rule.outputs, *(["picture"] if rule.reads_picture else []))
    if missing := [name for name in names if name not in outputs]:
        raise FeatureError(
            f"the rule {rule} on the {rule.map} map reads {', '.join(names)}; {missing[0]} is missing, given were: "
            f"{', '.join(outputs) or 'none'}"
        )
    return {name: outputs[name] for name in names}


def open_locator(
    bundle: Bundle,
    rule: Rule | None = None,
    device: int | None = None,
    threads: int | None = None,
    context: Context | None = None,
) -> Locator:
    """The locator of a bundle.

    Args:
        bundle: classifier, input size and default rule.
        rule: None for the bundle's own.
        device: ordinal of a GPU; None for the CPU.
        threads: of the CPU's kernel; None for one.
        context: of a network on that GPU, to share; None for one of its own.

    Raises:
        BundleError: if the bundle's classifier is not what its manifest says, or the rule reads what it has not.
        BackendError: if there is no such GPU.
        MissingDependencyError: if the CUDA bindings are not installed.
    """
    weight, size, rule = bundle.classifier()[0], bundle.manifest.model.input_size, rule or bundle.manifest.rule
    bundle.manifest.require_rule(rule)
    if device is None:
        return CpuLocator(Classifier(weight), size, rule, threads or 1)
    from wgap.runtime.cuda.postprocess import CudaLocator, CudaPostprocess

    return CudaLocator(CudaPostprocess(weight, device, context=context), size, rule)
