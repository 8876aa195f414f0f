// Rules: the one place that names them and judges them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "wgap/kernel/problem.h"
#include "wgap/wgap.h"

namespace wgap {

// Writes a sentence, printf's way, where `error` is not null; returns the status.
wgap_status fail(wgap_error* error, wgap_status status, const char* format, ...) __attribute__((format(printf, 3, 4)));

// What every call begins with: WGAP_OK, or why nothing can be said in `error`. Null is fine.
wgap_status check_error(wgap_error* error);

// A struct's size: not below its first version's, not above what this library knows.
wgap_status check_size(const char* name, std::uint32_t size, std::size_t first, std::size_t known, wgap_error* error);

template <class T>
bool aligned(const T* p) {
  return reinterpret_cast<std::uintptr_t>(p) % alignof(T) == 0;
}

// "recombined", "positive", "signed"; null for another number.
const char* map_name(int map);

// The rule as the kernel takes it.
wgap_status kernel_rule(const wgap_rule& given, Rule* rule, wgap_error* error);

}  // namespace wgap
