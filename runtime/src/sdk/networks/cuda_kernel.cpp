#include "cuda_kernel.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "../failure.h"
#include "wgap/kernel/logs.h"

// WGAP_FATBIN: the path of what nvcc made of kernel.cu.
__asm__(
    ".section .rodata\n"
    ".balign 64\n"
    "wgap_kernel_code:\n"
    ".incbin \"" WGAP_FATBIN
    "\"\n"
    ".previous\n");
extern "C" __attribute__((visibility("hidden"))) const unsigned char wgap_kernel_code[];

namespace wgap::sdk {
namespace {

constexpr int kStaticShared = 1, kDynamicShared = 8;    // CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, _MAX_DYNAMIC_..._BYTES
constexpr int kMultiprocessors = 16, kSharedRoom = 97;  // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, _MAX_..._OPTIN
const CudaHandle kLegacyStream = reinterpret_cast<CudaHandle>(1);

Rule kernel_rule(const wgap_rule& rule) {  // which the localizer has judged
  return rule.kind == WGAP_RULE_FIXED ? fixed_rule(rule.parameters[0], rule.map) : Rule{rule.kind, rule.map, 0, 0.0};
}

}  // namespace

CudaKernel::CudaKernel(const CudaDriver& driver, int ordinal, const wgap_network_request& request) : driver_(driver) {
  int served = 0, device = 0, fixed = 0, room = 0;
  driver_.check(driver_.cuDriverGetVersion(&served), "cuDriverGetVersion");
  if (served / 1000 < WGAP_CUDA_MAJOR)
    fail(WGAP_BACKEND_ERROR,
         "the NVIDIA driver serves CUDA %d.%d; this module was built with CUDA %d: update the driver", served / 1000,
         served % 1000 / 10, WGAP_CUDA_MAJOR);
  driver_.check(driver_.cuDeviceGet(&device, ordinal), "cuDeviceGet");
  driver_.check(driver_.cuDeviceGetAttribute(&multiprocessors_, kMultiprocessors, device), "cuDeviceGetAttribute");
  driver_.check(driver_.cuDeviceGetAttribute(&room, kSharedRoom, device), "cuDeviceGetAttribute");
  driver_.check(driver_.cuModuleLoadData(&module_, wgap_kernel_code), "the kernel's cuModuleLoadData");
  try {
    driver_.check(driver_.cuModuleGetFunction(&function_, module_, "wgap_localize_cuda"), "cuModuleGetFunction");
    driver_.check(driver_.cuFuncGetAttribute(&fixed, kStaticShared, function_), "cuFuncGetAttribute");
    driver_.check(driver_.cuFuncSetAttribute(function_, kDynamicShared, room - fixed), "cuFuncSetAttribute");
    room_ = static_cast<std::size_t>(room - fixed);
    const std::size_t bytes = sizeof(float) * static_cast<std::size_t>(request.classes) * request.channels;
    weight_.emplace(driver_, CudaMemory::kDevice, bytes);
    upload(*weight_, request.weight, bytes);
  } catch (...) {
    driver_.cuModuleUnload(module_);
    throw;
  }
}

CudaKernel::~CudaKernel() { driver_.cuModuleUnload(module_); }

void CudaKernel::upload(const CudaMemory& to, const void* from, std::size_t bytes) const {
  driver_.check(driver_.cuMemcpyHtoD(to.address(), from, bytes), "cuMemcpyHtoD");
  // A copy from pageable memory may return before it has arrived.
  driver_.check(driver_.cuStreamSynchronize(kLegacyStream), "cuStreamSynchronize");
}

// The table of logarithms for maps of that shape, the one that a network has.
const int* CudaKernel::logs(const Shape& shape) {
  const std::lock_guard<std::mutex> held(lock_);
  if (!logs_) {
    std::vector<int> table(logs_for(shape));
    fill_logs(table.data(), 0, table.size());
    CudaMemory memory(driver_, CudaMemory::kDevice, table.size() * sizeof(int));
    upload(memory, table.data(), table.size() * sizeof(int));
    logs_.emplace(std::move(memory));
  }
  return logs_->as<int>();
}

CudaKernel::Launch::Launch(CudaKernel& kernel, const Shape& shape, const wgap_locate_request& asked,
                           const Inputs& inputs)
    : kernel_(kernel),
      images_(static_cast<std::size_t>(asked.count)),
      records_(images_ * static_cast<std::size_t>(asked.class_ids != nullptr ? 1 : asked.top_k)),
      pixels_(static_cast<std::size_t>(shape.map_height) * static_cast<std::size_t>(shape.map_width)),
      blocks_(static_cast<unsigned>(std::min<std::size_t>(records_, static_cast<unsigned>(kernel.multiprocessors_)))) {
  const auto made = [&](std::optional<CudaMemory>* memory, CudaMemory::Kind kind, std::size_t bytes) {
    memory->emplace(kernel_.driver_, kind, bytes);
  };
  if (records_ > static_cast<std::size_t>(std::numeric_limits<int>::max()))
    fail(WGAP_TOO_LARGE, "%zu pictures with %zu classes each are more than a launch takes", images_,
         records_ / images_);
  task_.shape = shape;
  task_.rule = kernel_rule(*asked.rule);
  task_.tasks = static_cast<int>(records_), task_.per_image = static_cast<int>(records_ / images_);
  task_.max_boxes = asked.max_boxes;
  task_.scratch_bytes = (cuda_layout(shape, kernel_.room_, &task_.shared_bytes) + 63) / 64 * 64;
  made(&scratch_, CudaMemory::kDevice, task_.scratch_bytes * blocks_);
  made(&written_, CudaMemory::kPinned, records_ * static_cast<std::size_t>(asked.max_boxes) * sizeof(Record));
  if (asked.class_ids != nullptr) made(&class_ids_, CudaMemory::kPinned, images_ * sizeof(i64));
  if (asked.heatmaps != nullptr) made(&heatmaps_, CudaMemory::kPinned, records_ * pixels_ * sizeof(float));
  task_.logits = reinterpret_cast<const float*>(inputs.logits);
  task_.features = reinterpret_cast<const float*>(inputs.features);
  task_.weight = kernel_.weight_->as<float>();
  task_.scores = reinterpret_cast<const float*>(inputs.foreground);
  task_.pictures = reinterpret_cast<const u8*>(inputs.images);
  task_.logs = shape.colour != 0 ? kernel_.logs(shape) : nullptr;
  task_.class_ids = class_ids_ ? class_ids_->as<i64>() : nullptr;
  task_.heatmaps = heatmaps_ ? heatmaps_->as<float>() : nullptr;
  task_.records = written_->as<Record>();
  task_.scratch = scratch_->as<u8>();
}

void CudaKernel::Launch::choose(const std::int64_t* class_ids) {
  if (class_ids_) std::memcpy(class_ids_->as<void>(), class_ids, images_ * sizeof(i64));
}

void CudaKernel::Launch::enqueue(CudaHandle stream) const {
  CudaTask task = task_;
  void* argument = &task;
  kernel_.driver_.check(
      kernel_.driver_.cuLaunchKernel(kernel_.function_, blocks_, 1, 1, kCudaThreads, 1, 1,
                                     static_cast<unsigned>(task.shared_bytes), stream, &argument, nullptr),
      "cuLaunchKernel");
}

void CudaKernel::Launch::read(const wgap_locate_request& into) const {
  static_assert(sizeof(wgap_record) == sizeof(Record));
  std::memcpy(into.records, written_->as<void>(),
              records_ * static_cast<std::size_t>(task_.max_boxes) * sizeof(Record));
  if (heatmaps_) std::memcpy(into.heatmaps, heatmaps_->as<void>(), records_ * pixels_ * sizeof(float));
}

}  // namespace wgap::sdk
