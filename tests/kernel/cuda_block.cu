// The kernel's headers are CUDA as they stand: the smallest Block that compiles. Not tuned, not shipped.
//   nvcc -std=c++17 -arch=sm_80 --fmad=false -I runtime/include -cubin -o /dev/null tests/kernel/cuda_block.cu
#include "wgap/localize_block.h"

namespace {

struct CudaBlock {
  static constexpr int kTileRows = 16, kCopies = 8, kSpan = 1;
  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return static_cast<int>(blockDim.x); }
  __device__ void sync() const { __syncthreads(); }
  __device__ void mark(wgap::Stage) const {}

  static __device__ int first_bit(wgap::u64 bits) { return __ffsll(static_cast<long long>(bits)) - 1; }
  static __device__ int nearest(float value) { return __float2int_rn(value); }
  static __device__ wgap::u64 greater(const wgap::u8* row, int bound, int n) {
    wgap::u64 bits = 0;
    for (int i = 0; i < n; ++i) bits |= static_cast<wgap::u64>(row[i] > bound) << i;
    return bits;
  }
  static __device__ wgap::u64 steps(const wgap::u8* row, int stride, int n, wgap::u8* low) {
    wgap::u64 bits = 0;
    for (int i = 0; i < n; ++i) {
      const wgap::u8* const p = row + i;
      low[i] = static_cast<wgap::u8>(wgap::smaller(wgap::smaller(p[-stride], p[stride]), wgap::smaller(p[-1], p[1])));
      bits |= static_cast<wgap::u64>(low[i] < *p) << i;
    }
    return bits;
  }
  template <class F>
  static __device__ void for_bits(const wgap::u64* words, int count, F f) {
    int ordinal = 0;
    for (int i = 0; i < count; ++i)
      for (wgap::u64 bits = words[i]; bits != 0; bits &= bits - 1) f(i * 64 + first_bit(bits), ordinal++);
  }

  template <class T>
  static __device__ void add(T* at, T value) {
    atomicAdd(at, value);
  }
  template <class T>
  static __device__ T min(T* at, T value) {
    return atomicMin(at, value);
  }
  template <class T>
  static __device__ void max(T* at, T value) {
    atomicMax(at, value);
  }
  template <class T>
  static __device__ T load(const T* at) {
    return *static_cast<const volatile T*>(at);
  }
  template <class T>
  static __device__ void store(T* at, T value) {
    *static_cast<volatile T*>(at) = value;
  }
};

}  // namespace

extern "C" __global__ void localize(const wgap::Problem* problems, wgap::u8* memory, wgap::u64 stride,
                                    wgap::Result* results) {
  const wgap::Problem& problem = problems[blockIdx.x];
  wgap::Scratch scratch;
  wgap::lay_out<CudaBlock>(problem.shape, memory + stride * blockIdx.x, &scratch);
  CudaBlock block;
  wgap::prepare_block(block, problem.shape, scratch);
  wgap::localize_block(block, problem, scratch, results + blockIdx.x);
}
