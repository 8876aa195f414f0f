// The kernel as machine code that a module holds: nvcc -fatbin, see cmake/runtime.cmake.
#define WGAP_CUDA_MODULE
#include "wgap/kernel/cuda_kernel.h"
