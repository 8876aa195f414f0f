// The AVX-512 of Ice Lake, Zen 4 and later: with VBMI2, whose byte compression lists the edge pixels. The first AVX-512
// machines lack it and run the AVX2 kernel, which is as fast there as AVX-512 without it.
#define WGAP_TARGET_NAMESPACE avx512
#define WGAP_TARGET_SYMBOL kAvx512
#define WGAP_TARGET_NAME "avx512"
#define WGAP_TARGET_SUPPORTED                                                                                       \
  (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && \
   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi") &&  \
   __builtin_cpu_supports("popcnt"))
#include "kernel.inl"
