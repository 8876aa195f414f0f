// The module of TensorRT: a checked engine, and the kernel behind it on the same stream. Both the library and the driver
// are found at run time; the library must be of the major version whose headers this was built with.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "gpu_network.h"
#include "library.h"
#include "refit.h"

namespace {

using wgap::sdk::CudaContext;
using wgap::sdk::CudaDriver;
using wgap::sdk::CudaHandle;
using wgap::sdk::fail;
using wgap::sdk::GpuNetwork;
using wgap::sdk::guarded;
using wgap::sdk::opened;
using wgap::sdk::text;

#define WGAP_TEXT(number) WGAP_TEXT_OF(number)
#define WGAP_TEXT_OF(number) #number
constexpr wgap::sdk::LibrarySearch kSearch = {"tensorrt",      "TensorRT",
                                              "WGAP_TENSORRT", "libnvinfer.so." WGAP_TEXT(NV_TENSORRT_MAJOR),
                                              "tensorrt_libs", "createInferRuntime_INTERNAL"};

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

// Never destroyed: the library keeps the first that it is given for what belongs to no session.
Log& log_of_library() {
  static Log& log = *new Log;
  return log;
}

class Session : public GpuNetwork {
 public:
  explicit Session(const wgap_network_request& request)
      : GpuNetwork(request, "TensorRT", true), library_(request.library) {
    const CudaContext::Use use(context_);
    auto* const create = library_.file.symbol<void*(void*, std::int32_t)>("createInferRuntime_INTERNAL");
    runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(&log_, library_.number)));
    if (runtime_ == nullptr) refuse("makes no runtime");
    if (request.version_compatible != 0) runtime_->setEngineHostCodeAllowed(true);  // such a plan brings what it needs
    engine_.reset(runtime_->deserializeCudaEngine(request.content, request.content_bytes));
    if (engine_ == nullptr) refuse(text("refuses %s", request.path));
    if (request.source != nullptr && !refit(*engine_, log_, library_.file, library_.number, request))
      refuse(text("cannot refit its engine from %s", request.source_path));
    for (std::int32_t i = 0; i < request.tensor_count; ++i) compare(request.tensors[i], request.path);
  }
  ~Session() override {
    const bool gone = !in_context([this] {
      close();
      engine_.reset();
      runtime_.reset();
    });
    if (!gone) return;
    abandon();
    static_cast<void>(engine_.release()), static_cast<void>(runtime_.release());
  }

  const char* version() const { return library_.version.c_str(); }

 private:
  struct Context : Execution {
    const Session& session;
    const std::unique_ptr<nvinfer1::IExecutionContext> context;

    explicit Context(const Session& of) : session(of), context(of.engine_->createExecutionContext()) {}
    void enqueue(CudaHandle stream) override {
      if (!context->enqueueV3(static_cast<cudaStream_t>(stream))) session.refuse("failed on a batch");
    }
  };

  const Library library_;
  Log& log_ = log_of_library();
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;

  [[noreturn]] void refuse(const std::string& what) const {
    fail(WGAP_BACKEND_ERROR, "TensorRT %s %s: %s", library_.version.c_str(), what.c_str(), log_.reason().c_str());
  }

  std::unique_ptr<Execution> execution(std::int64_t count, std::uint32_t, const Addresses& at) override {
    auto made = std::make_unique<Context>(*this);
    if (made->context == nullptr) refuse("makes no execution context");
    const Tensor& image = tensors_.front();
    nvinfer1::Dims shape = {};
    shape.nbDims = 4;
    shape.d[0] = count;
    std::copy_n(image.extents.begin() + 1, 3, shape.d + 1);
    if (!made->context->setInputShape(image.name.c_str(), shape))
      refuse(text("takes no batch of %lld", static_cast<long long>(count)));
    for (const auto& [name, address] : at)
      if (!made->context->setTensorAddress(name.c_str(), reinterpret_cast<void*>(address)))
        refuse("takes no address for " + name);
    return made;
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
    add(promised);
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
  return opened(request, error, [&] {
    auto session = std::make_unique<Session>(*request);
    const char* const version = session->version();
    GpuNetwork::fill(network, "tensorrt", version, std::move(session));
  });
}
}
