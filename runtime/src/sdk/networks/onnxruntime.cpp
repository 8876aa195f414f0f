// The module of ONNX Runtime's CPU provider. The library is found at run time; its header alone is needed to build this.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../outputs.h"
#include "library.h"

namespace {

using wgap::sdk::fail;
using wgap::sdk::guarded;
using wgap::sdk::text;

constexpr int kApi = 20;  // of ONNX Runtime 1.20: every function that is called here is there
constexpr const char* kLibrary = "libonnxruntime.so.1";

// -- The library --

constexpr wgap::sdk::LibrarySearch kSearch = {"onnxruntime",         "ONNX Runtime 1.20 or newer", "WGAP_ONNXRUNTIME",
                                              "libonnxruntime.so.1", "onnxruntime/capi",           "OrtGetApiBase"};

struct Library {
  const OrtApi* api = nullptr;
  std::string version;
  OrtEnv* environment = nullptr;
};

// Its environment, one for the life of the process: it outlives every session.
Library load(const char* option) {
  static std::mutex lock;
  static auto& loaded =
      *new std::map<void*, Library>;  // never destroyed: localizers of static lifetime outlive what is
  const wgap::sdk::LoadedLibrary file = wgap::sdk::load_library(kSearch, option);
  const std::lock_guard<std::mutex> held(lock);
  Library& library = loaded[file.handle];
  if (library.environment != nullptr) return library;
  const OrtApiBase* const base = file.symbol<const OrtApiBase*()>("OrtGetApiBase")();
  library.version = base->GetVersionString();
  library.api = base->GetApi(kApi);
  if (library.api == nullptr)
    fail(WGAP_BACKEND_ERROR, "%s is ONNX Runtime %s, which is too old: expected 1.%d or newer", file.path.c_str(),
         library.version.c_str(), kApi);
  if (OrtStatus* const status = library.api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "wgap", &library.environment))
    fail(WGAP_BACKEND_ERROR, "ONNX Runtime %s: %s", library.version.c_str(), library.api->GetErrorMessage(status));
  return library;
}

// -- One session --

class Session {
 public:
  explicit Session(const wgap_network_request& request) : library_(load(request.library)), api_(*library_.api) {
    OrtSessionOptions* raw = nullptr;
    check(api_.CreateSessionOptions(&raw));
    const std::unique_ptr<OrtSessionOptions, void (*)(OrtSessionOptions*)> options(raw, api_.ReleaseSessionOptions);
    check(api_.SetSessionGraphOptimizationLevel(raw, ORT_ENABLE_ALL));
    check(api_.SetSessionLogSeverityLevel(raw, ORT_LOGGING_LEVEL_FATAL));
    check(api_.SetIntraOpNumThreads(raw, wgap::sdk::threads_for(request)));  // 0: physical cores
    OrtStatus* const status =
        api_.CreateSessionFromArray(library_.environment, request.content, request.content_bytes, raw, &session_);
    if (status != nullptr)
      fail(WGAP_BACKEND_ERROR,
           "ONNX Runtime %s refuses %s: %s. If the file is damaged, copy the bundle again or export it again",
           library_.version.c_str(), request.path, said(status).c_str());
    try {
      check(api_.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
      check(api_.GetAllocatorWithDefaultOptions(&allocator_));
      for (std::int32_t i = 0; i < request.tensor_count; ++i) compare(request.tensors[i], request.path);
    } catch (...) {
      release();
      throw;
    }
  }
  ~Session() { release(); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const char* version() const { return library_.version.c_str(); }

  void run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted, wgap_outputs* outputs) const {
    const auto known = wgap::sdk::places_of(outputs);
    const char* names[3];
    std::size_t asked = 0;
    for (const wgap::sdk::OutputPlace& output : known)
      if ((wanted & output.bit) != 0) names[asked++] = output.name;
    const std::int64_t shape[] = {count, image_[1], image_[2], image_[3]};
    const std::size_t bytes = static_cast<std::size_t>(count * image_[1] * image_[2] * image_[3]);
    auto values = std::make_unique<Values>(*this);
    check(api_.CreateTensorWithDataAsOrtValue(memory_, const_cast<std::uint8_t*>(images), bytes, shape, 4,
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &values->input));
    const char* const input = "image";
    const OrtValue* const given = values->input;
    OrtStatus* const status = api_.Run(session_, nullptr, &input, &given, 1, names, asked, values->outputs);
    if (status != nullptr)
      fail(WGAP_BACKEND_ERROR, "ONNX Runtime failed on a batch of %lld: %s", static_cast<long long>(count),
           said(status).c_str());
    std::size_t n = 0;
    for (const wgap::sdk::OutputPlace& output : known) {
      if ((wanted & output.bit) == 0) continue;
      void* data = nullptr;
      OrtTensorTypeAndShapeInfo* about = nullptr;
      check(api_.GetTensorMutableData(values->outputs[n], &data));
      check(api_.GetTensorTypeAndShape(values->outputs[n++], &about));
      std::size_t elements = 0;
      OrtStatus* const counted = api_.GetTensorShapeElementCount(about, &elements);
      api_.ReleaseTensorTypeAndShapeInfo(about);
      check(counted);
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

  const Library library_;
  const OrtApi& api_;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  OrtAllocator* allocator_ = nullptr;  // the library's own
  std::int64_t image_[4] = {};

  void release() {
    api_.ReleaseMemoryInfo(memory_);
    api_.ReleaseSession(session_);
  }

  std::string said(OrtStatus* status) const {
    std::string message = api_.GetErrorMessage(status);
    api_.ReleaseStatus(status);
    return message;
  }
  void check(OrtStatus* status) const {
    if (status != nullptr)
      fail(WGAP_BACKEND_ERROR, "ONNX Runtime %s: %s", library_.version.c_str(), said(status).c_str());
  }

  // One input or output of the graph with what the manifest promises.
  void compare(const wgap_tensor& promised, const char* path) {
    const bool is_input = promised.type == WGAP_UINT8;
    const bool image = std::strcmp(promised.name, "image") == 0;
    std::string got = "no such tensor";
    bool same = false;
    for (const bool inputs : {true, false}) {
      std::size_t count = 0;
      check(inputs ? api_.SessionGetInputCount(session_, &count) : api_.SessionGetOutputCount(session_, &count));
      for (std::size_t i = 0; i < count; ++i) {
        char* name = nullptr;
        check(inputs ? api_.SessionGetInputName(session_, i, allocator_, &name)
                     : api_.SessionGetOutputName(session_, i, allocator_, &name));
        const bool this_one = std::strcmp(name, promised.name) == 0;
        check(api_.AllocatorFree(allocator_, name));
        if (!this_one) continue;
        OrtTypeInfo* kind = nullptr;
        check(inputs ? api_.SessionGetInputTypeInfo(session_, i, &kind)
                     : api_.SessionGetOutputTypeInfo(session_, i, &kind));
        const std::unique_ptr<OrtTypeInfo, void (*)(OrtTypeInfo*)> held(kind, api_.ReleaseTypeInfo);
        const OrtTensorTypeAndShapeInfo* about = nullptr;
        check(api_.CastTypeInfoToTensorInfo(kind, &about));
        if (about == nullptr) continue;
        ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        std::size_t rank = 0;
        check(api_.GetTensorElementType(about, &type));
        check(api_.GetDimensionsCount(about, &rank));
        std::vector<std::int64_t> extents(rank);
        check(api_.GetDimensions(about, extents.data(), rank));
        got = text("type %d [", static_cast<int>(type));
        for (std::int64_t& extent : extents) {
          extent = extent > 0 ? extent : -1;
          got += (got.back() == '[' ? "" : ", ") + (extent > 0 ? std::to_string(extent) : std::string("N"));
        }
        got += "]";
        same = type == (is_input ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) &&
               rank == static_cast<std::size_t>(promised.rank) &&
               std::equal(extents.begin(), extents.end(), promised.extents);
      }
    }
    if (!same)
      fail(WGAP_BUNDLE_ERROR, "%s: the manifest promises %s of rank %d, got %s; export the bundle again", path,
           promised.name, promised.rank, got.c_str());
    if (image) std::copy_n(promised.extents, 4, image_);
  }
};

wgap_status run(void* context, const std::uint8_t* images, std::int64_t count, std::uint32_t wanted,
                wgap_outputs* outputs, wgap_error* error) {
  return guarded(error, [&] { static_cast<const Session*>(context)->run(images, count, wanted, outputs); });
}

}  // namespace

extern "C" __attribute__((visibility("default"))) wgap_status wgap_network_open(const wgap_network_request* request,
                                                                                wgap_network* network,
                                                                                wgap_error* error) {
  return guarded(error, [&] {
    auto session = std::make_unique<Session>(*request);
    network->version = session->version();
    network->name = "onnxruntime";
    network->run = run;
    network->release = [](void*, wgap_outputs* outputs) { Session::release(outputs); };
    network->destroy = [](void* context) { delete static_cast<Session*>(context); };
    network->context = session.release();
  });
}
