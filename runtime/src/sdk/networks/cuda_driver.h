// The few words of the CUDA driver that a module needs, found at run time: neither its header nor its library is linked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace wgap::sdk {

using CudaPointer = unsigned long long;
using CudaHandle = void*;

// clang-format off
#define WGAP_CUDA_FUNCTIONS(each)                                                     \
  each(cuInit, (unsigned))                                                            \
  each(cuDriverGetVersion, (int*))                                                    \
  each(cuGetErrorString, (int, const char**))                                         \
  each(cuDeviceGetCount, (int*))                                                      \
  each(cuDeviceGet, (int*, int))                                                      \
  each(cuDeviceGetUuid, (unsigned char*, int))                                        \
  each(cuDeviceGetAttribute, (int*, int, int))                                        \
  each(cuDevicePrimaryCtxRetain, (CudaHandle*, int))                                  \
  each(cuDevicePrimaryCtxRelease, (int))                                              \
  each(cuCtxPushCurrent, (CudaHandle))                                                \
  each(cuCtxPopCurrent, (CudaHandle*))                                                \
  each(cuCtxSynchronize, ())                                                          \
  each(cuStreamCreate, (CudaHandle*, unsigned))                                       \
  each(cuStreamDestroy, (CudaHandle))                                                 \
  each(cuStreamSynchronize, (CudaHandle))                                             \
  each(cuStreamBeginCapture, (CudaHandle, int))                                       \
  each(cuStreamEndCapture, (CudaHandle, CudaHandle*))                                 \
  each(cuGraphInstantiate, (CudaHandle*, CudaHandle, unsigned long long))             \
  each(cuGraphLaunch, (CudaHandle, CudaHandle))                                       \
  each(cuGraphDestroy, (CudaHandle))                                                  \
  each(cuGraphExecDestroy, (CudaHandle))                                              \
  each(cuMemAlloc, (CudaPointer*, std::size_t))                                       \
  each(cuMemFree, (CudaPointer))                                                      \
  each(cuMemHostAlloc, (void**, std::size_t, unsigned))                               \
  each(cuMemFreeHost, (void*))                                                        \
  each(cuMemcpyHtoDAsync, (CudaPointer, const void*, std::size_t, CudaHandle))        \
  each(cuMemcpyDtoHAsync, (void*, CudaPointer, std::size_t, CudaHandle))              \
  each(cuMemcpyDtoDAsync, (CudaPointer, CudaPointer, std::size_t, CudaHandle))        \
  each(cuMemcpyHtoD, (CudaPointer, const void*, std::size_t))                         \
  each(cuPointerGetAttribute, (void*, int, CudaPointer))                              \
  each(cuModuleLoadData, (CudaHandle*, const void*))                                  \
  each(cuModuleUnload, (CudaHandle))                                                  \
  each(cuModuleGetFunction, (CudaHandle*, CudaHandle, const char*))                   \
  each(cuFuncGetAttribute, (int*, int, CudaHandle))                                   \
  each(cuFuncSetAttribute, (CudaHandle, int, int))                                    \
  each(cuLaunchKernel, (CudaHandle, unsigned, unsigned, unsigned, unsigned, unsigned, \
                        unsigned, unsigned, CudaHandle, void**, void**))
// clang-format on

struct CudaDriver {
#define WGAP_DECLARE(name, arguments) int(*name) arguments = nullptr;
  WGAP_CUDA_FUNCTIONS(WGAP_DECLARE)
#undef WGAP_DECLARE

  // One for the life of the process. Throws Failure with WGAP_BACKEND_ERROR where there is no driver or no GPU.
  static const CudaDriver& get();

  void check(int code, const char* what) const;

  struct Gpu {
    int ordinal;
    std::string uuid;                // as `nvidia-smi -L` prints it
    std::string compute_capability;  // such as "8.6"
  };
  // By ordinal or UUID; the first for null. Throws where there is none, naming those that there are.
  Gpu gpu(const char* device) const;
};

// Memory of the GPU or, pinned, of the host, where a GPU reads and writes it in place. Made and freed in one context.
class CudaMemory {
 public:
  enum Kind { kDevice, kPinned };
  CudaMemory(const CudaDriver& driver, Kind kind, std::size_t bytes);
  ~CudaMemory();
  CudaMemory(CudaMemory&& other) noexcept;
  CudaMemory& operator=(CudaMemory&&) = delete;

  CudaPointer address() const { return address_; }
  template <class T>
  T* as() const {  // what a kernel is given; of pinned memory also the host's
    return reinterpret_cast<T*>(address_);
  }

 private:
  const CudaDriver& driver_;
  const Kind kind_;
  CudaPointer address_ = 0;
};

// A GPU's primary context, which PyTorch, CuPy and the CUDA runtime share.
class CudaContext {
 public:
  CudaContext(const CudaDriver& driver, int ordinal);
  ~CudaContext() { driver_.cuDevicePrimaryCtxRelease(ordinal_); }
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  // Current for as long as this lives.
  class Use {
   public:
    explicit Use(const CudaContext& context);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    const CudaDriver& driver_;
  };

 private:
  const CudaDriver& driver_;
  const int ordinal_;
  CudaHandle handle_ = nullptr;
};

}  // namespace wgap::sdk
