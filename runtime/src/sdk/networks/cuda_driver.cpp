#include "cuda_driver.h"

#include <dlfcn.h>

#include <algorithm>

#include "../failure.h"

namespace wgap::sdk {
namespace {

constexpr int kVersion = 12000;          // of the interface that is asked for
constexpr int kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR

CudaDriver load() {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  const auto find = library == nullptr ? nullptr
                                       : reinterpret_cast<int (*)(const char*, void**, int, std::uint64_t, int*)>(
                                             dlsym(library, "cuGetProcAddress_v2"));
  if (find == nullptr)
    fail(WGAP_BACKEND_ERROR, "no NVIDIA driver for CUDA 12 or newer on this machine; use the backend onnxruntime");
  CudaDriver driver;
  const auto found = [&](const char* name) {
    void* function = nullptr;
    int status = 0;
    if (find(name, &function, kVersion, 0, &status) != 0 || function == nullptr)
      fail(WGAP_BACKEND_ERROR, "the NVIDIA driver has no %s; expected one for CUDA 12 or newer", name);
    return function;
  };
#define WGAP_FIND(name, arguments) driver.name = reinterpret_cast<int(*) arguments>(found(#name));
  WGAP_CUDA_FUNCTIONS(WGAP_FIND)
#undef WGAP_FIND
  int count = 0;
  if (driver.cuInit(0) != 0 || driver.cuDeviceGetCount(&count) != 0 || count == 0)
    fail(WGAP_BACKEND_ERROR, "no NVIDIA GPU on this machine; use the backend onnxruntime");
  return driver;
}

}  // namespace

const CudaDriver& CudaDriver::get() {
  static const CudaDriver driver = load();  // tried again where it threw
  return driver;
}

void CudaDriver::check(int code, const char* what) const {
  if (code == 0) return;
  const char* said = nullptr;
  cuGetErrorString(code, &said);
  fail(WGAP_BACKEND_ERROR, "%s failed: %s", what, said != nullptr ? said : std::to_string(code).c_str());
}

CudaDriver::Gpu CudaDriver::gpu(const char* device) const {
  const std::string asked = device != nullptr ? device : "0";
  int count = 0;
  check(cuDeviceGetCount(&count), "cuDeviceGetCount");
  std::string have;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    int handle = 0, major = 0, minor = 0;
    unsigned char bytes[16] = {};
    check(cuDeviceGet(&handle, ordinal), "cuDeviceGet");
    check(cuDeviceGetUuid(bytes, handle), "cuDeviceGetUuid");
    check(cuDeviceGetAttribute(&major, kMajor, handle), "cuDeviceGetAttribute");
    check(cuDeviceGetAttribute(&minor, kMinor, handle), "cuDeviceGetAttribute");
    std::string uuid = "GPU-";
    for (int i = 0; i < 16; ++i) uuid += (i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "") + text("%02x", bytes[i]);
    const bool same = asked == uuid || (asked.rfind("MIG-", 0) == 0 && asked.substr(4) == uuid.substr(4));
    if (asked == std::to_string(ordinal) || same)
      return {ordinal, uuid, std::to_string(major) + "." + std::to_string(minor)};
    have += (have.empty() ? "" : ", ") + text("%d (%s)", ordinal, uuid.c_str());
  }
  fail(WGAP_BACKEND_ERROR, "no GPU %s on this machine; expected an ordinal or a UUID of: %s", in_quotes(asked).c_str(),
       have.c_str());
}

CudaMemory::CudaMemory(const CudaDriver& driver, Kind kind, std::size_t bytes) : driver_(driver), kind_(kind) {
  constexpr unsigned kPortableAndMapped = 3;
  void* host = nullptr;
  bytes = std::max<std::size_t>(bytes, 1);
  if (kind_ == kDevice) {
    driver_.check(driver_.cuMemAlloc(&address_, bytes), "cuMemAlloc");
  } else {
    driver_.check(driver_.cuMemHostAlloc(&host, bytes, kPortableAndMapped), "cuMemHostAlloc");
    address_ = reinterpret_cast<CudaPointer>(host);
  }
}

CudaMemory::CudaMemory(CudaMemory&& other) noexcept
    : driver_(other.driver_), kind_(other.kind_), address_(std::exchange(other.address_, 0)) {}

CudaMemory::~CudaMemory() {
  if (address_ == 0) return;
  kind_ == kDevice ? driver_.cuMemFree(address_) : driver_.cuMemFreeHost(as<void>());
}

CudaContext::CudaContext(const CudaDriver& driver, int ordinal) : driver_(driver), ordinal_(ordinal) {
  driver_.check(driver_.cuDevicePrimaryCtxRetain(&handle_, ordinal), "cuDevicePrimaryCtxRetain");
}

CudaContext::Use::Use(const CudaContext& context) : driver_(context.driver_) {
  driver_.check(driver_.cuCtxPushCurrent(context.handle_), "cuCtxPushCurrent");
}

CudaContext::Use::~Use() {
  CudaHandle before = nullptr;
  driver_.cuCtxPopCurrent(&before);
}

}  // namespace wgap::sdk
