// The kernel on a GPU, launched through the driver: the machine code that nvcc made lies in the module.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "cuda_driver.h"
#include "wgap/kernel/cuda_kernel.h"
#include "wgap/runtime.h"

namespace wgap::sdk {

// Made, used and destroyed in one context, which is current.
class CudaKernel {
 public:
  CudaKernel(const CudaDriver& driver, int ordinal, const wgap_network_request& request);
  ~CudaKernel();
  CudaKernel(const CudaKernel&) = delete;
  CudaKernel& operator=(const CudaKernel&) = delete;

  // Where a batch's outputs and pictures lie on the device; those that the rule does not read may be 0.
  struct Inputs {
    CudaPointer logits, features, foreground, images;
  };
  class Launch;

 private:
  const CudaDriver& driver_;
  CudaHandle module_ = nullptr, function_ = nullptr;
  std::size_t room_ = 0;  // bytes of shared memory that a block may ask for
  int multiprocessors_ = 0;
  std::optional<CudaMemory> weight_, logs_;
  std::mutex lock_;

  const int* logs(const Shape& shape);
  void upload(const CudaMemory& to, const void* from, std::size_t bytes) const;
};

// One launch for fixed shapes, with its memory: what a graph captures. One at a time may be under way. The kernel writes
// its records into pinned memory and reads class ids there, so that nothing is copied behind it.
class CudaKernel::Launch {
 public:
  // asked: count, rule, top_k and max_boxes, and whether there are class ids and heat maps.
  Launch(CudaKernel& kernel, const Shape& shape, const wgap_locate_request& asked, const Inputs& inputs);

  void choose(const std::int64_t* class_ids);  // those of this call, where it has any
  void enqueue(CudaHandle stream) const;
  void read(const wgap_locate_request& into) const;  // once the stream has been waited for

 private:
  CudaKernel& kernel_;
  const std::size_t images_, records_, pixels_;
  unsigned blocks_;
  CudaTask task_{};
  std::optional<CudaMemory> scratch_, class_ids_, written_, heatmaps_;
};

}  // namespace wgap::sdk
