// The module of ONNX Runtime's CPU provider. The library is found at run time; its header alone is needed to build this.
#include <dlfcn.h>
#include <glob.h>
#include <onnxruntime_c_api.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../cpus.h"
#include "../failure.h"
#include "../files.h"
#include "wgap/runtime.h"

namespace {

using wgap::sdk::fail;
using wgap::sdk::Failure;
using wgap::sdk::own_folder;
using wgap::sdk::text;

constexpr int kApi = 20;  // of ONNX Runtime 1.20: every function that is called here is there
constexpr const char* kLibrary = "libonnxruntime.so.1";

// -- The library --

std::vector<std::string> matches(const std::string& pattern) {
  glob_t found = {};
  std::vector<std::string> paths;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  return paths;
}

// Where the library may be, best first. One that somebody named is the only one.
std::vector<std::string> places(const char* option) {
  const auto named = [](const char* value) { return value != nullptr && *value != 0; };
  if (named(option)) return {option};
  if (const char* const variable = std::getenv("WGAP_ONNXRUNTIME"); named(variable)) return {variable};
  std::vector<std::string> found = matches(own_folder() + "/" + kLibrary + "*");
  for (const char* const name : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* const prefix = std::getenv(name); named(prefix))
      for (const std::string& path :
           matches(std::string(prefix) + "/lib/python3*/site-packages/onnxruntime/capi/" + kLibrary + "*"))
        found.push_back(path);
  found.emplace_back(kLibrary);
  return found;
}

struct Library {
  const OrtApi* api = nullptr;
  std::string version, path;
  OrtEnv* environment = nullptr;
};

// One for the life of the process: its threads and its environment outlive every session.
Library load(const char* option) {
  static std::mutex lock;
  static std::vector<Library> loaded;
  const std::lock_guard<std::mutex> held(lock);
  std::string tried;
  for (const std::string& path : places(option)) {
    for (const Library& known : loaded)
      if (known.path == path) return known;
    const bool is_file = path.find('/') != std::string::npos;
    tried += (tried.empty() ? "" : "; ") + path;
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      if (!is_file) continue;
      fail(WGAP_MISSING_DEPENDENCY_ERROR, "ONNX Runtime could not be loaded: %s", dlerror());
    }
    const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
    if (base == nullptr)
      fail(WGAP_MISSING_DEPENDENCY_ERROR, "%s is no ONNX Runtime: it has no OrtGetApiBase", path.c_str());
    Library library{base()->GetApi(kApi), base()->GetVersionString(), path};
    if (library.api == nullptr)
      fail(WGAP_BACKEND_ERROR, "%s is ONNX Runtime %s, which is too old: expected 1.%d or newer", path.c_str(),
           library.version.c_str(), kApi);
    if (OrtStatus* const status = library.api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "wgap", &library.environment);
        status != nullptr)
      fail(WGAP_BACKEND_ERROR, "ONNX Runtime %s: %s", library.version.c_str(), library.api->GetErrorMessage(status));
    loaded.push_back(library);
    return library;
  }
  fail(WGAP_MISSING_DEPENDENCY_ERROR,
       "the onnxruntime backend needs ONNX Runtime 1.%d or newer, which was not found (looked for %s); install it, "
       "name the "
       "file in the option library or in WGAP_ONNXRUNTIME, or activate the Python environment that has it",
       kApi, tried.c_str());
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
    const int allowed = wgap::sdk::allowed_cpus();
    const bool all = allowed >= sysconf(_SC_NPROCESSORS_ONLN);
    check(api_.SetIntraOpNumThreads(raw, request.threads > 0 ? request.threads
                                         : all               ? 0
                                                             : allowed));  // 0: physical cores
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
    struct Output {
      const char* name;
      std::uint32_t bit;
      const float** data;
      std::uint64_t* bytes;
    };
    const Output known[] = {{"logits", WGAP_LOGITS, &outputs->logits, &outputs->logits_bytes},
                            {"features", WGAP_FEATURES, &outputs->features, &outputs->features_bytes},
                            {"foreground", WGAP_FOREGROUND, &outputs->foreground, &outputs->foreground_bytes}};
    const char* names[3];
    std::size_t asked = 0;
    for (const Output& output : known)
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
    for (const Output& output : known) {
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

template <class Work>
wgap_status guarded(wgap_error* error, Work work) {
  try {
    work();
    return WGAP_OK;
  } catch (const Failure& failure) {
    error->status = failure.status();
    std::snprintf(error->text, sizeof error->text, "%s", failure.what());
    return failure.status();
  } catch (const std::exception& other) {
    std::snprintf(error->text, sizeof error->text, "the system failed: %s", other.what());
    return WGAP_OUT_OF_MEMORY;
  }
}

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
