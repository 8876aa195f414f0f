"""What the emulated driver promises of two devices, run by ``tests/runtime/test_emulated_gpu.py`` on that driver."""

import ctypes
from typing import Any

from cuda.bindings import driver

from wgap import _native

IMAGES, SHAPE = 2, [1, 2, 2, 4, 4, 3, 0, 0, 0]


def call(name: str, *arguments: Any) -> Any:
    code, *values = getattr(driver, name)(*arguments)
    assert int(code) == 0, f"{name}: {code}"
    return values[0] if values else None


def refused(name: str, *arguments: Any) -> int:
    return int(getattr(driver, name)(*arguments)[0])


def allocated(values: bytes) -> int:
    pointer = int(call("cuMemAlloc", len(values)))
    call("cuMemcpyHtoD", pointer, values, len(values))
    return pointer


def pinned(size: int) -> int:
    return int(call("cuMemHostAlloc", size, 0))


counter = ctypes.CDLL("libcuda.so.1").wgap_emulated_calls
counter.restype = ctypes.c_ulonglong
call("cuInit", 0)
assert int(call("cuDeviceGetCount")) == 2
assert refused("cuDeviceGet", 2) == 101
names, uuids, contexts = [], [], []
for ordinal in range(2):
    device = call("cuDeviceGet", ordinal)
    names.append(call("cuDeviceGetName", 32, device).split(b"\0")[0])
    uuids.append(bytes(call("cuDeviceGetUuid", device).bytes))
    contexts.append(call("cuDevicePrimaryCtxRetain", device))
assert names == [b"emulated", b"emulated 1"]
assert len(set(uuids)) == 2
assert all(len(uuid) == 16 for uuid in uuids)

before = counter()
call("cuCtxPushCurrent", contexts[0])
assert int(call("cuCtxGetDevice")) == 0
assert counter() == before + 2
stream = int(call("cuStreamCreate", 0))
module = call("cuModuleLoadData", b"\x7fELF")
function = call("cuModuleGetFunction", module, b"wgap_localize_cuda")
room = 90_000
call("cuFuncSetAttribute", function, driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, room)
floats = lambda *values: bytes((ctypes.c_float * len(values))(*values))  # noqa: E731
C, h, w, H, W, K = SHAPE[:6]
classifier = _native.Classifier(memoryview(floats(*[1.0] * (K * C))).cast("B").cast("f", (K, C)))
_, shared, scratch = _native._cuda_layout(classifier, [IMAGES, K], [C, h, w], [], (H, W), None, 1, 1, room)
device_only = {
    "features": allocated(floats(1, 0, 0, 0, 0, 0, 0, 1)),
    "logits": allocated(floats(1, 2, 3, 3, 2, 1)),
    "weight": allocated(floats(1, 1, 1)),
    "scratch": int(call("cuMemAlloc", max(scratch, 1) * IMAGES)),
}
sizes = {
    "records": IMAGES * _native._CUDA_RECORD_BYTES,
    "class_ids": IMAGES * 8,
    "heatmaps": IMAGES * 4 * 4 * 4,
    "edge_means": IMAGES * 21 * 8,
}


def launched(addresses: dict[str, int], stream: int = 0) -> int:
    task = ctypes.create_string_buffer(_native._cuda_task(SHAPE, IMAGES, 1, None, shared, scratch, addresses))
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(task))
    return refused(
        "cuLaunchKernel", function, IMAGES, 1, 1, 512, 1, 1, shared, stream, ctypes.addressof(arguments), 0
    )  # fmt: skip


ids = bytes((ctypes.c_int64 * IMAGES)(1, 2))
for place in (pinned, lambda size: int(call("cuMemAlloc", size))):
    either = {name: place(size) for name, size in sizes.items()}
    ctypes.memmove(either["class_ids"], ids, len(ids))  # the emulated device's memory is the host's
    assert launched(device_only | either, stream) == 0
    told = [ctypes.string_at(either[name], sizes[name]) for name in ("records", "edge_means")]
    [[one], [other]] = _native._cuda_records(told[0], IMAGES, 1, None, told[1])
    assert (one.class_id, one.box, other.class_id, other.box) == (1, (0, 0, 3, 3), 2, (1, 1, 4, 4))
    assert one.edge_means is not None
    for name in sizes:  # each of them is checked
        assert launched(device_only | either | {name: either[name] + 64}) == 1, name
for name in device_only:
    assert launched(device_only | either | {name: pinned(1 << 20)}) == 1, name

call("cuCtxPushCurrent", contexts[1])
assert int(call("cuCtxGetDevice")) == 1
features = device_only["features"]
room_for = ctypes.create_string_buffer(4)
assert refused("cuMemcpyDtoH", ctypes.addressof(room_for), features, 4) == 1  # the other device's memory
assert refused("cuMemFree", features) == 1
assert refused("cuStreamSynchronize", stream) == 400
assert launched(device_only | either, stream) == 400
assert launched(device_only | either) == 400  # the kernel, too, is the other device's
call("cuCtxPopCurrent")
call("cuMemcpyDtoH", ctypes.addressof(room_for), features, 4)
assert room_for.raw == floats(1)
