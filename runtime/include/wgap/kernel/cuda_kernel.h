// The kernel on NVIDIA GPUs: a CUDA thread block is a Block, its warps are the groups. NVRTC and nvcc compile this file
// alike; compile with -std=c++17 --fmad=false.
//
// A launch has any number of blocks of kCudaThreads threads; block b takes tasks b, b + gridDim.x, ... A task is one image
// and one class. Blocks need task.scratch_bytes each of task.scratch, 64-byte aligned, and task.shared_bytes of dynamic
// shared memory: both from cuda_layout(), which also runs on the host.
#pragma once

#include "wgap/kernel/localize_block.h"

namespace wgap {

#ifndef WGAP_CUDA_THREADS
#define WGAP_CUDA_THREADS 512
#endif
constexpr int kCudaThreads = WGAP_CUDA_THREADS;  // a multiple of 32

// What of a Block decides the layout of its memory.
struct CudaTuning {
  static constexpr int kTileRows = 32;  // two rows a warp between two barriers
  static constexpr int kCopies = 32;    // a copy of the level sums for each lane: no two lanes meet in one place
  static constexpr int kColourCopies = 4;
  static constexpr int kLanes = 32;
};

struct CudaTask {
  Shape shape;
  Rule rule;
  int tasks, per_image;   // task i is image i / per_image, rank i % per_image
  int max_boxes = 1;      // records of a task
  const float* logits;    // [images, classes], float32, in memory that the device reaches, as everything here
  const float* features;  // [images, channels, height, width], and
  const float* weight;    // [classes, channels], for rules with a map
  const float* scores;    // [images, score_height, score_width], for rules that read them
  const u8* pictures;     // [images, map_height, map_width, 3], and
  const int* logs;        // see Problem, for rules that read pictures
  const i64* class_ids;   // [images] or null: the per_image classes by logit
  float* heatmaps;        // [tasks, map_height, map_width] or null
  double* edge_means;     // [tasks, kLevels + 1] or null
  Record* records;        // [tasks, max_boxes]
  u8* scratch;            // gridDim.x times scratch_bytes
  u64 scratch_bytes, shared_bytes;
};

// Bytes a block needs: of shared memory, at most `room`, and, returned, of global memory.
WGAP_HD u64 cuda_layout(const Shape& shape, u64 room, u64* shared_bytes) {
  Scratch scratch;
  Fast fast{nullptr, room, 0};
  const u64 bytes = lay_out<CudaTuning>(shape, nullptr, &scratch, &fast);
  *shared_bytes = fast.used;
  return bytes;
}

// What task i is.
WGAP_HD Problem cuda_problem(const CudaTask& task, int i) {
  const Shape& shape = task.shape;
  const i64 image = i / task.per_image;
  Problem problem{};
  problem.shape = shape;
  problem.rule = task.rule;
  problem.logits = task.logits + image * shape.classes;
  problem.features = task.features + image * shape.channels * shape.height * shape.width;
  problem.weight = task.weight;
  problem.scores = task.scores + image * shape.score_height * shape.score_width;
  problem.picture = task.pictures + image * shape.map_height * shape.map_width * 3;
  problem.logs = task.logs;
  problem.class_id = task.class_ids ? static_cast<int>(task.class_ids[image]) : -1;
  problem.class_rank = i % task.per_image;
  problem.max_boxes = task.max_boxes;
  problem.heatmap = task.heatmaps ? task.heatmaps + static_cast<i64>(i) * shape.map_height * shape.map_width : nullptr;
  problem.edge_means = task.edge_means ? task.edge_means + static_cast<i64>(i) * (kLevels + 1) : nullptr;
  return problem;
}

#if defined(__CUDACC__)

}  // namespace wgap
#if defined(WGAP_CUDA_PROFILE)
extern "C" __device__ wgap::u64
    wgap_cuda_ticks[wgap::kStages];  // of each block's first thread, since the program began
#endif
namespace wgap {

struct CudaBlock : CudaTuning {
  static constexpr int kChannels = 32;
  static constexpr int kSpan = 4;  // a byte of edge bits for each lane

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  __device__ static int rank() { return static_cast<int>(threadIdx.x); }
  __device__ static int size() { return kCudaThreads; }
  __device__ static void sync() { __syncthreads(); }
#if defined(WGAP_CUDA_PROFILE)
  i64 last = clock64();
  __device__ void mark(Stage stage) {
    const i64 now = clock64();
    if (threadIdx.x == 0) atomicAdd(wgap_cuda_ticks + stage, static_cast<u64>(now - last));
    last = now;
  }
#else
  __device__ static void mark(Stage) {}
#endif

  __device__ static int first_bit(u64 bits) { return __ffsll(static_cast<long long>(bits)) - 1; }
  __device__ static int nearest(float value) { return __float2int_rn(value); }

  template <class T>
  __device__ static T highest(T value) {
    for (int apart = kLanes / 2; apart > 0; apart /= 2) {
      const T other = __shfl_xor_sync(~0u, value, apart);
      value = other > value ? other : value;
    }
    return value;
  }
  template <class T>
  __device__ static T lowest(T value) {
    for (int apart = kLanes / 2; apart > 0; apart /= 2) {
      const T other = __shfl_xor_sync(~0u, value, apart);
      value = other < value ? other : value;
    }
    return value;
  }

  __device__ static u64 total(u64 value) {
    for (int apart = kLanes / 2; apart > 0; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
    return value;
  }

  __device__ static u64 word(bool low, bool high) {
    const u64 upper = __ballot_sync(~0u, high);
    return upper << 32 | __ballot_sync(~0u, low);
  }
  __device__ static u64 greater(const u8* row, int bound, int n) {
    const int i = lane(), j = i + kLanes;
    return word(i < n && row[i] > bound, j < n && row[j] > bound);
  }
  __device__ static bool step(const u8* p, int stride, u8* low) {
    const int m = smaller(smaller(p[-stride], p[stride]), smaller(p[-1], p[1]));
    *low = static_cast<u8>(m);
    return m < *p;
  }
  __device__ static u64 steps(const u8* row, int stride, int n, u8* low) {
    const int i = lane(), j = i + kLanes;
    return word(i < n && step(row + i, stride, low + i), j < n && step(row + j, stride, low + j));
  }
  template <class F>
  __device__ static void for_bits(const u64* words, int count, F f) {
    const int mine = lane() / 8, shift = lane() % 8 * 8;
    if (mine >= count) return;
    for (u32 bits = static_cast<u32>(words[mine] >> shift) & 255u; bits != 0; bits &= bits - 1)
      f(mine * 64 + shift + __ffs(static_cast<int>(bits)) - 1, lane());
  }

  // Shared memory adds 32 bits at a time; the old value shows the carry, and the sum of all carries is exact.
  __device__ static void add(u64* at, u64 value) {
    u32* const half = reinterpret_cast<u32*>(at);
    const u32 low = static_cast<u32>(value), old = atomicAdd(half, low);
    const u32 high = static_cast<u32>(value >> 32) + (old + low < old ? 1u : 0u);
    if (high != 0) atomicAdd(half + 1, high);
  }
  __device__ static void add(u32* at, u32 value) { atomicAdd(at, value); }
  template <class T>
  __device__ static T min(T* at, T value) {
    return atomicMin(at, value);
  }
  template <class T>
  __device__ static void max(T* at, T value) {
    atomicMax(at, value);
  }
  template <class T>
  __device__ static T load(const T* at) {
    return *static_cast<const volatile T*>(at);
  }
  template <class T>
  __device__ static void store(T* at, T value) {
    *static_cast<volatile T*>(at) = value;
  }
};

#endif

}  // namespace wgap

#if defined(__CUDACC__)

#if defined(__CUDACC_RTC__) || defined(WGAP_CUDA_MODULE)
extern "C"  // found by its name
#else
static  // in every file that includes it
#endif
    __global__ void __launch_bounds__(wgap::kCudaThreads, 1) wgap_localize_cuda(const wgap::CudaTask task) {
  extern __shared__ __align__(64) unsigned char shared[];
  __shared__ wgap::Scratch scratch;  // its two dozen pointers would take the registers
  wgap::CudaBlock block;
  if (block.rank() == 0) {
    wgap::Fast fast{shared, task.shared_bytes, 0};
    wgap::lay_out<wgap::CudaBlock>(task.shape, task.scratch + task.scratch_bytes * blockIdx.x, &scratch, &fast);
  }
  block.sync();
  wgap::prepare_block(block, task.shape, scratch);
  for (int i = static_cast<int>(blockIdx.x); i < task.tasks; i += static_cast<int>(gridDim.x)) {
    wgap::localize_block(block, wgap::cuda_problem(task, i), scratch,
                         task.records + static_cast<wgap::i64>(i) * task.max_boxes);
    block.sync();
  }
}

#endif
