// A warm workspace allocates nothing, whatever is asked of it within the shapes it has met.
#include <atomic>
#include <cstddef>
#include <new>
#include <vector>

#include "expect.h"
#include "wgap/wgap.h"

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

// Calls inside the standard library arrive here.
void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = __real_malloc(size)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

int main() {
  constexpr int kImages = 6, kChannels = 64, kSide = 14, kClasses = 10, kTop = 3;
  Random random{7};
  std::vector<float> features;
  for (int i = 0; i < kImages; ++i) {
    const std::vector<float> one = feature_maps(random, kChannels, kSide, kSide, i % 3);
    features.insert(features.end(), one.begin(), one.end());
  }
  const std::vector<float> logits = random_floats(random, kImages * kClasses);
  const std::vector<float> weight = random_floats(random, kClasses * kChannels);
  const std::int64_t classes[kImages] = {0, 1, 2, 3, 4, 9};
  std::vector<wgap_record> records(kImages * kTop);
  std::vector<float> maps(records.size() * 224 * 224);
  std::vector<std::uint8_t> image(60 * 50 * 3), resized(32 * 24 * 3);

  wgap_classifier* classifier = nullptr;
  EXPECT(wgap_classifier_create(weight.data(), kClasses, kChannels, &classifier) == WGAP_OK);
  for (const int threads : {1, 3}) {
    wgap_workspace* workspace = nullptr;
    EXPECT(wgap_workspace_create(threads, nullptr, &workspace) == WGAP_OK);
    const wgap_input input{features.data(), logits.data(), kImages, kChannels, kSide, kSide};
    const auto everything = [&] {
      wgap_options options = WGAP_OPTIONS_INIT;
      options.top_k = kTop;
      for (options.map = 0; options.map < 3; ++options.map)
        for (const double threshold : {WGAP_ADAPTIVE, 0.15}) {
          options.threshold = threshold;
          EXPECT(wgap_localize(workspace, &input, classifier, &options, nullptr, records.data(), maps.data()) ==
                 WGAP_OK);
          EXPECT(wgap_localize(workspace, &input, classifier, &options, classes, records.data(), nullptr) == WGAP_OK);
        }
      EXPECT(wgap_resize(image.data(), 60, 50, 150, resized.data(), 32, 24, 72, 3) == WGAP_OK);
    };
    const long cold = allocations;
    everything();
    EXPECT(allocations > cold);  // the counter counts
    const long warm = allocations;
    for (int i = 0; i < 20; ++i) everything();
    EXPECT(allocations == warm);
    wgap_workspace_destroy(workspace);
  }
  wgap_classifier_destroy(classifier);
  return 0;
}
