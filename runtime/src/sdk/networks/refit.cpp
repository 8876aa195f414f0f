#include "refit.h"

#if __has_include(<NvOnnxParser.h>)
#include <NvOnnxParser.h>

#include <cstdlib>
#include <memory>

#define WGAP_TEXT(number) WGAP_TEXT_OF(number)
#define WGAP_TEXT_OF(number) #number

namespace wgap::sdk {

bool refit(nvinfer1::ICudaEngine& engine, nvinfer1::ILogger& log, const LoadedLibrary& tensorrt, std::int32_t version,
           const wgap_network_request& request) {
  const char* const named = std::getenv("WGAP_TENSORRT_PARSER");
  const std::string folder =
      tensorrt.path.substr(0, tensorrt.path.rfind('/') + 1);  // empty: the loader's path has both
  const std::string path =
      named != nullptr && *named != 0 ? named : folder + "libnvonnxparser.so." WGAP_TEXT(NV_TENSORRT_MAJOR);
  const LoadedLibrary parser = {dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL), path};  // stays loaded, as every library
  if (parser.handle == nullptr)
    fail(WGAP_MISSING_DEPENDENCY_ERROR,
         "%s was built without its weights, which TensorRT's ONNX parser puts back, and that could not be loaded: %s; "
         "name the file in WGAP_TENSORRT_PARSER, or build an engine with its weights",
         request.path, dlerror());
  auto* const parse = parser.symbol<void*(void*, void*, int)>("createNvOnnxParserRefitter_INTERNAL");
  if (parse == nullptr)
    fail(WGAP_MISSING_DEPENDENCY_ERROR,
         "%s is no ONNX parser of TensorRT's: it has no createNvOnnxParserRefitter_INTERNAL", path.c_str());
  auto* const create = tensorrt.symbol<void*(void*, void*, std::int32_t)>("createInferRefitter_INTERNAL");
  if (create == nullptr)
    fail(WGAP_MISSING_DEPENDENCY_ERROR, "%s puts no weights back: it has no createInferRefitter_INTERNAL",
         tensorrt.path.c_str());
  const std::unique_ptr<nvinfer1::IRefitter> refitter(
      static_cast<nvinfer1::IRefitter*>(create(&engine, &log, version)));
  if (refitter == nullptr) return false;
  const std::unique_ptr<nvonnxparser::IParserRefitter> source(
      static_cast<nvonnxparser::IParserRefitter*>(parse(refitter.get(), &log, NV_ONNX_PARSER_VERSION)));
  return source != nullptr && source->refitFromBytes(request.source, request.source_bytes) &&
         refitter->refitCudaEngine();
}

}  // namespace wgap::sdk

#else

namespace wgap::sdk {

bool refit(nvinfer1::ICudaEngine&, nvinfer1::ILogger&, const LoadedLibrary&, std::int32_t,
           const wgap_network_request& request) {
  fail(WGAP_BACKEND_ERROR,
       "%s was built without its weights, and this module without NvOnnxParser.h, with which it would put them back; "
       "build an engine with its weights, or build the module with that header beside TensorRT's own",
       request.path);
}

}  // namespace wgap::sdk

#endif
