// Enough of TensorRT to run an engine against the emulated driver. A plan is a line of text, `plan K C h w H W` and words
// that ask for faults; what it computes is FakeNetwork's outputs, where the stream reaches it, from and into the device
// addresses that it was given. defaults.h, made from TensorRT's own header, ends the program where more is called.
#include <dlfcn.h>

#include <atomic>
#include <memory>
#include <sstream>
#include <string>

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
  int (*to_host)(void*, unsigned long long, std::size_t);
  int (*to_device)(unsigned long long, const void*, std::size_t);

  Driver() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    EXPECT(library != nullptr);
    launch = reinterpret_cast<decltype(launch)>(dlsym(library, "cuLaunchHostFunc"));
    to_host = reinterpret_cast<decltype(to_host)>(dlsym(library, "cuMemcpyDtoH"));
    to_device = reinterpret_cast<decltype(to_device)>(dlsym(library, "cuMemcpyHtoD"));
  }
};
Driver& driver() {
  static Driver one;
  return one;
}
std::atomic<int> engines{0}, contexts{0};

struct Plan {
  int classes = 0, channels = 0, height = 0, width = 0, input_height = 0, input_width = 0;
  std::string words;

  bool asks(const char* word) const { return words.find(word) != std::string::npos; }
};

struct Context : ContextDefaults, IExecutionContext {
  const Plan& plan;
  ILogger& log;
  std::int64_t count = 0;
  unsigned long long image = 0, logits = 0, features = 0;
  std::atomic<int> runs{0};

  Context(const Plan& of, ILogger& to) : plan(of), log(to) { mImpl = this, ++contexts; }
  ~Context() override { --contexts; }
  bool setInputShape(const char* name, const Dims& shape) noexcept override {
    EXPECT(std::string(name) == "image" && shape.nbDims == 4 && shape.d[1] == plan.input_height && shape.d[3] == 3);
    return count = shape.d[0], count > 0;
  }
  bool setTensorAddress(const char* name, void* address) noexcept override {
    const auto at = reinterpret_cast<unsigned long long>(address);
    (std::string(name) == "image" ? image : std::string(name) == "logits" ? logits : features) = at;
    return true;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override {
    if (plan.asks("tired") && ++runs > 1) return log.log(ILogger::Severity::kERROR, "the device is tired"), false;
    return driver().launch(stream, [](void* self) { static_cast<Context*>(self)->compute(); }, this) == 0;
  }
  void compute() {
    const std::size_t pixels = static_cast<std::size_t>(plan.input_height * plan.input_width) * 3;
    std::vector<std::uint8_t> images(pixels * static_cast<std::size_t>(count));
    EXPECT(driver().to_host(images.data(), image, images.size()) == 0);
    FakeNetwork fake(
        Sizes{plan.classes, plan.channels, plan.height * plan.width, plan.input_height * plan.input_width});
    const auto made = fake.run(images.data(), count, WGAP_LOGITS | WGAP_FEATURES);
    EXPECT(driver().to_device(logits, made->logits.data(), made->logits.size() * sizeof(float)) == 0);
    EXPECT(driver().to_device(features, made->features.data(), made->features.size() * sizeof(float)) == 0);
  }
};

struct Engine : EngineDefaults, ICudaEngine {
  Plan plan;
  ILogger& log;

  Engine(Plan of, ILogger& to) : plan(std::move(of)), log(to) { mImpl = this, ++engines; }
  ~Engine() override { --engines; }
  std::int32_t getNbIOTensors() const noexcept override { return 3; }
  const char* getIOTensorName(std::int32_t i) const noexcept override {
    constexpr const char* kNames[] = {"image", "logits", "features"};
    return kNames[i];
  }
  DataType getTensorDataType(const char* name) const noexcept override {
    return std::string(name) == "image" ? DataType::kUINT8 : plan.asks("half") ? DataType::kHALF : DataType::kFLOAT;
  }
  Dims getTensorShape(const char* name) const noexcept override {
    const std::string one = name;
    if (one == "image") return {4, {-1, plan.input_height, plan.input_width, 3}};
    if (one == "logits") return {2, {-1, plan.classes}};
    return {4, {-1, plan.channels, plan.height, plan.width}};
  }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
    return plan.asks("contextless") ? nullptr : new Context(plan, log);
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
    std::getline(text, plan.words);
    if (word != "plan" || plan.classes < 1 || (plan.asks("compatible") && !host_code))
      return log.log(ILogger::Severity::kERROR, "not a plan"), nullptr;
    return new Engine(plan, log);
  }
  ICudaEngine* deserializeCudaEngine(IStreamReader&) noexcept override { std::abort(); }
};

}  // namespace

extern "C" {
__attribute__((visibility("default"))) void* createInferRuntime_INTERNAL(void* log, std::int32_t version) noexcept {
  return version == STAND_IN_VERSION ? static_cast<IRuntime*>(new Runtime(*static_cast<ILogger*>(log))) : nullptr;
}
__attribute__((visibility("default"))) std::int32_t getInferLibVersion() noexcept { return STAND_IN_VERSION; }
__attribute__((visibility("default"))) std::int32_t getInferLibBuildVersion() noexcept { return 48; }
__attribute__((visibility("default"))) int stand_in_alive() { return engines + contexts; }
}
