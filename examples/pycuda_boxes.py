"""Boxes from images that PyCUDA holds on the GPU, in PyCUDA's own context and on its stream.

pip install 'wgap[cuda,pycuda,rtx]'
wgap build bundle && python examples/pycuda_boxes.py bundle
"""

from __future__ import annotations

import sys

import numpy as np
import pycuda.autoinit  # noqa: F401  (makes a context current, which the localizer then works in)
import pycuda.driver as cuda
from pycuda import gpuarray

from wgap import Localizer

localizer = Localizer(sys.argv[1], backend="tensorrt_rtx")
height, width = localizer.bundle.manifest.model.input_size
stream = cuda.Stream()
host = cuda.register_host_memory(np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8))
images = gpuarray.to_gpu_async(host, stream=stream)
for found in localizer.batch(images, stream=stream.handle):
    print(found.class_name, round(found.score, 3), found.box)
localizer.close()
