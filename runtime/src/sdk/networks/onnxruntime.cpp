// The module of ONNX Runtime's CPU provider.
#include <algorithm>

#include "../outputs.h"
#include "onnx_session.h"

namespace {

using wgap::sdk::guarded;
using wgap::sdk::OnnxSession;
using wgap::sdk::opened;

class Session {
 public:
  explicit Session(const wgap_network_request& request)
      : onnx_(request, "onnxruntime",
              [&](const OnnxSession& onnx, OrtSessionOptions* options) {
                onnx.check(onnx.api.SetIntraOpNumThreads(options, wgap::sdk::threads_for(request)));  // 0: all cores
              }),
        api_(onnx_.api) {
    for (std::int32_t i = 0; i < request.tensor_count; ++i)
      if (std::strcmp(request.tensors[i].name, "image") == 0) std::copy_n(request.tensors[i].extents, 4, image_);
    onnx_.check(api_.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
  }
  ~Session() { api_.ReleaseMemoryInfo(memory_); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const char* version() const { return onnx_.version(); }

  void run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted, wgap_outputs* outputs) const {
    const auto known = wgap::sdk::places_of(outputs);
    const char* names[3];
    std::size_t asked = 0;
    for (const wgap::sdk::OutputPlace& output : known)
      if ((wanted & output.bit) != 0) names[asked++] = output.name;
    const std::int64_t shape[] = {count, image_[1], image_[2], image_[3]};
    const std::size_t bytes = static_cast<std::size_t>(count * image_[1] * image_[2] * image_[3]);
    auto values = std::make_unique<Values>(*this);
    onnx_.check(api_.CreateTensorWithDataAsOrtValue(memory_, const_cast<std::uint8_t*>(images), bytes, shape, 4,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &values->input));
    const char* const input = "image";
    const OrtValue* const given = values->input;
    OrtStatus* const status = api_.Run(onnx_.get(), nullptr, &input, &given, 1, names, asked, values->outputs);
    onnx_.check_run(status, count);
    std::size_t n = 0;
    for (const wgap::sdk::OutputPlace& output : known) {
      if ((wanted & output.bit) == 0) continue;
      void* data = nullptr;
      OrtTensorTypeAndShapeInfo* about = nullptr;
      onnx_.check(api_.GetTensorMutableData(values->outputs[n], &data));
      onnx_.check(api_.GetTensorTypeAndShape(values->outputs[n++], &about));
      std::size_t elements = 0;
      OrtStatus* const counted = api_.GetTensorShapeElementCount(about, &elements);
      api_.ReleaseTensorTypeAndShapeInfo(about);
      onnx_.check(counted);
      *output.data = static_cast<const float*>(data), *output.bytes = elements * sizeof(float);
    }
    outputs->lease = values.release();
  }
  static void release(wgap_outputs* outputs) { delete static_cast<Values*>(outputs->lease); }

 private:
  struct Values {
    const Session& session;
    OrtValue* input = nullptr;
    OrtValue* outputs[3] = {};

    explicit Values(const Session& of) : session(of) {}
    ~Values() {
      session.api_.ReleaseValue(input);
      for (OrtValue* const value : outputs) session.api_.ReleaseValue(value);
    }
  };

  const OnnxSession onnx_;
  const OrtApi& api_;
  OrtMemoryInfo* memory_ = nullptr;
  std::int64_t image_[4] = {};
};

wgap_status run(void* context, const std::uint8_t* images, std::int64_t count, std::uint32_t wanted,
                wgap_outputs* outputs, wgap_error* error) {
  return guarded(error, [&] { static_cast<const Session*>(context)->run(images, count, wanted, outputs); });
}

}  // namespace

extern "C" __attribute__((visibility("default"))) wgap_status wgap_network_open(const wgap_network_request* request,
                                                                                wgap_network* network,
                                                                                wgap_error* error) {
  return opened(request, error, [&] {
    auto session = std::make_unique<Session>(*request);
    network->version = session->version();
    network->name = "onnxruntime";
    network->run = run;
    network->release = [](void*, wgap_outputs* outputs) { Session::release(outputs); };
    network->destroy = [](void* context) { delete static_cast<Session*>(context); };
    network->context = session.release();
  });
}
