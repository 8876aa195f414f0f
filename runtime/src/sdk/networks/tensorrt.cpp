// The module of TensorRT: a checked engine, its outputs back in host memory. Both the library and the driver are found at
// run time; the library must be of the major version whose headers this was built with.
#include <NvInferRuntime.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../outputs.h"
#include "cuda_driver.h"
#include "library.h"

namespace {

using wgap::sdk::CudaContext;
using wgap::sdk::CudaDriver;
using wgap::sdk::CudaHandle;
using wgap::sdk::CudaPointer;
using wgap::sdk::fail;
using wgap::sdk::guarded;
using wgap::sdk::text;

#define WGAP_TEXT(number) WGAP_TEXT_OF(number)
#define WGAP_TEXT_OF(number) #number
constexpr wgap::sdk::LibrarySearch kSearch = {"tensorrt",      "TensorRT",
                                              "WGAP_TENSORRT", "libnvinfer.so." WGAP_TEXT(NV_TENSORRT_MAJOR),
                                              "tensorrt_libs", "createInferRuntime_INTERNAL"};

constexpr int kSlots = 4;            // calls on the GPU at the same time, by default
constexpr std::size_t kBatches = 4;  // sizes of batches for which a slot keeps what it made; the oldest goes
constexpr int kMostFailures = 3;     // captures that may fail before a session goes on without graphs

struct Library {
  wgap::sdk::LoadedLibrary file;
  std::int32_t number;
  std::string version;

  explicit Library(const char* option) : file(wgap::sdk::load_library(kSearch, option)) {
    const auto of = [this](const char* name) {
      auto* const function = file.symbol<std::int32_t()>(name);
      return function != nullptr ? function() : -1;
    };
    number = of("getInferLibVersion");
    const std::int32_t build = of("getInferLibBuildVersion");
    version = text("%d.%d.%d", number / 10000, number / 100 % 100, number % 100);
    if (build >= 0) version += "." + std::to_string(build);
    if (number / 10000 != NV_TENSORRT_MAJOR)
      fail(WGAP_BACKEND_ERROR, "%s is TensorRT %s; this module was built for TensorRT %d, and knows no other",
           file.path.c_str(), version.c_str(), NV_TENSORRT_MAJOR);
  }
};

// The last of what the library said was wrong.
class Log : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> held(lock_);
    try {
      said_ = message;
    } catch (const std::exception&) {  // out of memory: what was said before stays
    }
  }
  std::string reason() const {
    const std::lock_guard<std::mutex> held(lock_);
    return said_.empty() ? "it gives no reason" : said_;
  }

 private:
  mutable std::mutex lock_;
  std::string said_;
};

class Session {
 public:
  explicit Session(const wgap_network_request& request)
      : driver_(CudaDriver::get()),
        library_(request.library),
        context_(driver_, driver_.gpu(request.device).ordinal),
        largest_(request.largest),
        most_slots_(request.slots > 0 ? request.slots : kSlots) {
    const CudaContext::Use use(context_);
    auto* const create = library_.file.symbol<void*(void*, std::int32_t)>("createInferRuntime_INTERNAL");
    runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(&log_, library_.number)));
    if (runtime_ == nullptr) refuse("makes no runtime");
    if (request.version_compatible != 0) runtime_->setEngineHostCodeAllowed(true);  // such a plan brings what it needs
    engine_.reset(runtime_->deserializeCudaEngine(request.content, request.content_bytes));
    if (engine_ == nullptr) refuse(text("refuses %s", request.path));
    for (std::int32_t i = 0; i < request.tensor_count; ++i) compare(request.tensors[i], request.path);
  }
  ~Session() {
    const CudaContext::Use use(context_);
    slots_.clear();
    engine_.reset();
    runtime_.reset();
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const char* version() const { return library_.version.c_str(); }

  void run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted, wgap_outputs* outputs) {
    if (count < 1 || count > largest_)
      fail(WGAP_BACKEND_ERROR, "TensorRT: expected a batch of 1 to %lld, got %lld", static_cast<long long>(largest_),
           static_cast<long long>(count));
    Slot* const slot = take();
    try {
      const CudaContext::Use use(context_);
      slot->run(images, count, wanted, outputs);
    } catch (...) {
      give_back(slot);
      throw;
    }
    outputs->lease = slot;
  }
  void release(wgap_outputs* outputs) {
    if (outputs->lease != nullptr) give_back(static_cast<Slot*>(outputs->lease));
    outputs->lease = nullptr;
  }

 private:
  struct Tensor {
    std::string name;
    std::uint32_t bit;  // 0: the image
    std::size_t bytes;  // of one picture
    std::vector<std::int64_t> extents;
  };

  // A stream, and buffers for the largest batch; for each size of batch an execution context and a graph.
  class Slot {
   public:
    explicit Slot(Session& session) : session_(session), driver_(session.driver_) {
      try {
        driver_.check(driver_.cuStreamCreate(&stream_, 1), "cuStreamCreate");  // CU_STREAM_NON_BLOCKING
        for (const Tensor& tensor : session.tensors_) {
          const std::size_t bytes = tensor.bytes * static_cast<std::size_t>(session.largest_);
          Buffer& buffer = buffers_[tensor.name];
          driver_.check(driver_.cuMemAlloc(&buffer.device, bytes), "cuMemAlloc");
          driver_.check(driver_.cuMemHostAlloc(&buffer.host, bytes, 1), "cuMemHostAlloc");  // CU_MEMHOSTALLOC_PORTABLE
        }
      } catch (...) {
        free();
        throw;
      }
    }
    ~Slot() { free(); }
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;

    void run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted, wgap_outputs* outputs) {
      Batch& batch = batch_for(count, wanted);
      const Tensor& image = session_.tensors_.front();
      std::memcpy(buffers_[image.name].host, images, image.bytes * static_cast<std::size_t>(count));
      try {
        if (batch.graph == nullptr && batch.has_run && session_.graphs_) capture(&batch, count, wanted);
        if (batch.graph != nullptr)
          driver_.check(driver_.cuGraphLaunch(batch.graph, stream_), "cuGraphLaunch");
        else
          enqueue(&batch, count, wanted);
        driver_.check(driver_.cuStreamSynchronize(stream_), "cuStreamSynchronize");
      } catch (...) {  // nothing may still run in buffers that the next call takes
        driver_.cuStreamSynchronize(stream_);
        throw;
      }
      batch.has_run = true;
      for (const Tensor& tensor : session_.tensors_) {
        if ((tensor.bit & wanted) == 0) continue;
        for (const wgap::sdk::OutputPlace& output : wgap::sdk::places_of(outputs))
          if (output.bit == tensor.bit) {
            *output.data = static_cast<const float*>(buffers_[tensor.name].host);
            *output.bytes = tensor.bytes * static_cast<std::uint64_t>(count);
          }
      }
    }

   private:
    struct Buffer {
      CudaPointer device = 0;
      void* host = nullptr;  // pinned, which a copy engine and a graph can read
    };
    // What is tied to one size of batch and one choice of outputs.
    struct Batch {
      const CudaDriver& driver;
      std::unique_ptr<nvinfer1::IExecutionContext> context = nullptr;
      CudaHandle graph = nullptr;
      bool has_run = false;  // the library has chosen what to run
      std::uint64_t used = 0;

      explicit Batch(const CudaDriver& of) : driver(of) {}
      ~Batch() {
        if (graph != nullptr) driver.cuGraphExecDestroy(graph);
      }
      Batch(const Batch&) = delete;
      Batch& operator=(const Batch&) = delete;
    };

    Session& session_;
    const CudaDriver& driver_;
    CudaHandle stream_ = nullptr;
    std::map<std::string, Buffer> buffers_;
    std::map<std::pair<std::int64_t, std::uint32_t>, std::unique_ptr<Batch>> batches_;
    std::uint64_t uses_ = 0;

    void free() {
      batches_.clear();
      for (const auto& [_, buffer] : buffers_) {
        if (buffer.device != 0) driver_.cuMemFree(buffer.device);
        if (buffer.host != nullptr) driver_.cuMemFreeHost(buffer.host);
      }
      if (stream_ != nullptr) driver_.cuStreamDestroy(stream_);
    }

    Batch& batch_for(std::int64_t count, std::uint32_t wanted) {
      const std::pair key(count, wanted);
      if (batches_.count(key) == 0) {
        auto made = std::make_unique<Batch>(driver_);
        made->context.reset(session_.engine_->createExecutionContext());
        if (made->context == nullptr) session_.refuse("makes no execution context");
        const Tensor& image = session_.tensors_.front();
        nvinfer1::Dims shape = {};
        shape.nbDims = 4;
        shape.d[0] = count;
        std::copy_n(image.extents.begin() + 1, 3, shape.d + 1);
        if (!made->context->setInputShape(image.name.c_str(), shape))
          session_.refuse(text("takes no batch of %lld", static_cast<long long>(count)));
        for (const auto& [name, buffer] : buffers_)
          if (!made->context->setTensorAddress(name.c_str(), reinterpret_cast<void*>(buffer.device)))
            session_.refuse("takes no address for " + name);
        if (batches_.size() >= kBatches)
          batches_.erase(std::min_element(batches_.begin(), batches_.end(), [](const auto& a, const auto& b) {
            return a.second->used < b.second->used;
          }));
        batches_[key] = std::move(made);
      }
      Batch& batch = *batches_[key];
      batch.used = ++uses_;
      return batch;
    }

    void enqueue(Batch* batch, std::int64_t count, std::uint32_t wanted) {
      const auto pictures = static_cast<std::size_t>(count);
      const Tensor& image = session_.tensors_.front();
      const Buffer& in = buffers_[image.name];
      driver_.check(driver_.cuMemcpyHtoDAsync(in.device, in.host, image.bytes * pictures, stream_),
                    "cuMemcpyHtoDAsync");
      if (!batch->context->enqueueV3(static_cast<cudaStream_t>(stream_))) session_.refuse("failed on a batch");
      for (const Tensor& tensor : session_.tensors_) {
        if ((tensor.bit & wanted) == 0) continue;
        const Buffer& out = buffers_[tensor.name];
        driver_.check(driver_.cuMemcpyDtoHAsync(out.host, out.device, tensor.bytes * pictures, stream_),
                      "cuMemcpyDtoHAsync");
      }
    }

    // Copy in, network and copies out as one launch. Where that fails the session goes on without.
    void capture(Batch* batch, std::int64_t count, std::uint32_t wanted) {
      static std::mutex one_at_a_time;
      const std::lock_guard<std::mutex> held(one_at_a_time);
      CudaHandle graph = nullptr;
      bool whole = driver_.cuStreamBeginCapture(stream_, 1) == 0;  // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
      if (whole) {
        try {
          enqueue(batch, count, wanted);
        } catch (const wgap::sdk::Failure&) {
          whole = false;
        }
        whole = driver_.cuStreamEndCapture(stream_, &graph) == 0 && whole;  // it must be ended whatever happened
      }
      whole = whole && graph != nullptr && driver_.cuGraphInstantiate(&batch->graph, graph, 0) == 0;
      if (graph != nullptr) driver_.cuGraphDestroy(graph);
      if (!whole && ++session_.failures_ >= kMostFailures) session_.graphs_ = false;
    }
  };

  const CudaDriver& driver_;
  const Library library_;
  const CudaContext context_;
  const std::int64_t largest_;
  const int most_slots_;
  Log log_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::vector<Tensor> tensors_;  // the image first
  std::atomic<bool> graphs_{true};
  std::atomic<int> failures_{0};
  std::mutex lock_;
  std::condition_variable free_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> idle_;
  int made_ = 0;

  [[noreturn]] void refuse(const std::string& what) const {
    fail(WGAP_BACKEND_ERROR, "TensorRT %s %s: %s", library_.version.c_str(), what.c_str(), log_.reason().c_str());
  }

  Slot* take() {
    std::unique_lock<std::mutex> held(lock_);
    free_.wait(held, [&] { return !idle_.empty() || made_ < most_slots_; });
    if (!idle_.empty()) {
      Slot* const slot = idle_.back();
      idle_.pop_back();
      return slot;
    }
    ++made_;
    held.unlock();
    try {
      const CudaContext::Use use(context_);
      auto slot = std::make_unique<Slot>(*this);
      held.lock();
      slots_.push_back(std::move(slot));
      return slots_.back().get();
    } catch (...) {
      if (!held.owns_lock()) held.lock();
      --made_;
      free_.notify_one();
      throw;
    }
  }
  void give_back(Slot* slot) {
    const std::lock_guard<std::mutex> held(lock_);
    idle_.push_back(slot);
    free_.notify_one();
  }

  // One input or output of the engine with what the manifest promises. Outputs that the engine was built without are
  // left out: the preflight has asked for those that the rule reads.
  void compare(const wgap_tensor& promised, const char* path) {
    const bool is_image = std::strcmp(promised.name, "image") == 0;
    bool there = false;
    for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i)
      there = there || std::strcmp(engine_->getIOTensorName(i), promised.name) == 0;
    if (!there && !is_image) return;
    std::string got = "no such tensor";
    bool same = false;
    if (there) {
      const nvinfer1::Dims shape = engine_->getTensorShape(promised.name);
      const nvinfer1::DataType type = engine_->getTensorDataType(promised.name);
      same =
          shape.nbDims == promised.rank && type == (is_image ? nvinfer1::DataType::kUINT8 : nvinfer1::DataType::kFLOAT);
      for (std::int32_t i = 0; same && i < promised.rank; ++i)
        same = (shape.d[i] > 0 ? shape.d[i] : -1) == promised.extents[i];
      got = text("type %d of rank %d", static_cast<int>(type), shape.nbDims);
    }
    if (!same)
      fail(WGAP_BUNDLE_ERROR, "%s: the manifest promises %s of rank %d, got %s; build the engine again", path,
           promised.name, promised.rank, got.c_str());
    Tensor tensor{promised.name, 0, is_image ? sizeof(std::uint8_t) : sizeof(float),
                  std::vector<std::int64_t>(promised.extents, promised.extents + promised.rank)};
    for (std::int32_t i = 1; i < promised.rank; ++i) tensor.bytes *= static_cast<std::size_t>(promised.extents[i]);
    wgap_outputs none = WGAP_OUTPUTS_INIT;
    for (const wgap::sdk::OutputPlace& output : wgap::sdk::places_of(&none))
      if (tensor.name == output.name) tensor.bit = output.bit;
    tensors_.insert(is_image ? tensors_.begin() : tensors_.end(), std::move(tensor));
  }
};

}  // namespace

extern "C" {

__attribute__((visibility("default"))) wgap_status wgap_network_host(const char* library, const char* device,
                                                                     wgap_network_host_info* host, wgap_error* error) {
  return guarded(error, [&] {
    const CudaDriver::Gpu gpu = CudaDriver::get().gpu(device);  // before the library, which wants a driver
    const Library loaded(library);
    std::snprintf(host->version, sizeof host->version, "%s", loaded.version.c_str());
    std::snprintf(host->compute_capability, sizeof host->compute_capability, "%s", gpu.compute_capability.c_str());
  });
}

__attribute__((visibility("default"))) wgap_status wgap_network_open(const wgap_network_request* request,
                                                                     wgap_network* network, wgap_error* error) {
  return guarded(error, [&] {
    auto session = std::make_unique<Session>(*request);
    network->version = session->version();
    network->name = "tensorrt";
    network->largest = request->largest;
    network->run = [](void* context, const std::uint8_t* images, std::int64_t count, std::uint32_t wanted,
                      wgap_outputs* outputs, wgap_error* failed) {
      return guarded(failed, [&] { static_cast<Session*>(context)->run(images, count, wanted, outputs); });
    };
    network->release = [](void* context, wgap_outputs* outputs) { static_cast<Session*>(context)->release(outputs); };
    network->destroy = [](void* context) { delete static_cast<Session*>(context); };
    network->context = session.release();
  });
}
}
