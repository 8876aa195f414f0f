// x86-64-v3 without FMA: contraction would change the bits.
#define WGAP_TARGET_NAMESPACE avx2
#define WGAP_TARGET_SYMBOL kAvx2
#define WGAP_TARGET_NAME "avx2"
#define WGAP_TARGET_SUPPORTED \
  (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt"))
#include "kernel.inl"
