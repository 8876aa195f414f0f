// An engine of one's own for tests: outputs that the picture's bytes decide, the same on every machine.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "../kernel/expect.h"
#include "wgap/wgap.hpp"

struct Sizes {
  int classes, channels, cells, pixels, scores;

  Sizes(int k, int c, int features, int input, int foreground)
      : classes(k), channels(c), cells(features), pixels(input), scores(foreground) {}
  explicit Sizes(const char* bundle_path) {
    wgap_bundle* bundle = nullptr;
    wgap_bundle_info info = WGAP_BUNDLE_INFO_INIT;
    EXPECT(wgap_bundle_open(bundle_path, 1, &bundle, nullptr) == WGAP_OK);
    EXPECT(wgap_bundle_describe(bundle, &info, nullptr) == WGAP_OK);
    wgap_bundle_close(bundle);
    classes = info.classes, channels = info.channels;
    cells = info.feature_height * info.feature_width, pixels = info.input_height * info.input_width;
    scores = info.foreground_height * info.foreground_width;
  }
};

class FakeNetwork : public wgap::Network {
 public:
  explicit FakeNetwork(const Sizes& sizes, int largest = 0) : sizes_(sizes), largest_(largest) {}

  wgap::Result<wgap::Outputs> run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted) override {
    ++calls;
    if (fail) return wgap::Error{WGAP_BACKEND_ERROR, "it failed on purpose"};
    EXPECT(largest_ == 0 || count <= largest_);
    EXPECT((wanted & WGAP_LOGITS) != 0);
    const std::shared_ptr<Made> made(new Made, [this](const Made* gone) { delete gone, ++released; });
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint8_t* const image = images + i * sizes_.pixels * 3;
      std::uint32_t state = 1;
      for (int k = 0; k < sizes_.pixels * 3; ++k) state = state * 31 + image[k];
      const auto next = [&] { return static_cast<float>((state = state * 1664525 + 1013904223) >> 8) / (1 << 24); };
      for (int k = 0; k < sizes_.classes; ++k) made->logits.push_back(next() * 4);
      for (int k = 0; k < sizes_.channels * sizes_.cells; ++k) made->features.push_back(next());
      for (int k = 0; k < sizes_.scores; ++k) made->foreground.push_back(next() - 0.5F);
    }
    wgap::Outputs outputs;
    outputs.logits = {made, made->logits.data(), made->logits.size()};
    outputs.features = {made, made->features.data(), made->features.size()};
    outputs.foreground = {made, made->foreground.data(), made->foreground.size()};
    return outputs;
  }
  int largest() const override { return largest_; }
  const char* name() const override { return "fake"; }

  std::atomic<int> calls{0}, released{0};
  std::atomic<bool> fail{false};

 private:
  struct Made {
    std::vector<float> logits, features, foreground;
  };
  const Sizes sizes_;
  const int largest_;
};

inline std::vector<std::uint8_t> pixels(unsigned seed, int height, int width) {
  std::vector<std::uint8_t> made(static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3);
  for (std::uint8_t& byte : made) byte = static_cast<std::uint8_t>((seed = seed * 1664525 + 1013904223) >> 24);
  return made;
}
