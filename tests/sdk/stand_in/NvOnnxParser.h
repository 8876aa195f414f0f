// What a refit calls of TensorRT's ONNX parser, in the order of its table, for headers that come without NvOnnxParser.h.
#pragma once
#include "NvInferRuntime.h"

static constexpr int NV_ONNX_PARSER_VERSION = 100;

namespace nvonnxparser {

class IParserError;

class IParserRefitter {
 public:
  virtual bool refitFromBytes(const void* model, size_t bytes, const char* path = nullptr) noexcept = 0;
  virtual bool refitFromFile(const char* path) noexcept = 0;
  virtual int32_t getNbErrors() const noexcept = 0;
  virtual const IParserError* getError(int32_t index) const noexcept = 0;
  virtual void clearErrors() = 0;
  virtual ~IParserRefitter() noexcept = default;
  virtual bool loadModelProto(const void* model, size_t bytes, const char* path = nullptr) noexcept = 0;
  virtual bool loadInitializer(const char* name, const void* data, size_t bytes) noexcept = 0;
  virtual bool refitModelProto() noexcept = 0;
};

}  // namespace nvonnxparser
