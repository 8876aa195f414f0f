// The weights of an engine that was built without them, out of the ONNX file that it was built from.
#pragma once

#include <NvInferRuntime.h>

#include "library.h"

namespace wgap::sdk {

// Whether the engine has its weights now; where it has not, the log says why. tensorrt: the library of that version
// number that the engine is of. Its ONNX parser is the file that WGAP_TENSORRT_PARSER names, else beside it. Throws
// Failure where there is none.
bool refit(nvinfer1::ICudaEngine& engine, nvinfer1::ILogger& log, const LoadedLibrary& tensorrt, std::int32_t version,
           const wgap_network_request& request);

}  // namespace wgap::sdk
