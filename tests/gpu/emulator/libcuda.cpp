// A CUDA driver without a GPU: what runtime/cuda calls of it, on host memory. A launch runs the kernel's own source, one
// block after the other, in the shared and global memory that the launch was given. Addresses and sizes are checked
// against what was allocated, so that a copy or a launch beyond its memory fails here as it might not on a GPU.
// WGAP_EMULATED_GPUS devices (1 or 2; 1 unless it is set), each with a primary context: memory, streams, events and
// modules of one are refused on the other. Each has WGAP_EMULATED_MEMORY bytes; 4 GiB unless it is set.
// wgap_emulated_calls() counts the driver calls, wgap_emulated_graphs() the living graphs, wgap_emulated_owners() who
// keeps a primary context, wgap_emulated_held(ordinal) the bytes and streams of a device, wgap_emulated_pinned() the
// living pieces of pinned memory, wgap_emulated_launched() launches of graphs.
//   g++ -std=c++17 -O2 -ffp-contract=off -shared -fPIC -I runtime/include -I runtime/src/kernel libcuda.cpp -o libcuda.so.1
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
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
  kInvalidDevice = 101,
  kInvalidContext = 201,
  kInvalidHandle = 400,
  kNotFound = 500
};
constexpr int kRoom = 99 * 1024, kStatic = 192, kMultiprocessors = 3;

struct EmulatedBlock : wgap::SerialBlock {
  static constexpr int kTileRows = wgap::CudaTuning::kTileRows;
  static constexpr int kCopies = wgap::CudaTuning::kCopies;
  static constexpr int kColourCopies = wgap::CudaTuning::kColourCopies;
};

// A device, whose address is the handle of its primary context.
struct Device {
  std::map<Pointer, std::size_t> memory;
  std::size_t used = 0;
  int retained = 0, dynamic_shared = 0, streams = 0;
  char module = 0;  // its address is the handle of a module and of its function
};

using Work = std::function<int()>;
struct Stream {
  Device* device;
  bool capturing = false;
  std::vector<Work> captured;
};
struct Event {
  Device* device;
  double ms = 0;
};
using Graph = std::vector<Work>;

std::recursive_mutex lock;
constexpr int kDevices = 2;
Device devices[kDevices];
std::map<Pointer, std::size_t> pinned;  // of every device
thread_local std::vector<Device*> contexts;
std::atomic<unsigned long long> calls{0}, graphs{0};  // graphs: that are alive, captured or executable
std::atomic<unsigned long long> launched{0};          // graphs, as one

int device_count() {
  const char* const set = std::getenv("WGAP_EMULATED_GPUS");
  return set != nullptr && std::strcmp(set, "2") == 0 ? 2 : 1;
}

std::size_t memory_size() {
  const char* const set = std::getenv("WGAP_EMULATED_MEMORY");
  return set != nullptr ? std::strtoull(set, nullptr, 10) : 4ULL << 30;
}

bool exists(int ordinal) { return ordinal >= 0 && ordinal < device_count(); }

bool within(const std::map<Pointer, std::size_t>& allocations, Pointer at, std::size_t size) {
  auto after = allocations.upper_bound(at);
  if (after == allocations.begin()) return false;
  --after;
  return at + size <= after->first + after->second;
}

// The device whose context is current, or null.
Device* current() { return contexts.empty() ? nullptr : contexts.back(); }

// A created stream, or null for the default ones.
Stream* created(Handle stream) {
  return reinterpret_cast<std::uintptr_t>(stream) > 2 ? static_cast<Stream*>(stream) : nullptr;
}

// work(device) now, or when the stream's graph is launched.
int submit(Handle stream, const std::function<int(Device&)>& work) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  Device* const device = current();
  if (device == nullptr) return kInvalidContext;
  Stream* const s = created(stream);
  if (s != nullptr && s->device != device) return kInvalidHandle;
  if (s != nullptr && s->capturing) {
    s->captured.push_back([=] { return work(*device); });
    return kSuccess;
  }
  return work(*device);
}

int run(const Device& device, const wgap::CudaTask& task, int blocks, unsigned shared_bytes) {
  if (shared_bytes != task.shared_bytes || static_cast<int>(shared_bytes) > device.dynamic_shared) return kInvalid;
  const auto& s = task.shape;
  const std::size_t images = static_cast<std::size_t>(task.tasks / task.per_image);
  const std::size_t tasks = static_cast<std::size_t>(task.tasks);
  const auto inside = [&](const void* p, std::size_t size) {
    return within(device.memory, reinterpret_cast<Pointer>(p), size);
  };
  // What is small or written once may also lie in pinned memory.
  const auto reached = [&](const void* p, std::size_t size) {
    return inside(p, size) || within(pinned, reinterpret_cast<Pointer>(p), size);
  };
  const std::size_t pixels = static_cast<std::size_t>(s.map_height) * s.map_width;
  if ((s.channels && !inside(task.features, images * s.channels * s.height * s.width * 4)) ||
      (s.score_height && !inside(task.scores, images * s.score_height * s.score_width * 4)) ||
      (s.colour && !(inside(task.pictures, images * pixels * 3) && inside(task.logs, wgap::logs_for(s) * 4))) ||
      !inside(task.logits, images * s.classes * 4) ||
      (s.channels && !inside(task.weight, static_cast<std::size_t>(s.classes) * s.channels * 4)) ||
      !inside(task.scratch, static_cast<std::size_t>(blocks) * task.scratch_bytes) ||
      !reached(task.records, tasks * task.max_boxes * sizeof(wgap::Record)) ||
      (task.class_ids && !reached(task.class_ids, images * 8)) ||
      (task.heatmaps && !reached(task.heatmaps, tasks * s.map_height * s.map_width * 4)) ||
      (task.edge_means && !reached(task.edge_means, tasks * (wgap::kLevels + 1) * 8)))
    return kInvalid;
  if (task.rule.kind < wgap::kAdaptive || task.rule.kind > wgap::kForegroundColour) return kInvalid;
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
      wgap::localize_block(block, wgap::cuda_problem(task, i), scratch,
                           task.records + static_cast<wgap::i64>(i) * task.max_boxes);
  }
  std::free(shared);
  return error;
}

// A function of the driver that counts its calls.
template <auto kFunction>
struct Counted;
template <class... Arguments, int (*kFunction)(Arguments...)>
struct Counted<kFunction> {
  static int call(Arguments... arguments) {
    ++calls;
    return kFunction(arguments...);
  }
};

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return kSuccess; }
int cuDriverGetVersion(int* version) { return *version = 13000, kSuccess; }
int cuDeviceGetCount(int* count) { return *count = device_count(), kSuccess; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, exists(ordinal) ? kSuccess : kInvalidDevice; }
int cuDeviceGetName(char* name, int size, int ordinal) {
  if (!exists(ordinal) || size < 1) return kInvalidDevice;
  std::snprintf(name, static_cast<std::size_t>(size), ordinal == 0 ? "emulated" : "emulated %d", ordinal);
  return kSuccess;
}
int cuDeviceGetUuid_v2(unsigned char* uuid, int ordinal) {
  if (!exists(ordinal)) return kInvalidDevice;
  for (int i = 0; i < 16; ++i) uuid[i] = static_cast<unsigned char>(16 * (ordinal + 1) + i);
  return kSuccess;
}
int cuDeviceGetAttribute(int* value, int attribute, int ordinal) {
  if (!exists(ordinal)) return kInvalidDevice;
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
    case kInvalidDevice: *text = "invalid device ordinal"; break;
    case kInvalidHandle: *text = "invalid resource handle"; break;
    case kInvalidContext: *text = "invalid device context"; break;
    default: *text = "unknown error"; break;
  }
  return kSuccess;
}

int cuDevicePrimaryCtxRetain(Handle* context, int ordinal) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (!exists(ordinal)) return kInvalidDevice;
  ++devices[ordinal].retained;
  return *context = &devices[ordinal], kSuccess;
}
int cuDevicePrimaryCtxRelease(int ordinal) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (!exists(ordinal)) return kInvalidDevice;
  return --devices[ordinal].retained < 0 ? kInvalidContext : kSuccess;
}
int cuCtxPushCurrent(Handle context) {
  if (static_cast<Device*>(context)->retained < 1) return kInvalidContext;  // all let go of it
  return contexts.push_back(static_cast<Device*>(context)), kSuccess;
}
int cuCtxPopCurrent(Handle* context) {
  if (contexts.empty()) return kInvalidContext;
  return *context = contexts.back(), contexts.pop_back(), kSuccess;
}
int cuCtxGetCurrent(Handle* context) { return *context = current(), kSuccess; }
int cuCtxGetDevice(int* ordinal) {
  if (current() == nullptr) return kInvalidContext;
  return *ordinal = static_cast<int>(current() - devices), kSuccess;
}
int cuCtxSynchronize() { return contexts.empty() ? kInvalidContext : kSuccess; }

int cuMemAlloc(Pointer* pointer, std::size_t size) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (contexts.empty()) return kInvalidContext;
  if (current()->used + size > memory_size()) return kOutOfMemory;
  *pointer = reinterpret_cast<Pointer>(std::aligned_alloc(256, (size + 255) / 256 * 256));
  std::memset(reinterpret_cast<void*>(*pointer), 0x5a, size);
  current()->memory[*pointer] = size;
  current()->used += size;
  return kSuccess;
}
int cuMemFree(Pointer pointer) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (contexts.empty()) return kInvalidContext;
  const auto found = current()->memory.find(pointer);
  if (found == current()->memory.end()) return kInvalid;
  current()->used -= found->second;
  current()->memory.erase(found);
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
  if (contexts.empty()) return kInvalidContext;
  *total = memory_size();
  return *free_ = *total - std::min(*total, current()->used), kSuccess;
}
int cuMemsetD8(Pointer at, unsigned char value, std::size_t size) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (contexts.empty()) return kInvalidContext;
  if (!within(current()->memory, at, size)) return kInvalid;
  return std::memset(reinterpret_cast<void*>(at), value, size), kSuccess;
}
int cuMemcpyHtoD(Pointer to, const void* from, std::size_t size) {
  return submit(nullptr, [=](Device& device) {
    if (!within(device.memory, to, size)) return kInvalid;
    return std::memcpy(reinterpret_cast<void*>(to), from, size), kSuccess;
  });
}
int cuMemcpyDtoH(void* to, Pointer from, std::size_t size) {
  return submit(nullptr, [=](Device& device) {
    if (!within(device.memory, from, size)) return kInvalid;
    return std::memcpy(to, reinterpret_cast<const void*>(from), size), kSuccess;
  });
}
int cuMemcpyHtoDAsync(Pointer to, const void* from, std::size_t size, Handle stream) {
  return submit(stream, [=](Device& device) {
    if (!within(device.memory, to, size) || !within(pinned, reinterpret_cast<Pointer>(from), size)) return kInvalid;
    return std::memcpy(reinterpret_cast<void*>(to), from, size), kSuccess;
  });
}
int cuMemcpyDtoHAsync(void* to, Pointer from, std::size_t size, Handle stream) {
  return submit(stream, [=](Device& device) {
    if (!within(device.memory, from, size) || !within(pinned, reinterpret_cast<Pointer>(to), size)) return kInvalid;
    return std::memcpy(to, reinterpret_cast<const void*>(from), size), kSuccess;
  });
}
int cuMemcpyDtoDAsync(Pointer to, Pointer from, std::size_t size, Handle stream) {
  return submit(stream, [=](Device& device) {
    if (!within(device.memory, to, size) || !within(device.memory, from, size)) return kInvalid;
    return std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), size), kSuccess;
  });
}

int cuMemcpyDtoHAsync_v2(void* to, Pointer from, std::size_t size, Handle stream) {
  return cuMemcpyDtoHAsync(to, from, size, stream);
}
int cuMemcpyHtoDAsync_v2(Pointer to, const void* from, std::size_t size, Handle stream) {
  return cuMemcpyHtoDAsync(to, from, size, stream);
}

int cuStreamCreate(Handle* stream, unsigned) {
  if (current() == nullptr) return kInvalidContext;
  const std::lock_guard<std::recursive_mutex> held(lock);
  return *stream = new Stream{current(), false, {}}, ++current()->streams, kSuccess;
}
int cuStreamDestroy(Handle stream) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  --static_cast<Stream*>(stream)->device->streams;
  return delete static_cast<Stream*>(stream), kSuccess;
}
int cuStreamSynchronize(Handle stream) {
  return submit(stream, [](Device&) { return kSuccess; });
}
int cuStreamBeginCapture(Handle stream, int) { return static_cast<Stream*>(stream)->capturing = true, kSuccess; }
int cuStreamEndCapture(Handle stream, Handle* graph) {
  Stream* const s = static_cast<Stream*>(stream);
  s->capturing = false;
  *graph = new Graph(std::move(s->captured));
  return s->captured.clear(), ++graphs, kSuccess;
}
int cuGraphInstantiate(Handle* made, Handle graph, unsigned long long) {
  return *made = new Graph(*static_cast<Graph*>(graph)), ++graphs, kSuccess;
}
int cuGraphDestroy(Handle graph) { return delete static_cast<Graph*>(graph), --graphs, kSuccess; }
int cuGraphExecDestroy(Handle graph) { return delete static_cast<Graph*>(graph), --graphs, kSuccess; }
int cuGraphLaunch(Handle graph, Handle stream) {
  ++launched;
  return submit(stream, [=](Device&) {
    for (const Work& work : *static_cast<Graph*>(graph))
      if (const int error = work()) return error;
    return static_cast<int>(kSuccess);
  });
}
int cuLaunchHostFunc(Handle stream, void (*function)(void*), void* data) {
  return submit(stream, [=](Device&) { return function(data), kSuccess; });
}
int cuEventCreate(Handle* event, unsigned) {
  if (current() == nullptr) return kInvalidContext;
  return *event = new Event{current(), 0}, kSuccess;
}
int cuEventDestroy(Handle event) { return delete static_cast<Event*>(event), kSuccess; }
int cuEventRecord(Handle event, Handle stream) {
  return submit(stream, [=](Device& device) {
    Event* const e = static_cast<Event*>(event);
    return e->ms = now_ms(), e->device == &device ? kSuccess : kInvalidHandle;
  });
}
int cuEventSynchronize(Handle) { return kSuccess; }
int cuEventElapsedTime(float* ms, Handle from, Handle to) {
  return *ms = static_cast<float>(static_cast<Event*>(to)->ms - static_cast<Event*>(from)->ms), kSuccess;
}

int cuPointerGetAttribute(void* value, int attribute, Pointer at) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  for (int ordinal = 0; ordinal < kDevices; ++ordinal) {
    if (!within(devices[ordinal].memory, at, 1)) continue;
    if (attribute != 2 && attribute != 9) return kInvalid;
    return *static_cast<int*>(value) = attribute == 2 ? 2 : ordinal, kSuccess;  // CU_MEMORYTYPE_DEVICE
  }
  return kInvalid;
}

int cuModuleLoadData(Handle* module, const void* image) {
  if (current() == nullptr) return kInvalidContext;
  *module = &current()->module;
  const bool cubin = std::memcmp(image, "\177ELF", 4) == 0, fatbin = std::memcmp(image, "\x50\xed\x55\xba", 4) == 0;
  return cubin || fatbin ? kSuccess : kInvalid;
}
int cuModuleUnload(Handle) { return kSuccess; }
int cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  return *function = module, std::strcmp(name, "wgap_localize_cuda") == 0 ? kSuccess : kNotFound;
}
int cuFuncGetAttribute(int* value, int attribute, Handle) {
  return *value = kStatic, attribute == 1 ? kSuccess : kInvalid;  // static shared memory
}
int cuFuncSetAttribute(Handle function, int attribute, int value) {
  if (attribute != 8 || value > kRoom - kStatic) return kInvalid;
  for (Device& device : devices)
    if (function == &device.module) return device.dynamic_shared = value, kSuccess;
  return kInvalidHandle;
}
int cuLaunchKernel(Handle function, unsigned x, unsigned, unsigned, unsigned threads, unsigned, unsigned,
                   unsigned shared, Handle stream, void** arguments, void**) {
  if (threads % 32 != 0 || threads > 512 || x == 0) return kInvalid;
  const wgap::CudaTask task = *static_cast<const wgap::CudaTask*>(arguments[0]);
  return submit(stream, [=](Device& device) {
    if (function != &device.module) return static_cast<int>(kInvalidHandle);
    return run(device, task, static_cast<int>(x), shared);
  });
}

unsigned long long wgap_emulated_calls() { return calls; }
unsigned long long wgap_emulated_launched() { return launched; }
unsigned long long wgap_emulated_held(int ordinal) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  return devices[ordinal].used + static_cast<unsigned long long>(devices[ordinal].streams);
}
unsigned long long wgap_emulated_pinned() {
  const std::lock_guard<std::recursive_mutex> held(lock);
  return pinned.size();
}
unsigned long long wgap_emulated_graphs() { return graphs; }
unsigned long long wgap_emulated_owners() {
  return static_cast<unsigned long long>(devices[0].retained) + static_cast<unsigned long long>(devices[1].retained);
}

int unsupported() { return 801; }  // cudaErrorNotSupported
int cuGetProcAddress_v2(const char* symbol, void** function, int, unsigned long long, int* status) {
  static const std::map<std::string, void*> known = {
#define WGAP_KNOWN(name) {#name, reinterpret_cast<void*>(&Counted<&name>::call)}
      WGAP_KNOWN(cuInit),
      WGAP_KNOWN(cuDriverGetVersion),
      WGAP_KNOWN(cuDeviceGetCount),
      WGAP_KNOWN(cuDeviceGet),
      WGAP_KNOWN(cuDeviceGetName),
      {"cuDeviceGetUuid", reinterpret_cast<void*>(&Counted<&cuDeviceGetUuid_v2>::call)},
      WGAP_KNOWN(cuDeviceGetUuid_v2),
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
      {"cuGraphInstantiateWithFlags", reinterpret_cast<void*>(&Counted<&cuGraphInstantiate>::call)},
      WGAP_KNOWN(cuGraphDestroy),
      WGAP_KNOWN(cuGraphExecDestroy),
      WGAP_KNOWN(cuGraphLaunch),
      WGAP_KNOWN(cuLaunchHostFunc),
      WGAP_KNOWN(cuEventCreate),
      WGAP_KNOWN(cuEventDestroy),
      WGAP_KNOWN(cuEventRecord),
      WGAP_KNOWN(cuEventSynchronize),
      WGAP_KNOWN(cuEventElapsedTime),
      WGAP_KNOWN(cuPointerGetAttribute),
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
