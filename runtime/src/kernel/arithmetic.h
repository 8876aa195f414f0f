// The floating-point settings that the kernel's bits rest on.
#pragma once

#include <cfenv>

namespace wgap {

// For its lifetime this thread rounds to nearest and keeps subnormal numbers; then the caller's settings are back.
class DefaultArithmetic {
 public:
#if defined(__x86_64__)
  DefaultArithmetic() : held_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(0x1f80); }
  ~DefaultArithmetic() { __builtin_ia32_ldmxcsr(held_); }
#else
  DefaultArithmetic() {
    std::fegetenv(&held_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultArithmetic() { std::fesetenv(&held_); }
#endif
  DefaultArithmetic(const DefaultArithmetic&) = delete;
  DefaultArithmetic& operator=(const DefaultArithmetic&) = delete;

 private:
#if defined(__x86_64__)
  unsigned held_;
#else
  std::fenv_t held_;
#endif
};

}  // namespace wgap
