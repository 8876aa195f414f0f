// The AVX-512 of Skylake-X and later: F, BW, VL, DQ.
#define WGAP_TARGET_NAMESPACE avx512
#define WGAP_TARGET_SYMBOL kAvx512
#define WGAP_TARGET_NAME "avx512"
#define WGAP_TARGET_SUPPORTED                                                                          \
  (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&                          \
   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("bmi"))
#include "kernel.inl"
