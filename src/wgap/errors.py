"""Every error this package raises on purpose.

::

    WgapError
    ├── ImageError             an image is missing, empty, cut short or not an image
    │   └── StoreError         a store cannot be reached, or does not let an image be read
    ├── CalibrationError       calibration images are too few, damaged, or the same as the gate's
    ├── DataError              a dataset folder, list or label file is not what its layout promises
    │   └── RuleError          a rule or a map of that name is not known, or its parameter is out of range
    ├── CheckpointError        a weights file lacks keys, has wrong shapes, or is not a weights file
    ├── BundleError            a bundle is incomplete or inconsistent
    │   ├── ManifestError      wgap.json is missing, unreadable, or of a schema this version does not know
    │   ├── HashMismatchError  a file of the bundle is not the one the manifest describes
    │   └── GateError          a lower-precision file whose gate failed or never ran was asked for
    ├── FeatureError           feature maps, logits or weights hold NaN or infinity, or have the wrong shape
    ├── BackendError           an inference backend refused a model or failed to run it
    ├── EngineError            an engine could not be built or found
    │   └── EngineMismatchError an engine does not fit the library, the GPU, the batch or its bundle
    ├── MissingDependencyError an optional dependency is not installed
    ├── ServerError            a server cannot be reached, refuses a request, or is not what it should be
    │   └── OverloadError      a server has more requests than it can answer in time; try again later
    ├── OutputExistsError      the output is already there and overwriting was not asked for
    └── CheckFailedError       a parity or golden check found a difference

Each message says what was expected, what came, and what to do.
"""

from __future__ import annotations

__all__ = [
    "BackendError", "BundleError", "CalibrationError", "CheckFailedError", "CheckpointError", "DataError",
    "EngineError", "EngineMismatchError", "FeatureError", "GateError", "HashMismatchError", "ImageError",
    "ManifestError", "MissingDependencyError", "OutputExistsError", "OverloadError", "RuleError", "ServerError",
    "StoreError", "WgapError",
]  # fmt: skip


class WgapError(Exception):
    """Base of every error this package raises on purpose."""


class ImageError(WgapError):
    """An image is missing, empty, cut short or not an image."""


class StoreError(ImageError):
    """A store cannot be reached, or does not let an image be read: nothing is said of the image."""


class DataError(WgapError):
    """A dataset folder, list or label file is not what its layout promises."""


class RuleError(DataError, ValueError):
    """A rule or a map of that name is not known, or its parameter is out of range."""


class CalibrationError(WgapError):
    """Calibration images are too few, damaged, or the same as the gate's."""


class CheckpointError(WgapError):
    """A weights file lacks keys, has wrong shapes, or is not a weights file."""


class BundleError(WgapError):
    """A bundle is incomplete or inconsistent."""


class ManifestError(BundleError):
    """wgap.json is missing, unreadable, or of a schema this version does not know."""


class HashMismatchError(BundleError):
    """A file of the bundle is not the one the manifest describes."""


class GateError(BundleError):
    """A lower-precision file whose gate failed or never ran was asked for."""


class FeatureError(WgapError, ValueError):
    """Feature maps, logits or weights hold NaN or infinity, or have the wrong shape."""


class BackendError(WgapError):
    """An inference backend refused a model or failed to run it."""


class EngineError(WgapError):
    """An engine could not be built or found."""


class EngineMismatchError(EngineError):
    """An engine does not fit the library, the GPU, the batch or its bundle."""


class MissingDependencyError(WgapError, ImportError):
    """An optional dependency is not installed."""


class ServerError(WgapError):
    """A server cannot be reached, refuses a request, or is not what it should be."""


class OverloadError(ServerError):
    """A server has more requests than it can answer in time; try again later."""


class OutputExistsError(WgapError):
    """The output is already there and overwriting was not asked for."""


class CheckFailedError(WgapError):
    """A parity or golden check found a difference."""
