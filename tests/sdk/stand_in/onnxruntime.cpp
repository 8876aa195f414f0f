// ONNX Runtime whose CUDA provider is its CPU's, on the emulated driver's memory: the library that
// WGAP_REAL_ONNXRUNTIME names, with the few functions of its table replaced that a GPU is asked for by.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "../../kernel/expect.h"

namespace {

const OrtApi* real = nullptr;
OrtApi table;
using Options = std::map<std::string, std::string>;
std::atomic<int> strict{0}, appended{0};

OrtStatus* create(OrtCUDAProviderOptionsV2** made) noexcept {
  return *made = reinterpret_cast<OrtCUDAProviderOptionsV2*>(new Options), nullptr;
}
OrtStatus* update(OrtCUDAProviderOptionsV2* options, const char* const* keys, const char* const* values,
                  std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) (*reinterpret_cast<Options*>(options))[keys[i]] = values[i];
  return nullptr;
}
void release(OrtCUDAProviderOptionsV2* options) noexcept { delete reinterpret_cast<Options*>(options); }
OrtStatus* append(OrtSessionOptions*, const OrtCUDAProviderOptionsV2* given) noexcept {
  const Options& options = *reinterpret_cast<const Options*>(given);
  if (std::getenv("STAND_IN_NO_CUDA") != nullptr)
    return real->CreateStatus(ORT_FAIL, "Failed to load library libonnxruntime_providers_cuda.so");
  EXPECT(options.at("use_tf32") == "0" && options.at("device_id") == std::getenv("STAND_IN_DEVICE"));
  EXPECT(options.at("gpu_mem_limit") == std::getenv("STAND_IN_LIMIT"));
  return ++appended, nullptr;
}
OrtStatus* configure(OrtSessionOptions* options, const char* key, const char* value) noexcept {
  if (std::strcmp(key, "session.disable_cpu_ep_fallback") != 0) return real->AddSessionConfigEntry(options, key, value);
  EXPECT(std::strcmp(value, "1") == 0);
  return ++strict, nullptr;
}
OrtStatus* session(const OrtEnv* environment, const void* bytes, std::size_t count, const OrtSessionOptions* options,
                   OrtSession** made) noexcept {
  EXPECT(strict == appended);  // no node may run on the CPU instead
  return real->CreateSessionFromArray(environment, bytes, count, options, made);
}
OrtStatus* memory(const char* name, OrtAllocatorType type, int, OrtMemType kind, OrtMemoryInfo** made) noexcept {
  EXPECT(std::strcmp(name, "Cuda") == 0);
  return real->CreateMemoryInfo("Cpu", type, 0, kind, made);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase* OrtGetApiBase() noexcept {
  static const OrtApiBase* const base = [] {
    void* const library = dlopen(std::getenv("WGAP_REAL_ONNXRUNTIME"), RTLD_NOW | RTLD_LOCAL);
    EXPECT(library != nullptr);
    return reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))();
  }();
  static const OrtApiBase own = {[](std::uint32_t version) noexcept -> const OrtApi* {
                                   real = base->GetApi(version);
                                   table = *real;
                                   table.CreateCUDAProviderOptions = create;
                                   table.UpdateCUDAProviderOptions = update;
                                   table.ReleaseCUDAProviderOptions = release;
                                   table.SessionOptionsAppendExecutionProvider_CUDA_V2 = append;
                                   table.AddSessionConfigEntry = configure;
                                   table.CreateSessionFromArray = session;
                                   table.CreateMemoryInfo = memory;
                                   return &table;
                                 },
                                 base->GetVersionString};
  return &own;
}
