// Enough of TensorRT to run an engine, on the emulated driver or on a real one. A plan is a line of text,
// `plan K C h w H W h' w'` and words that ask for faults; what it computes is FakeNetwork's outputs: the image comes to
// pinned memory, a function of the host computes there where the stream reaches it, and the outputs go to the addresses
// that it was given, so that all of it can be captured. defaults.h, made from TensorRT's own header, ends the program
// where more is called.
#include <dlfcn.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <type_traits>

#include "../fake.h"
#include "NvInferRuntime.h"
#include "defaults.h"

using namespace nvinfer1;

#ifndef STAND_IN_VERSION
#define STAND_IN_VERSION (NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH)
#endif

namespace {

struct Driver {
  int (*launch)(void*, void (*)(void*), void*);
  int (*to_host)(void*, unsigned long long, std::size_t, void*);
  int (*to_device)(unsigned long long, const void*, std::size_t, void*);
  int (*pin)(void**, std::size_t, unsigned);
  int (*unpin)(void*);

  Driver() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    EXPECT(library != nullptr);
    const auto find = [&](auto* function, const char* name) {
      *function = reinterpret_cast<std::remove_reference_t<decltype(*function)>>(dlsym(library, name));
      EXPECT(*function != nullptr);
    };
    find(&launch, "cuLaunchHostFunc"), find(&pin, "cuMemHostAlloc"), find(&unpin, "cuMemFreeHost");
    find(&to_host, "cuMemcpyDtoHAsync_v2"), find(&to_device, "cuMemcpyHtoDAsync_v2");
  }
};
Driver& driver() {
  static Driver one;
  return one;
}
std::atomic<int> engines{0}, contexts{0};

struct Plan {
  int classes = 0, channels = 0, height = 0, width = 0, input_height = 0, input_width = 0;
  int score_height = 0, score_width = 0;  // 0: no foreground
  std::string words;
  bool stripped = false;  // of its weights, as it is until they are back

  bool asks(const char* word) const { return words.find(word) != std::string::npos; }
};

struct Context : ContextDefaults, IExecutionContext {
  const Plan& plan;
  ILogger& log;
  std::int64_t count = 0;
  struct Buffer {
    unsigned long long at = 0;
    void* pinned = nullptr;
    std::size_t bytes = 0;
  };
  std::map<std::string, Buffer> buffers;
  std::atomic<int> runs{0};

  Context(const Plan& of, ILogger& to) : plan(of), log(to) { mImpl = this, ++contexts; }
  ~Context() override {
    for (auto& [_, buffer] : buffers) driver().unpin(buffer.pinned);
    --contexts;
  }
  bool setInputShape(const char* name, const Dims& shape) noexcept override {
    EXPECT(std::string(name) == "image" && shape.nbDims == 4 && shape.d[1] == plan.input_height && shape.d[3] == 3);
    return count = shape.d[0], count > 0;
  }
  bool setTensorAddress(const char* name, void* address) noexcept override {
    const std::string of = name;
    const int cells = of == "image"      ? plan.input_height * plan.input_width * 3
                      : of == "logits"   ? plan.classes * 4
                      : of == "features" ? plan.channels * plan.height * plan.width * 4
                                         : plan.score_height * plan.score_width * 4;
    Buffer& buffer = buffers[of];
    buffer.at = reinterpret_cast<unsigned long long>(address);
    buffer.bytes = static_cast<std::size_t>(count * cells);
    if (buffer.bytes == 0) return false;  // no such tensor
    return driver().pin(&buffer.pinned, buffer.bytes, 1) == 0;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override {
    if (plan.stripped) return log.log(ILogger::Severity::kERROR, "no weights"), false;
    if (plan.asks("tired") && ++runs > 1) return log.log(ILogger::Severity::kERROR, "the device is tired"), false;
    const Buffer& image = buffers.at("image");
    bool queued = driver().to_host(image.pinned, image.at, image.bytes, stream) == 0 &&
                  driver().launch(stream, [](void* self) { static_cast<Context*>(self)->compute(); }, this) == 0;
    for (const auto& [name, buffer] : buffers)
      if (name != "image") queued = queued && driver().to_device(buffer.at, buffer.pinned, buffer.bytes, stream) == 0;
    return queued;
  }
  void compute() {
    FakeNetwork fake(Sizes{plan.classes, plan.channels, plan.height * plan.width, plan.input_height * plan.input_width,
                           plan.score_height * plan.score_width});
    const auto* const images = static_cast<const std::uint8_t*>(buffers.at("image").pinned);
    const auto made = fake.run(images, count, WGAP_LOGITS | WGAP_FEATURES | WGAP_FOREGROUND);
    for (auto& [name, buffer] : buffers)
      if (name != "image")
        std::memcpy(buffer.pinned,
                    (name == "logits"     ? made->logits
                     : name == "features" ? made->features
                                          : made->foreground)
                        .data(),
                    buffer.bytes);
  }
};

struct Engine : EngineDefaults, ICudaEngine {
  Plan plan;
  ILogger& log;

  Engine(Plan of, ILogger& to) : plan(std::move(of)), log(to) { mImpl = this, ++engines; }
  ~Engine() override { --engines; }
  std::int32_t getNbIOTensors() const noexcept override { return plan.score_height > 0 ? 4 : 3; }
  const char* getIOTensorName(std::int32_t i) const noexcept override {
    constexpr const char* kNames[] = {"image", "logits", "features", "foreground"};
    return kNames[i];
  }
  DataType getTensorDataType(const char* name) const noexcept override {
    return std::string(name) == "image" ? DataType::kUINT8 : plan.asks("half") ? DataType::kHALF : DataType::kFLOAT;
  }
  Dims getTensorShape(const char* name) const noexcept override {
    const std::string one = name;
    if (one == "image") return {4, {-1, plan.input_height, plan.input_width, 3}};
    if (one == "logits") return {2, {-1, plan.classes}};
    if (one == "foreground") return {4, {-1, 1, plan.score_height, plan.score_width}};
    return {4, {-1, plan.channels, plan.height, plan.width}};
  }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
    return plan.asks("contextless") ? nullptr : new Context(plan, log);
  }
};

// Puts weights back; the right ones are of the size that the plan tells: `stripped of model BYTES;`.
struct Refitter : RefitterDefaults, IRefitter {
  Engine& engine;
  ILogger& log;
  std::string given;

  Refitter(Engine& of, ILogger& to) : engine(of), log(to) { mImpl = this; }
  bool setNamedWeights(const char* name, Weights weights) noexcept override {
    given = std::string(name) + " " + std::to_string(weights.count) + ";";
    return true;
  }
  bool refitCudaEngine() noexcept override {
    if (!engine.plan.asks(("stripped of " + given).c_str()))
      return log.log(ILogger::Severity::kERROR, "the weights do not fit"), false;
    engine.plan.stripped = false;
    return true;
  }
};

struct Runtime : RuntimeDefaults, IRuntime {
  ILogger& log;
  bool host_code = false;

  explicit Runtime(ILogger& to) : log(to) { mImpl = this; }
  void setEngineHostCodeAllowed(bool allowed) noexcept override { host_code = allowed; }
  ICudaEngine* deserializeCudaEngine(const void* data, std::size_t bytes) noexcept override {
    std::istringstream text(std::string(static_cast<const char*>(data), bytes));
    std::string word;
    Plan plan;
    text >> word >> plan.classes >> plan.channels >> plan.height >> plan.width >> plan.input_height >> plan.input_width;
    text >> plan.score_height >> plan.score_width;
    std::getline(text, plan.words);
    plan.stripped = plan.asks("stripped");
    if (word != "plan" || plan.classes < 1 || (plan.asks("compatible") && !host_code))
      return log.log(ILogger::Severity::kERROR, "not a plan"), nullptr;
    return new Engine(plan, log);
  }
};

}  // namespace

extern "C" {
__attribute__((visibility("default"))) void* createInferRefitter_INTERNAL(void* engine, void* log,
                                                                          std::int32_t version) noexcept {
  auto* const of = static_cast<Engine*>(static_cast<ICudaEngine*>(engine));
  return version == STAND_IN_VERSION ? static_cast<IRefitter*>(new Refitter(*of, *static_cast<ILogger*>(log)))
                                     : nullptr;
}
__attribute__((visibility("default"))) void* createInferRuntime_INTERNAL(void* log, std::int32_t version) noexcept {
  return version == STAND_IN_VERSION ? static_cast<IRuntime*>(new Runtime(*static_cast<ILogger*>(log))) : nullptr;
}
__attribute__((visibility("default"))) std::int32_t getInferLibVersion() noexcept { return STAND_IN_VERSION; }
__attribute__((visibility("default"))) std::int32_t getInferLibBuildVersion() noexcept { return 48; }
__attribute__((visibility("default"))) int stand_in_alive() { return engines + contexts; }
}
