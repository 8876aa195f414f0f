// A CUDA driver without a GPU: what runtime/cuda calls of it, on host memory. A launch runs the kernel's own source, one
// block after the other, in the shared and global memory that the launch was given. Addresses and sizes are checked
// against what was allocated, so that a copy or a launch beyond its memory fails here as it might not on a GPU.
//   g++ -std=c++17 -O2 -ffp-contract=off -shared -fPIC -I runtime/include -I runtime/src/kernel libcuda.cpp -o libcuda.so.1
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "serial_block.h"
#include "wgap/kernel/cuda_kernel.h"

namespace {

using Pointer = unsigned long long;
using Handle = void*;

enum Error {
  kSuccess = 0,
  kInvalid = 1,
  kOutOfMemory = 2,
  kInvalidContext = 201,
  kInvalidHandle = 400,
  kNotFound = 500
};
constexpr std::size_t kMemory = 4ULL << 30;
constexpr int kRoom = 99 * 1024, kStatic = 192, kMultiprocessors = 3;

struct EmulatedBlock : wgap::SerialBlock {
  static constexpr int kTileRows = wgap::CudaTuning::kTileRows;
  static constexpr int kCopies = wgap::CudaTuning::kCopies;
};

using Work = std::function<int()>;
struct Stream {
  bool capturing = false;
  std::vector<Work> captured;
};
using Graph = std::vector<Work>;

std::recursive_mutex lock;
std::map<Pointer, std::size_t> device, pinned;
std::size_t used = 0;
int retained = 0, dynamic_shared = 0;
thread_local std::vector<Handle> contexts;
int primary;

bool within(const std::map<Pointer, std::size_t>& allocations, Pointer at, std::size_t size) {
  auto after = allocations.upper_bound(at);
  if (after == allocations.begin()) return false;
  --after;
  return at + size <= after->first + after->second;
}

int submit(Handle stream, const Work& work) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (contexts.empty()) return kInvalidContext;
  Stream* const s = static_cast<Stream*>(stream);
  if (reinterpret_cast<std::uintptr_t>(s) > 2 && s->capturing) {
    s->captured.push_back(work);
    return kSuccess;
  }
  return work();
}

int run(const wgap::CudaTask& task, int blocks, unsigned shared_bytes) {
  if (shared_bytes != task.shared_bytes || static_cast<int>(shared_bytes) > dynamic_shared) return kInvalid;
  const auto& s = task.shape;
  const std::size_t images = static_cast<std::size_t>(task.tasks / task.per_image);
  const auto inside = [](const void* p, std::size_t size) {
    return within(device, reinterpret_cast<Pointer>(p), size);
  };
  if (!inside(task.features, images * s.channels * s.height * s.width * 4) ||
      !inside(task.logits, images * s.classes * 4) ||
      !inside(task.weight, static_cast<std::size_t>(s.classes) * s.channels * 4) ||
      !inside(task.results, static_cast<std::size_t>(task.tasks) * sizeof(wgap::Result)) ||
      !inside(task.scratch, static_cast<std::size_t>(blocks) * task.scratch_bytes) ||
      (task.classes && !inside(task.classes, images * 8)) ||
      (task.heatmaps && !inside(task.heatmaps, static_cast<std::size_t>(task.tasks) * s.map_height * s.map_width * 4)))
    return kInvalid;
  void* const shared = std::aligned_alloc(64, (shared_bytes + 63) / 64 * 64);
  int error = kSuccess;
  for (int b = 0; b < blocks && error == kSuccess; ++b) {
    wgap::Scratch scratch;
    wgap::Fast fast{shared, task.shared_bytes, 0};
    const wgap::u64 bytes = wgap::lay_out<EmulatedBlock>(s, task.scratch + task.scratch_bytes * b, &scratch, &fast);
    if (bytes > task.scratch_bytes || fast.used > task.shared_bytes) error = kInvalid;
    EmulatedBlock block;
    wgap::prepare_block(block, s, scratch);
    for (int i = b; i < task.tasks; i += blocks)
      wgap::localize_block(block, wgap::cuda_problem(task, i), scratch, task.results + i);
  }
  std::free(shared);
  return error;
}

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return kSuccess; }
int cuDriverGetVersion(int* version) { return *version = 13000, kSuccess; }
int cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
int cuDeviceGet(int* device_, int ordinal) { return *device_ = ordinal, ordinal == 0 ? kSuccess : 101; }
int cuDeviceGetName(char* name, int size, int) { return std::strncpy(name, "emulated", size), kSuccess; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 75: *value = 8; return kSuccess;  // compute capability
    case 76: *value = 6; return kSuccess;
    case 97: *value = kRoom; return kSuccess;  // shared memory per block, opt-in
    case 16: *value = kMultiprocessors; return kSuccess;
    default: return kInvalid;
  }
}
int cuGetErrorString(int error, const char** text) {
  switch (error) {
    case kInvalid: *text = "invalid argument"; break;
    case kOutOfMemory: *text = "out of memory"; break;
    case kInvalidContext: *text = "invalid device context"; break;
    default: *text = "unknown error"; break;
  }
  return kSuccess;
}

int cuDevicePrimaryCtxRetain(Handle* context, int) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  ++retained;
  return *context = &primary, kSuccess;
}
int cuDevicePrimaryCtxRelease(int) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  return --retained < 0 ? kInvalidContext : kSuccess;
}
int cuCtxPushCurrent(Handle context) { return contexts.push_back(context), kSuccess; }
int cuCtxPopCurrent(Handle* context) {
  if (contexts.empty()) return kInvalidContext;
  return *context = contexts.back(), contexts.pop_back(), kSuccess;
}
int cuCtxGetCurrent(Handle* context) { return *context = contexts.empty() ? nullptr : contexts.back(), kSuccess; }
int cuCtxGetDevice(int* device_) { return *device_ = 0, contexts.empty() ? kInvalidContext : kSuccess; }
int cuCtxSynchronize() { return contexts.empty() ? kInvalidContext : kSuccess; }

int cuMemAlloc(Pointer* pointer, std::size_t size) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (contexts.empty()) return kInvalidContext;
  if (used + size > kMemory) return kOutOfMemory;
  *pointer = reinterpret_cast<Pointer>(std::aligned_alloc(256, (size + 255) / 256 * 256));
  std::memset(reinterpret_cast<void*>(*pointer), 0x5a, size);
  device[*pointer] = size;
  used += size;
  return kSuccess;
}
int cuMemFree(Pointer pointer) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (contexts.empty()) return kInvalidContext;
  const auto found = device.find(pointer);
  if (found == device.end()) return kInvalid;
  used -= found->second;
  device.erase(found);
  std::free(reinterpret_cast<void*>(pointer));
  return kSuccess;
}
int cuMemHostAlloc(void** pointer, std::size_t size, unsigned) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (contexts.empty()) return kInvalidContext;
  *pointer = std::aligned_alloc(256, (size + 255) / 256 * 256);
  pinned[reinterpret_cast<Pointer>(*pointer)] = size;
  return kSuccess;
}
int cuMemFreeHost(void* pointer) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (contexts.empty()) return kInvalidContext;
  if (pinned.erase(reinterpret_cast<Pointer>(pointer)) == 0) return kInvalid;
  return std::free(pointer), kSuccess;
}
int cuMemGetInfo(std::size_t* free_, std::size_t* total) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  return *free_ = kMemory - used, *total = kMemory, kSuccess;
}
int cuMemsetD8(Pointer at, unsigned char value, std::size_t size) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (!within(device, at, size)) return kInvalid;
  return std::memset(reinterpret_cast<void*>(at), value, size), kSuccess;
}
int cuMemcpyHtoD(Pointer to, const void* from, std::size_t size) {
  return submit(nullptr, [=] {
    if (!within(device, to, size)) return kInvalid;
    return std::memcpy(reinterpret_cast<void*>(to), from, size), kSuccess;
  });
}
int cuMemcpyDtoH(void* to, Pointer from, std::size_t size) {
  return submit(nullptr, [=] {
    if (!within(device, from, size)) return kInvalid;
    return std::memcpy(to, reinterpret_cast<const void*>(from), size), kSuccess;
  });
}
int cuMemcpyHtoDAsync(Pointer to, const void* from, std::size_t size, Handle stream) {
  return submit(stream, [=] {
    if (!within(device, to, size) || !within(pinned, reinterpret_cast<Pointer>(from), size)) return kInvalid;
    return std::memcpy(reinterpret_cast<void*>(to), from, size), kSuccess;
  });
}
int cuMemcpyDtoHAsync(void* to, Pointer from, std::size_t size, Handle stream) {
  return submit(stream, [=] {
    if (!within(device, from, size) || !within(pinned, reinterpret_cast<Pointer>(to), size)) return kInvalid;
    return std::memcpy(to, reinterpret_cast<const void*>(from), size), kSuccess;
  });
}
int cuMemcpyDtoDAsync(Pointer to, Pointer from, std::size_t size, Handle stream) {
  return submit(stream, [=] {
    if (!within(device, to, size) || !within(device, from, size)) return kInvalid;
    return std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), size), kSuccess;
  });
}

int cuStreamCreate(Handle* stream, unsigned) { return *stream = new Stream, kSuccess; }
int cuStreamDestroy(Handle stream) { return delete static_cast<Stream*>(stream), kSuccess; }
int cuStreamSynchronize(Handle) { return contexts.empty() ? kInvalidContext : kSuccess; }
int cuStreamBeginCapture(Handle stream, int) { return static_cast<Stream*>(stream)->capturing = true, kSuccess; }
int cuStreamEndCapture(Handle stream, Handle* graph) {
  Stream* const s = static_cast<Stream*>(stream);
  s->capturing = false;
  *graph = new Graph(std::move(s->captured));
  return s->captured.clear(), kSuccess;
}
int cuGraphInstantiate(Handle* made, Handle graph, unsigned long long) {
  return *made = new Graph(*static_cast<Graph*>(graph)), kSuccess;
}
int cuGraphDestroy(Handle graph) { return delete static_cast<Graph*>(graph), kSuccess; }
int cuGraphExecDestroy(Handle graph) { return delete static_cast<Graph*>(graph), kSuccess; }
int cuGraphLaunch(Handle graph, Handle stream) {
  for (const Work& work : *static_cast<Graph*>(graph))
    if (const int error = submit(stream, work)) return error;
  return kSuccess;
}
int cuLaunchHostFunc(Handle stream, void (*function)(void*), void* data) {
  return submit(stream, [=] { return function(data), kSuccess; });
}
int cuEventCreate(Handle* event, unsigned) { return *event = new double(0), kSuccess; }
int cuEventDestroy(Handle event) { return delete static_cast<double*>(event), kSuccess; }
int cuEventRecord(Handle event, Handle stream) {
  return submit(stream, [=] { return *static_cast<double*>(event) = now_ms(), kSuccess; });
}
int cuEventSynchronize(Handle) { return kSuccess; }
int cuEventElapsedTime(float* ms, Handle from, Handle to) {
  return *ms = static_cast<float>(*static_cast<double*>(to) - *static_cast<double*>(from)), kSuccess;
}

int cuModuleLoadData(Handle* module, const void* image) {
  return *module = &primary, std::memcmp(image,
                                         "\x7f"
                                         "ELF",
                                         4) == 0
                                 ? kSuccess
                                 : kInvalid;
}
int cuModuleUnload(Handle) { return kSuccess; }
int cuModuleGetFunction(Handle* function, Handle, const char* name) {
  return *function = &primary, std::strcmp(name, "wgap_localize_cuda") == 0 ? kSuccess : kNotFound;
}
int cuFuncGetAttribute(int* value, int attribute, Handle) {
  return *value = kStatic, attribute == 1 ? kSuccess : kInvalid;  // static shared memory
}
int cuFuncSetAttribute(Handle, int attribute, int value) {
  if (attribute != 8 || value > kRoom - kStatic) return kInvalid;
  return dynamic_shared = value, kSuccess;
}
int cuLaunchKernel(Handle, unsigned x, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned shared,
                   Handle stream, void** arguments, void**) {
  if (threads % 32 != 0 || threads > 512 || x == 0) return kInvalid;
  const wgap::CudaTask task = *static_cast<const wgap::CudaTask*>(arguments[0]);
  return submit(stream, [=] { return run(task, static_cast<int>(x), shared); });
}

int unsupported() { return 801; }  // cudaErrorNotSupported
int cuGetProcAddress_v2(const char* symbol, void** function, int, unsigned long long, int* status) {
  static const std::map<std::string, void*> known = {
#define WGAP_KNOWN(name) {#name, reinterpret_cast<void*>(&name)}
      WGAP_KNOWN(cuInit),
      WGAP_KNOWN(cuDriverGetVersion),
      WGAP_KNOWN(cuDeviceGetCount),
      WGAP_KNOWN(cuDeviceGet),
      WGAP_KNOWN(cuDeviceGetName),
      WGAP_KNOWN(cuDeviceGetAttribute),
      WGAP_KNOWN(cuGetErrorString),
      WGAP_KNOWN(cuDevicePrimaryCtxRetain),
      WGAP_KNOWN(cuDevicePrimaryCtxRelease),
      WGAP_KNOWN(cuCtxPushCurrent),
      WGAP_KNOWN(cuCtxPopCurrent),
      WGAP_KNOWN(cuCtxGetCurrent),
      WGAP_KNOWN(cuCtxGetDevice),
      WGAP_KNOWN(cuCtxSynchronize),
      WGAP_KNOWN(cuMemAlloc),
      WGAP_KNOWN(cuMemFree),
      WGAP_KNOWN(cuMemHostAlloc),
      WGAP_KNOWN(cuMemFreeHost),
      WGAP_KNOWN(cuMemGetInfo),
      WGAP_KNOWN(cuMemsetD8),
      WGAP_KNOWN(cuMemcpyHtoD),
      WGAP_KNOWN(cuMemcpyDtoH),
      WGAP_KNOWN(cuMemcpyHtoDAsync),
      WGAP_KNOWN(cuMemcpyDtoHAsync),
      WGAP_KNOWN(cuMemcpyDtoDAsync),
      WGAP_KNOWN(cuStreamCreate),
      WGAP_KNOWN(cuStreamDestroy),
      WGAP_KNOWN(cuStreamSynchronize),
      WGAP_KNOWN(cuStreamBeginCapture),
      WGAP_KNOWN(cuStreamEndCapture),
      WGAP_KNOWN(cuGraphInstantiate),
      {"cuGraphInstantiateWithFlags", reinterpret_cast<void*>(&cuGraphInstantiate)},
      WGAP_KNOWN(cuGraphDestroy),
      WGAP_KNOWN(cuGraphExecDestroy),
      WGAP_KNOWN(cuGraphLaunch),
      WGAP_KNOWN(cuLaunchHostFunc),
      WGAP_KNOWN(cuEventCreate),
      WGAP_KNOWN(cuEventDestroy),
      WGAP_KNOWN(cuEventRecord),
      WGAP_KNOWN(cuEventSynchronize),
      WGAP_KNOWN(cuEventElapsedTime),
      WGAP_KNOWN(cuModuleLoadData),
      WGAP_KNOWN(cuModuleUnload),
      WGAP_KNOWN(cuModuleGetFunction),
      WGAP_KNOWN(cuFuncGetAttribute),
      WGAP_KNOWN(cuFuncSetAttribute),
      WGAP_KNOWN(cuLaunchKernel),
      {"cuGetProcAddress", reinterpret_cast<void*>(&cuGetProcAddress_v2)},
#undef WGAP_KNOWN
  };
  const auto found = known.find(symbol);
  *function = found == known.end() ? reinterpret_cast<void*>(&unsupported) : found->second;
  if (status) *status = 0;
  return kSuccess;
}

}  // extern "C"
