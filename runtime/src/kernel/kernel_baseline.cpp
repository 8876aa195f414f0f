// Any x86-64, or any other machine.
#define WGAP_TARGET_NAMESPACE baseline
#define WGAP_TARGET_SYMBOL kBaseline
#define WGAP_TARGET_NAME "baseline"
#define WGAP_TARGET_SUPPORTED true
#include "kernel.inl"
