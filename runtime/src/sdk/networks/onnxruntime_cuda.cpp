// The module of ONNX Runtime's CUDA provider: the network between buffers on the GPU, the kernel behind it there.
#include "gpu_network.h"
#include "onnx_session.h"

namespace {

using wgap::sdk::CudaContext;
using wgap::sdk::CudaDriver;
using wgap::sdk::CudaHandle;
using wgap::sdk::GpuNetwork;
using wgap::sdk::OnnxSession;
using wgap::sdk::opened;

constexpr std::int64_t kMemoryLimit = std::int64_t{4} << 30;  // bytes of a session's arena on the GPU, by default

// The CUDA provider and no other: what it cannot run is refused, not run on the CPU. TF32 is its default: off, so that
// float32 is float32.
void on_cuda(const OnnxSession& onnx, OrtSessionOptions* options, int ordinal, std::int64_t memory_limit) {
  OrtCUDAProviderOptionsV2* raw = nullptr;
  onnx.check(onnx.api.CreateCUDAProviderOptions(&raw));
  const std::unique_ptr<OrtCUDAProviderOptionsV2, void (*)(OrtCUDAProviderOptionsV2*)> cuda(
      raw, onnx.api.ReleaseCUDAProviderOptions);
  const std::string device = std::to_string(ordinal), limit = std::to_string(memory_limit);
  const char* const keys[] = {"device_id", "use_tf32", "gpu_mem_limit", "arena_extend_strategy"};
  const char* const values[] = {device.c_str(), "0", limit.c_str(), "kSameAsRequested"};
  onnx.check(onnx.api.UpdateCUDAProviderOptions(raw, keys, values, 4));
  onnx.check(onnx.api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, raw));
  onnx.check(onnx.api.AddSessionConfigEntry(options, "session.disable_cpu_ep_fallback", "1"));
}

class Session : public GpuNetwork {
 public:
  explicit Session(const wgap_network_request& request)
      : GpuNetwork(request, "ONNX Runtime", false) {  // its work is on a stream of its own, which no capture sees
    const CudaContext::Use use(context_);             // it leaves the thread on its own GPU
    onnx_.emplace(request, "onnxruntime_cuda", [&](const OnnxSession& onnx, OrtSessionOptions* options) {
      on_cuda(onnx, options, ordinal_, request.memory_limit > 0 ? request.memory_limit : kMemoryLimit);
    });
    for (std::int32_t i = 0; i < request.tensor_count; ++i) add(request.tensors[i]);
    onnx_->check(onnx_->api.CreateMemoryInfo("Cuda", OrtDeviceAllocator, ordinal_, OrtMemTypeDefault, &memory_));
  }
  ~Session() override {
    onnx_->api.ReleaseMemoryInfo(memory_);
    in_context([this] {
      close();
      onnx_.reset();
    });
  }

  const char* version() const { return onnx_->version(); }

 private:
  struct Binding : Execution {
    const Session& session;
    const OrtApi& api;
    const std::int64_t count;
    OrtIoBinding* binding = nullptr;
    std::vector<OrtValue*> values;

    Binding(const Session& of, std::int64_t images) : session(of), api(of.onnx_->api), count(images) {
      session.onnx_->check(api.CreateIoBinding(session.onnx_->get(), &binding));
    }
    ~Binding() override {
      api.ReleaseIoBinding(binding);
      for (OrtValue* const value : values) api.ReleaseValue(value);
    }
    void bind(const Tensor& tensor, wgap::sdk::CudaPointer at) {
      std::vector<std::int64_t> shape = tensor.extents;
      shape[0] = count;
      OrtValue* value = nullptr;
      session.onnx_->check(api.CreateTensorWithDataAsOrtValue(
          session.memory_, reinterpret_cast<void*>(at), tensor.bytes * static_cast<std::size_t>(count), shape.data(),
          shape.size(), tensor.is_image ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
          &value));
      values.push_back(value);
      session.onnx_->check(tensor.is_image ? api.BindInput(binding, tensor.name.c_str(), value)
                                           : api.BindOutput(binding, tensor.name.c_str(), value));
    }
    void enqueue(CudaHandle stream) override {
      session.driver_.check(session.driver_.cuStreamSynchronize(stream), "cuStreamSynchronize");
      try {
        session.onnx_->check_run(api.RunWithBinding(session.onnx_->get(), nullptr, binding), count);
        session.onnx_->check(api.SynchronizeBoundOutputs(binding));
      } catch (...) {  // what it began on its own stream may still write into buffers that the next call takes
        session.driver_.cuCtxSynchronize();
        throw;
      }
    }
  };

  std::optional<const OnnxSession> onnx_;
  OrtMemoryInfo* memory_ = nullptr;

  std::unique_ptr<Execution> execution(std::int64_t count, std::uint32_t wanted, const Addresses& at) override {
    auto made = std::make_unique<Binding>(*this, count);
    for (const Tensor& tensor : tensors_)
      if (tensor.is_image || (tensor.bit & wanted) != 0) made->bind(tensor, at.at(tensor.name));
    return made;
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) wgap_status wgap_network_open(const wgap_network_request* request,
                                                                                wgap_network* network,
                                                                                wgap_error* error) {
  return opened(request, error, [&] {
    auto session = std::make_unique<Session>(*request);
    const char* const version = session->version();
    GpuNetwork::fill(network, "onnxruntime_cuda", version, std::move(session));
  });
}
