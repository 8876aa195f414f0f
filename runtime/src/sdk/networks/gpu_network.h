// What every network on an NVIDIA GPU does the same: slots, each a stream with buffers of its own, the kernel behind the
// network, and CUDA graphs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "../failure.h"
#include "cuda_kernel.h"

namespace wgap::sdk {

class GpuNetwork {
 public:
  virtual ~GpuNetwork();
  GpuNetwork(const GpuNetwork&) = delete;
  GpuNetwork& operator=(const GpuNetwork&) = delete;

  void run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted, wgap_outputs* outputs);
  void release(wgap_outputs* outputs);
  void locate(const wgap_locate_request& request);

  // The functions of a module's network; made: what stands behind them.
  static void fill(wgap_network* network, const char* name, const char* version, std::unique_ptr<GpuNetwork> made);

 protected:
  struct Tensor {
    std::string name;
    bool is_image;
    std::uint32_t bit;  // of its output; 0: the image, or one that no rule reads
    std::size_t bytes;  // of one picture
    std::vector<std::int64_t> extents;
  };
  using Addresses = std::map<std::string, CudaPointer>;  // by tensor
  // The network for one size of batch, between the buffers that it was made for.
  struct Execution {
    virtual ~Execution() = default;
    virtual void enqueue(CudaHandle stream) = 0;
  };

  // title: of the library, for messages. graphs: whether executions may be captured.
  GpuNetwork(const wgap_network_request& request, const char* title, bool graphs);
  void close();  // in the destructor of what derives, before what executions stand on goes
  // For a destructor: false where the driver is gone, at the program's end; what lies on the GPU is then left alone.
  template <class Work>
  bool in_context(Work work) const {
    try {
      const CudaContext::Use use(context_);
      work();
      return true;
    } catch (const Failure&) {
      return false;
    }
  }
  void abandon();

  // An input or output that the network has, in the manifest's order; the image comes first among tensors_.
  void add(const wgap_tensor& tensor);

  // Called in the context; wanted: bits of the outputs that are read.
  virtual std::unique_ptr<Execution> execution(std::int64_t count, std::uint32_t wanted, const Addresses& at) = 0;

  const CudaDriver& driver_;
  const int ordinal_;
  const CudaContext context_;
  std::vector<Tensor> tensors_;  // the image first; of what derives

 private:
  class Slot;
  using Key = std::vector<std::uint64_t>;

  const std::string title_;
  const std::int64_t largest_;
  const int most_slots_;
  std::unique_ptr<CudaKernel> kernel_;
  std::atomic<bool> graphs_;
  std::atomic<int> failures_{0};
  std::mutex lock_;
  std::condition_variable free_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> idle_;
  int made_ = 0;

  void require(std::int64_t count) const;
  Slot* take();
  void give_back(Slot* slot);
  Shape shape_for(const wgap_rule& rule) const;
};

}  // namespace wgap::sdk
