// The little a kernel test needs: a check that names its place, and reproducible feature maps.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define EXPECT(condition)                                                           \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (false)

// Same numbers everywhere, unlike the distributions of <random>.
struct Random {
  std::uint64_t state;
  std::uint32_t bits() {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<std::uint32_t>(state >> 33);
  }
  int below(int n) { return static_cast<int>(bits() % static_cast<std::uint32_t>(n)); }
  float unit() { return static_cast<float>(bits() >> 7) / 16777216.0f; }
};

// Feature maps after a ReLU: `kind` 0 smooth blobs, 1 noise, 2 small whole numbers (ties), 3 zeros, 4 of both signs.
inline std::vector<float> feature_maps(Random& random, int channels, int height, int width, int kind) {
  std::vector<float> features(static_cast<std::size_t>(channels * height * width));
  std::size_t at = 0;
  for (int c = 0; c < channels; ++c) {
    const float cy = random.unit() * static_cast<float>(height), cx = random.unit() * static_cast<float>(width);
    const float spread = 0.5f + random.unit() * static_cast<float>(height + width) / 4.0f;
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x, ++at) {
        const float dy = (static_cast<float>(y) - cy) / spread, dx = (static_cast<float>(x) - cx) / spread;
        switch (kind) {
          case 0: features[at] = 10.0f * std::exp(-dy * dy - dx * dx); break;
          case 1: features[at] = std::fmax(0.0f, random.unit() - 0.4f); break;
          case 2: features[at] = static_cast<float>(random.below(3)); break;
          case 3: features[at] = 0.0f; break;
          default: features[at] = random.unit() - 0.5f; break;
        }
      }
  }
  return features;
}

inline std::vector<float> random_floats(Random& random, std::size_t count) {
  std::vector<float> values(count);
  for (float& value : values) value = 2.0f * random.unit() - 1.0f;
  return values;
}
