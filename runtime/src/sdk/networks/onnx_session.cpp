#include "onnx_session.h"

#include <algorithm>

namespace wgap::sdk {

OrtLibrary OrtLibrary::load(const char* backend, const char* option) {
  const LibrarySearch search = {
      backend,        "ONNX Runtime 1.20 or newer", "WGAP_ONNXRUNTIME", "libonnxruntime.so.1", "onnxruntime/capi",
      "OrtGetApiBase"};
  static std::mutex lock;
  static auto& loaded =
      *new std::map<void*, OrtLibrary>;  // never destroyed: localizers of static lifetime outlive what is
  const LoadedLibrary file = load_library(search, option);
  const std::lock_guard<std::mutex> held(lock);
  OrtLibrary& library = loaded[file.handle];
  if (library.environment != nullptr) return library;
  const OrtApiBase* const base = file.symbol<const OrtApiBase*()>("OrtGetApiBase")();
  library.version = base->GetVersionString();
  library.api = base->GetApi(kOrtApi);
  if (library.api == nullptr)
    fail(WGAP_BACKEND_ERROR, "%s is ONNX Runtime %s, which is too old: expected 1.%d or newer", file.path.c_str(),
         library.version.c_str(), kOrtApi);
  if (OrtStatus* const status = library.api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "wgap", &library.environment))
    fail(WGAP_BACKEND_ERROR, "ONNX Runtime %s: %s", library.version.c_str(), library.api->GetErrorMessage(status));
  return library;
}

OnnxSession::OnnxSession(const wgap_network_request& request, const char* backend,
                         const std::function<void(const OnnxSession&, OrtSessionOptions*)>& configure)
    : library_(OrtLibrary::load(backend, request.library)), api(*library_.api) {
  OrtSessionOptions* raw = nullptr;
  check(api.CreateSessionOptions(&raw));
  const std::unique_ptr<OrtSessionOptions, void (*)(OrtSessionOptions*)> options(raw, api.ReleaseSessionOptions);
  check(api.SetSessionGraphOptimizationLevel(raw, ORT_ENABLE_ALL));
  check(api.SetSessionLogSeverityLevel(raw, ORT_LOGGING_LEVEL_FATAL));
  configure(*this, raw);
  OrtStatus* const status =
      api.CreateSessionFromArray(library_.environment, request.content, request.content_bytes, raw, &session_);
  if (status != nullptr)
    fail(WGAP_BACKEND_ERROR,
         "ONNX Runtime %s refuses %s: %s. If the file is damaged, copy the bundle again or export it again",
         library_.version.c_str(), request.path, said(status).c_str());
  try {
    for (std::int32_t i = 0; i < request.tensor_count; ++i) compare(request.tensors[i], request.path);
  } catch (...) {
    api.ReleaseSession(session_);
    throw;
  }
}

std::string OnnxSession::said(OrtStatus* status) const {
  std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  return message;
}

void OnnxSession::check(OrtStatus* status) const {
  if (status != nullptr)
    fail(WGAP_BACKEND_ERROR, "ONNX Runtime %s: %s", library_.version.c_str(), said(status).c_str());
}

void OnnxSession::check_run(OrtStatus* status, std::int64_t count) const {
  if (status != nullptr)
    fail(WGAP_BACKEND_ERROR, "ONNX Runtime failed on a batch of %lld: %s", static_cast<long long>(count),
         said(status).c_str());
}

// One input or output of the graph with what the manifest promises.
void OnnxSession::compare(const wgap_tensor& promised, const char* path) const {
  const bool is_input = promised.type == WGAP_UINT8;
  OrtAllocator* allocator = nullptr;  // the library's own
  check(api.GetAllocatorWithDefaultOptions(&allocator));
  std::string got = "no such tensor";
  bool same = false;
  for (const bool inputs : {true, false}) {
    std::size_t count = 0;
    check(inputs ? api.SessionGetInputCount(session_, &count) : api.SessionGetOutputCount(session_, &count));
    for (std::size_t i = 0; i < count; ++i) {
      char* name = nullptr;
      check(inputs ? api.SessionGetInputName(session_, i, allocator, &name)
                   : api.SessionGetOutputName(session_, i, allocator, &name));
      const bool this_one = std::strcmp(name, promised.name) == 0;
      check(api.AllocatorFree(allocator, name));
      if (!this_one) continue;
      OrtTypeInfo* kind = nullptr;
      check(inputs ? api.SessionGetInputTypeInfo(session_, i, &kind)
                   : api.SessionGetOutputTypeInfo(session_, i, &kind));
      const std::unique_ptr<OrtTypeInfo, void (*)(OrtTypeInfo*)> held(kind, api.ReleaseTypeInfo);
      const OrtTensorTypeAndShapeInfo* about = nullptr;
      check(api.CastTypeInfoToTensorInfo(kind, &about));
      if (about == nullptr) continue;
      ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
      std::size_t rank = 0;
      check(api.GetTensorElementType(about, &type));
      check(api.GetDimensionsCount(about, &rank));
      std::vector<std::int64_t> extents(rank);
      check(api.GetDimensions(about, extents.data(), rank));
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
}

}  // namespace wgap::sdk
