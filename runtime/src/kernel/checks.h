// What is judged before anything is computed, with sentences that name the numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "wgap/kernel/problem.h"
#include "wgap/wgap.h"

// Leaves the function with the call's status unless that is WGAP_OK.
#define WGAP_CHECK(call) \
  if (const wgap_status failed = (call); failed != WGAP_OK) return failed

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

// a * b <= limit for positive a, b.
inline bool product_within(std::int64_t a, std::int64_t b, std::int64_t limit) { return a <= limit / b; }

// A buffer of count * each elements.
template <class T>
wgap_status check_buffer(const char* name, const T* data, std::uint64_t bytes, std::int64_t count, std::int64_t each,
                         wgap_error* error) {
  if (data == nullptr || !aligned(data))
    return fail(error, WGAP_INVALID_ARGUMENT, "%s: expected a pointer aligned to %zu bytes, got %p", name, alignof(T),
                static_cast<const void*>(data));
  constexpr std::int64_t kMost = std::numeric_limits<std::ptrdiff_t>::max() / static_cast<std::int64_t>(sizeof(T));
  if (!product_within(count, each, kMost))
    return fail(error, WGAP_TOO_LARGE, "%s: %lld times %lld elements are more than can be addressed", name,
                static_cast<long long>(count), static_cast<long long>(each));
  const std::uint64_t needed = static_cast<std::uint64_t>(count * each) * sizeof(T);
  if (bytes < needed)
    return fail(error, WGAP_BUFFER_TOO_SMALL, "%s: expected at least %llu bytes, got %llu", name,
                static_cast<unsigned long long>(needed), static_cast<unsigned long long>(bytes));
  return WGAP_OK;
}

// Shapes against a classifier of so many classes and channels, and the map's size.
wgap_status check_sizes(const wgap_input& input, int classes, int channels, const wgap_options& options,
                        const Rule& rule, wgap_error* error);

// The shape of a call whose sizes were checked.
Shape shape_of(const wgap_input& input, const wgap_options& options, const Rule& rule);

// Class ids or top_k.
wgap_status check_classes(const wgap_input& input, const wgap_options& options, wgap_error* error);

}  // namespace wgap
