// A hash of every record and map for random problems, and of resized images: every compiler, instruction set and machine
// must print the same lines. The input is made without the C library's functions, whose last bits differ.
#include <cinttypes>
#include <cstring>
#include <limits>
#include <vector>

#include "expect.h"
#include "wgap/wgap.h"

namespace {

// FNV-1a.
struct Hash {
  std::uint64_t state = 14695981039346656037ULL;
  template <class T>
  void add(const T* values, std::size_t count) {
    const unsigned char* const bytes = reinterpret_cast<const unsigned char*>(values);
    for (std::size_t i = 0; i < count * sizeof(T); ++i) state = (state ^ bytes[i]) * 1099511628211ULL;
  }
};

// Bumps around one place, cut off at zero.
std::vector<float> bumps(Random& random, int channels, int height, int width) {
  std::vector<float> features;
  const float y0 = random.unit() * static_cast<float>(height), x0 = random.unit() * static_cast<float>(width);
  for (int c = 0; c < channels; ++c) {
    const float cy = y0 + 2.0f * random.unit(), cx = x0 + 2.0f * random.unit(), narrow = 0.1f + random.unit();
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x) {
        const float dy = static_cast<float>(y) - cy, dx = static_cast<float>(x) - cx;
        const float value = 10.0f / (1.0f + narrow * (dy * dy + dx * dx)) - 1.0f;
        features.push_back(value > 0.0f ? value : 0.0f);
      }
  }
  return features;
}

std::uint64_t localized(const char* target, int number) {
  Random random{static_cast<std::uint64_t>(number)};
  const int kind = number % 5;  // of feature_maps; 0, which calls exp, is replaced
  const int channels = 1 + random.below(70), height = 1 + random.below(16), width = 1 + random.below(16);
  const int classes = 1 + random.below(20), per_image = 1 + random.below(classes);
  wgap_options options = WGAP_OPTIONS_INIT;
  options.map_height = 1 + random.below(250);
  options.map_width = 1 + random.below(250);
  options.rule.map = random.below(3);
  options.top_k = per_image;
  if (random.below(3) == 0) {
    options.rule.kind = WGAP_RULE_FIXED;
    options.rule.parameters[0] = static_cast<double>(random.unit()) * 0.9;
  }
  std::vector<float> features =
      kind == 0 ? bumps(random, channels, height, width) : feature_maps(random, channels, height, width, kind);
  const std::vector<float> logits = random_floats(random, static_cast<std::size_t>(classes));
  const std::vector<float> weight = random_floats(random, static_cast<std::size_t>(classes) * channels);
  const std::size_t pixels = static_cast<std::size_t>(options.map_height) * options.map_width;
  std::vector<wgap_record> records(static_cast<std::size_t>(per_image));
  std::memset(static_cast<void*>(records.data()), 0, records.size() * sizeof(wgap_record));
  std::vector<float> maps(pixels * records.size());
  wgap_classifier* classifier = nullptr;
  wgap_workspace* workspace = nullptr;
  EXPECT(wgap_classifier_create(weight.data(), weight.size() * sizeof(float), classes, channels, &classifier,
                                nullptr) == WGAP_OK);
  EXPECT(wgap_workspace_create(1, target, &workspace, nullptr) == WGAP_OK);
  wgap_input input = WGAP_INPUT_INIT;
  input.images = 1, input.classes = classes, input.channels = channels, input.height = height, input.width = width;
  input.logits = logits.data(), input.logits_bytes = logits.size() * sizeof(float);
  input.features = features.data(), input.features_bytes = features.size() * sizeof(float);
  wgap_output output = WGAP_OUTPUT_INIT;
  output.records = records.data(), output.records_bytes = records.size() * sizeof(wgap_record);
  output.heatmaps = maps.data(), output.heatmaps_bytes = maps.size() * sizeof(float);
  EXPECT(wgap_localize(workspace, classifier, &input, &options, &output, nullptr) == WGAP_OK);
  features[features.size() / 2] = std::numeric_limits<float>::quiet_NaN();
  std::vector<wgap_record> spoilt = records;
  output.records = spoilt.data(), output.heatmaps = nullptr;
  EXPECT(wgap_localize(workspace, classifier, &input, &options, &output, nullptr) == WGAP_FEATURES_NOT_FINITE);
  wgap_workspace_destroy(workspace);
  wgap_classifier_destroy(classifier);
  Hash hash;
  hash.add(records.data(), records.size());
  hash.add(maps.data(), maps.size());
  return hash.state;
}

// Under the foreground rules, with and without a map.
std::uint64_t scored(const char* target, int number) {
  Random random{static_cast<std::uint64_t>(number) + 1000};
  const int channels = 1 + random.below(9), height = 1 + random.below(9), width = 1 + random.below(9);
  const int most = 1 + random.below(5);
  wgap_options options = WGAP_OPTIONS_INIT;
  options.map_height = 1 + random.below(120), options.map_width = 1 + random.below(120);
  options.rule.kind = WGAP_RULE_FOREGROUND + number % 2, options.rule.map = random.below(4);
  options.max_boxes = most;
  wgap_input input = WGAP_INPUT_INIT;
  input.images = 1, input.classes = 3, input.channels = channels, input.height = height, input.width = width;
  input.scores_height = 1 + random.below(options.map_height), input.scores_width = 1 + random.below(options.map_width);
  const std::vector<float> features = bumps(random, channels, height, width), logits = random_floats(random, 3);
  const std::vector<float> weight = random_floats(random, static_cast<std::size_t>(3) * channels);
  std::vector<float> scores = random_floats(random, static_cast<std::size_t>(input.scores_height) * input.scores_width);
  for (float& score : scores) score = number % 3 == 0 ? static_cast<float>(static_cast<int>(score * 4.0f)) : score;
  const std::size_t pixels = static_cast<std::size_t>(options.map_height) * options.map_width;
  std::vector<std::uint8_t> picture(pixels * 3);
  for (std::uint8_t& byte : picture) byte = static_cast<std::uint8_t>(random.below(number % 5 == 0 ? 1 : 256));
  input.logits = logits.data(), input.logits_bytes = logits.size() * sizeof(float);
  input.features = features.data(), input.features_bytes = features.size() * sizeof(float);
  input.scores = scores.data(), input.scores_bytes = scores.size() * sizeof(float);
  input.pictures = picture.data(), input.pictures_bytes = picture.size();
  std::vector<wgap_record> records(static_cast<std::size_t>(most));
  std::memset(static_cast<void*>(records.data()), 0, records.size() * sizeof(wgap_record));
  std::vector<float> map(pixels);
  wgap_output output = WGAP_OUTPUT_INIT;
  output.records = records.data(), output.records_bytes = records.size() * sizeof(wgap_record);
  output.heatmaps = map.data(), output.heatmaps_bytes = map.size() * sizeof(float);
  wgap_classifier* classifier = nullptr;
  wgap_workspace* workspace = nullptr;
  EXPECT(wgap_classifier_create(weight.data(), weight.size() * sizeof(float), 3, channels, &classifier, nullptr) ==
         WGAP_OK);
  EXPECT(wgap_workspace_create(1, target, &workspace, nullptr) == WGAP_OK);
  EXPECT(wgap_localize(workspace, classifier, &input, &options, &output, nullptr) == WGAP_OK);
  wgap_workspace_destroy(workspace);
  wgap_classifier_destroy(classifier);
  Hash hash;
  hash.add(records.data(), records.size());
  hash.add(map.data(), map.size());
  return hash.state;
}

std::uint64_t resized(int number) {
  Random random{static_cast<std::uint64_t>(number)};
  const int channels = 1 + number % 4, from_height = 1 + random.below(90), from_width = 1 + random.below(90);
  const int height = 1 + random.below(120), width = 1 + random.below(120);
  std::vector<std::uint8_t> source(static_cast<std::size_t>(from_height) * from_width * channels);
  for (std::uint8_t& byte : source) byte = static_cast<std::uint8_t>(random.below(256));
  std::vector<std::uint8_t> image(static_cast<std::size_t>(height) * width * channels);
  wgap_image from = WGAP_IMAGE_INIT, to = WGAP_IMAGE_INIT;
  from.height = from_height, from.width = from_width, from.channels = channels;
  from.data = source.data(), from.row_bytes = from_width * channels, from.bytes = source.size();
  to.height = height, to.width = width, to.channels = channels;
  to.data = image.data(), to.row_bytes = width * channels, to.bytes = image.size();
  EXPECT(wgap_resize(&from, &to, nullptr) == WGAP_OK);
  Hash hash;
  hash.add(image.data(), image.size());
  return hash.state;
}

}  // namespace

int main() {
  for (int number = 0; number < 120; ++number) {
    const std::uint64_t expected = localized("baseline", number), foreground = scored("baseline", number);
    for (const char* const* target = wgap_targets(); *target != nullptr; ++target)
      EXPECT(localized(*target, number) == expected && scored(*target, number) == foreground);
    std::printf("%d %016" PRIx64 " %016" PRIx64 " %016" PRIx64 "\n", number, expected, foreground, resized(number));
  }
  return 0;
}
