// A warm workspace allocates nothing, whatever is asked of it within the shapes it has met.
#include <atomic>
#include <cstddef>
#include <new>

#include "batch.h"

namespace {
std::atomic<long> allocations{0};
}

extern "C" {
void* __real_malloc(std::size_t);
void* __real_calloc(std::size_t, std::size_t);
void* __real_realloc(void*, std::size_t);
void* __real_aligned_alloc(std::size_t, std::size_t);
void* __wrap_malloc(std::size_t size) { return ++allocations, __real_malloc(size); }
void* __wrap_calloc(std::size_t n, std::size_t size) { return ++allocations, __real_calloc(n, size); }
void* __wrap_realloc(void* p, std::size_t size) { return ++allocations, __real_realloc(p, size); }
void* __wrap_aligned_alloc(std::size_t a, std::size_t size) { return ++allocations, __real_aligned_alloc(a, size); }
}

// Calls inside the standard library arrive here; inlined, GCC takes new and free for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = __real_malloc(size)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }

int main() {
  Batch batch(6, 10, 64, 14, 14);
  const std::int64_t class_ids[6] = {0, 1, 2, 3, 4, 9};
  std::vector<std::uint8_t> pixels(60 * 50 * 3), resized(32 * 24 * 3);
  wgap_image from = WGAP_IMAGE_INIT, to = WGAP_IMAGE_INIT;
  from.height = 60, from.width = 50, from.channels = 3, from.row_bytes = 150;
  from.data = pixels.data(), from.bytes = pixels.size();
  to.height = 32, to.width = 24, to.channels = 3, to.row_bytes = 72;
  to.data = resized.data(), to.bytes = resized.size();

  for (const int threads : {1, 3}) {
    const Workspace workspace(threads);
    batch.want(3, 224, 224, true, true, 4);
    batch.see(28, 28, 224, 224);
    const auto everything = [&] {
      for (const char* const map : {"recombined", "positive", "signed"})
        for (const char* const rule : {"adaptive", "fixed:0.15", "foreground", "foreground+colour"}) {
          EXPECT(wgap_rule_parse(rule, map, &batch.options.rule, nullptr) == WGAP_OK);
          batch.input.class_ids = nullptr;
          EXPECT(batch.localize(workspace) == WGAP_OK);
          batch.input.class_ids = class_ids, batch.input.class_ids_bytes = sizeof class_ids;
          EXPECT(batch.localize(workspace) == WGAP_OK);
          batch.input.class_ids_bytes = 1;  // a refusal has its sentence from nowhere else
          EXPECT(batch.localize(workspace) == WGAP_BUFFER_TOO_SMALL);
        }
      EXPECT(wgap_resize(&from, &to, nullptr) == WGAP_OK);
    };
    const long cold = allocations;
    everything();
    EXPECT(allocations > cold);  // the counter counts
    const long warm = allocations;
    for (int i = 0; i < 20; ++i) everything();
    EXPECT(allocations == warm);
  }
  return 0;
}
