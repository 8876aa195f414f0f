"""Everything that needs an NVIDIA GPU in one go; ``python -m benchmarks.gpu_check`` runs it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHAPE, SIZE = (512, 14, 14), (224, 224)
"""Of the feature map of one image, and of the image."""


class AbsentError(Exception):
    """A part that cannot run here; the text says why."""
