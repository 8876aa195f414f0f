// The kernel for C++ programs that nvcc compiles: plan once for a shape, then launch on any stream. Header only.
//
//   wgap::CudaPlan plan;
//   cudaError_t error = wgap::cuda_plan(shape, images, &plan);   // once; allocate plan.scratch_bytes on the device
//   error = wgap::cuda_localize(plan, task, stream);             // task.records[i] is complete when the stream is
//
// Nothing here allocates or waits, so that a launch can be captured into a CUDA graph. Compile with --fmad=false.
#pragma once

#include <cuda_runtime.h>

#include "wgap/kernel/cuda_kernel.h"

namespace wgap {

struct CudaPlan {
  Shape shape;
  int tasks, blocks;
  u64 shared_bytes, block_bytes;
  u64 scratch_bytes;  // of device memory, 256-byte aligned as cudaMalloc gives it; one launch at a time may use it
};

// For `tasks` images times classes on the current device.
inline cudaError_t cuda_plan(const Shape& shape, int tasks, CudaPlan* plan) {
  int device = 0, room = 0, multiprocessors = 0;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, wgap_localize_cuda);
  if (error != cudaSuccess) return error;
  plan->shape = shape;
  plan->tasks = tasks;
  plan->blocks = tasks < multiprocessors ? tasks : multiprocessors;
  const u64 bytes = cuda_layout(shape, static_cast<u64>(room) - attributes.sharedSizeBytes, &plan->shared_bytes);
  plan->block_bytes = (bytes + 63) / 64 * 64;
  plan->scratch_bytes = plan->block_bytes * static_cast<u64>(plan->blocks);
  return cudaFuncSetAttribute(wgap_localize_cuda, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(plan->shared_bytes));
}

// task: logits, features, weight, records and scratch on the device; rule and per_image are yours; the plan fills in the rest.
inline cudaError_t cuda_localize(const CudaPlan& plan, CudaTask task, cudaStream_t stream) {
  task.shape = plan.shape;
  task.tasks = plan.tasks;
  task.scratch_bytes = plan.block_bytes;
  task.shared_bytes = plan.shared_bytes;
  wgap_localize_cuda<<<plan.blocks, kCudaThreads, plan.shared_bytes, stream>>>(task);
  return cudaGetLastError();
}

}  // namespace wgap
