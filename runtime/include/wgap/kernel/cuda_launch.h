// The kernel for C++ programs that nvcc compiles: prepare once for a shape, then launch on any stream. Header only.
//
//   wgap::CudaLaunch launch;
//   cudaError_t error = wgap::cuda_prepare(shape, images, &launch);   // once; allocate launch.scratch_bytes on the device
//   error = wgap::cuda_localize(launch, task, stream);             // task.records[i] is complete when the stream is
//
// Nothing here allocates or waits, so that a launch can be captured into a CUDA graph. Compile with --fmad=false.
#pragma once

#include <cuda_runtime.h>

#include "wgap/kernel/cuda_kernel.h"

namespace wgap {

struct CudaLaunch {
  Shape shape;
  int tasks, blocks;
  u64 shared_bytes, block_bytes;
  u64 scratch_bytes;  // of device memory, 256-byte aligned as cudaMalloc gives it; one launch at a time may use it
};

// For `tasks` images times classes on the current device.
inline cudaError_t cuda_prepare(const Shape& shape, int tasks, CudaLaunch* launch) {
  int device = 0, room = 0, multiprocessors = 0;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, wgap_localize_cuda);
  if (error != cudaSuccess) return error;
  launch->shape = shape;
  launch->tasks = tasks;
  launch->blocks = tasks < multiprocessors ? tasks : multiprocessors;
  const u64 bytes = cuda_layout(shape, static_cast<u64>(room) - attributes.sharedSizeBytes, &launch->shared_bytes);
  launch->block_bytes = (bytes + 63) / 64 * 64;
  launch->scratch_bytes = launch->block_bytes * static_cast<u64>(launch->blocks);
  return cudaFuncSetAttribute(wgap_localize_cuda, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(launch->shared_bytes));
}

// task: logits, records, scratch and what the rule reads (see CudaTask; logs from fill_logs, in logs.h) on the device; rule,
// per_image and max_boxes are yours; the launch fills in the rest.
inline cudaError_t cuda_localize(const CudaLaunch& launch, CudaTask task, cudaStream_t stream) {
  task.shape = launch.shape;
  task.tasks = launch.tasks;
  task.scratch_bytes = launch.block_bytes;
  task.shared_bytes = launch.shared_bytes;
  wgap_localize_cuda<<<launch.blocks, kCudaThreads, launch.shared_bytes, stream>>>(task);
  return cudaGetLastError();
}

}  // namespace wgap
