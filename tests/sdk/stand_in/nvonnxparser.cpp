// Enough of TensorRT's ONNX parser to refit the stand-in's engines: a model's bytes are its weights.
#include <NvOnnxParser.h>

#include <cstdlib>

namespace {

struct ParserRefitter : nvonnxparser::IParserRefitter {
  nvinfer1::IRefitter& refitter;
  nvinfer1::ILogger& log;

  ParserRefitter(nvinfer1::IRefitter& of, nvinfer1::ILogger& to) : refitter(of), log(to) {}
  bool refitFromBytes(const void* model, size_t bytes, const char*) noexcept override {
    if (*static_cast<const char*>(model) == 8)  // ir_version, the first field
      return refitter.setNamedWeights("model", {nvinfer1::DataType::kUINT8, model, static_cast<std::int64_t>(bytes)});
    return log.log(nvinfer1::ILogger::Severity::kERROR, "not a model"), false;
  }
  bool refitFromFile(const char*) noexcept override { std::abort(); }
  int32_t getNbErrors() const noexcept override { std::abort(); }
  const nvonnxparser::IParserError* getError(int32_t) const noexcept override { std::abort(); }
  void clearErrors() override { std::abort(); }
  bool loadModelProto(const void*, size_t, const char*) noexcept override { std::abort(); }
  bool loadInitializer(const char*, const void*, size_t) noexcept override { std::abort(); }
  bool refitModelProto() noexcept override { std::abort(); }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void* log,
                                                                                            int version) noexcept {
  if (version != NV_ONNX_PARSER_VERSION) return nullptr;
  return static_cast<nvonnxparser::IParserRefitter*>(
      new ParserRefitter(*static_cast<nvinfer1::IRefitter*>(refitter), *static_cast<nvinfer1::ILogger*>(log)));
}
