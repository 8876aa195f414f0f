// The C interface refuses what it cannot do, by name, and serves the largest and oddest shapes it promises.
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "expect.h"
#include "wgap/wgap.h"

namespace {

struct Fixture {
  std::vector<float> weight, logits, features;
  wgap_classifier* classifier = nullptr;
  wgap_workspace* workspace = nullptr;
  wgap_input input{};
  wgap_options options = WGAP_OPTIONS_INIT;
  wgap_record record{};

  Fixture(int classes, int channels, int height, int width, const char* target = nullptr) {
    Random random{11};
    weight = random_floats(random, static_cast<std::size_t>(classes) * channels);
    logits = random_floats(random, classes);
    features = feature_maps(random, channels, height, width, 0);
    EXPECT(wgap_classifier_create(weight.data(), classes, channels, &classifier) == WGAP_OK);
    EXPECT(wgap_workspace_create(1, target, &workspace) == WGAP_OK);
    input = {features.data(), logits.data(), 1, channels, height, width};
  }
  ~Fixture() {
    wgap_workspace_destroy(workspace);
    wgap_classifier_destroy(classifier);
  }
  Fixture(const Fixture&) = delete;
  Fixture& operator=(const Fixture&) = delete;
  wgap_status localize(const std::int64_t* classes = nullptr) {
    return wgap_localize(workspace, &input, classifier, &options, classes, &record, nullptr);
  }
};

// Localizes with one thing changed.
template <class Change>
wgap_status with(Change change) {
  Fixture fixture(3, 4, 5, 6);
  change(fixture);
  return fixture.localize();
}

void refusals() {
  EXPECT(with([](Fixture&) {}) == WGAP_OK);
  EXPECT(with([](Fixture& f) { f.input.features = nullptr; }) == WGAP_INVALID_ARGUMENT);
  EXPECT(with([](Fixture& f) { f.input.logits = nullptr; }) == WGAP_INVALID_ARGUMENT);
  EXPECT(with([](Fixture& f) {
           f.input.features = reinterpret_cast<const float*>(reinterpret_cast<const char*>(f.features.data()) + 1);
         }) == WGAP_INVALID_ARGUMENT);
  EXPECT(with([](Fixture& f) { f.input.height = 0; }) == WGAP_INVALID_ARGUMENT);
  EXPECT(with([](Fixture& f) { f.input.images = -1; }) == WGAP_INVALID_ARGUMENT);
  EXPECT(with([](Fixture& f) { f.input.images = 0; }) == WGAP_OK);
  EXPECT(with([](Fixture& f) { f.input.channels = 5; }) == WGAP_SHAPE_MISMATCH);
  EXPECT(with([](Fixture& f) { f.options.map = 3; }) == WGAP_INVALID_ARGUMENT);
  EXPECT(with([](Fixture& f) { f.options.struct_size += 8; }) == WGAP_INVALID_ARGUMENT);
  EXPECT(with([](Fixture& f) { f.options.threshold = 0.9995; }) == WGAP_INVALID_ARGUMENT);
  EXPECT(with([](Fixture& f) { f.options.threshold = NAN; }) == WGAP_INVALID_ARGUMENT);
  EXPECT(with([](Fixture& f) { f.options.top_k = 4; }) == WGAP_CLASS_OUT_OF_RANGE);
  EXPECT(with([](Fixture& f) { f.options.map_width = 0; }) == WGAP_INVALID_ARGUMENT);
  EXPECT(with([](Fixture& f) { f.options.map_height = f.options.map_width = 1025; }) == WGAP_TOO_LARGE);
  EXPECT(with([](Fixture& f) { f.options.map_height = f.options.map_width = 0x7fffffff; }) == WGAP_TOO_LARGE);
  EXPECT(with([](Fixture& f) { f.input.height = f.input.width = 0x7fffffff; }) == WGAP_TOO_LARGE);
  EXPECT(with([](Fixture& f) { f.input.images = std::numeric_limits<std::int64_t>::max() / 2; }) == WGAP_TOO_LARGE);
  EXPECT(with([](Fixture& f) { f.features[7] = -INFINITY; }) == WGAP_FEATURES_NOT_FINITE);
  EXPECT(with([](Fixture& f) { f.features[7] = 3e38f; }) == WGAP_FEATURES_NOT_FINITE);
  EXPECT(with([](Fixture& f) { f.logits[2] = NAN; }) == WGAP_LOGITS_NOT_FINITE);
  Fixture fixture(3, 4, 5, 6);
  const std::int64_t outside[1] = {3};
  EXPECT(fixture.localize(outside) == WGAP_CLASS_OUT_OF_RANGE);
  EXPECT(wgap_localize(nullptr, &fixture.input, fixture.classifier, &fixture.options, nullptr, &fixture.record,
                       nullptr) == WGAP_INVALID_ARGUMENT);

  const float bad[2] = {1.0f, NAN};
  wgap_classifier* classifier = nullptr;
  EXPECT(wgap_classifier_create(bad, 1, 2, &classifier) == WGAP_WEIGHTS_NOT_FINITE && classifier == nullptr);
  wgap_workspace* workspace = nullptr;
  EXPECT(wgap_workspace_create(0, nullptr, &workspace) == WGAP_INVALID_ARGUMENT);
  EXPECT(wgap_workspace_create(1025, nullptr, &workspace) == WGAP_INVALID_ARGUMENT);
  EXPECT(wgap_workspace_create(1, "mmx", &workspace) == WGAP_UNSUPPORTED_TARGET && workspace == nullptr);
  for (int status = WGAP_OK; status <= WGAP_OUT_OF_MEMORY; ++status)
    EXPECT(std::strcmp(wgap_status_string(static_cast<wgap_status>(status)), "unknown status") != 0);
}

// Shapes at the edge of what is promised; every target agrees on them.
void extremes() {
  const int shapes[][6] = {// classes, channels, h, w, H, W
                           {2, 3, 1, 1, 1, 1},        {2, 3, 4, 5, 1, 1 << 20}, {2, 3, 4, 5, 1 << 20, 1},
                           {2, 3, 4, 5, 13, 80001},   {2, 3, 1, 9, 1024, 1024}, {1, 2, 40, 50, 3, 2},
                           {50000, 2, 3, 3, 64, 128}, {2, 1030, 2, 7, 65, 63}};
  for (const auto& s : shapes) {
    wgap_record expected{};
    for (const char* const* target = wgap_targets(); *target != nullptr; ++target) {
      Fixture fixture(s[0], s[1], s[2], s[3], *target);
      fixture.options.map_height = s[4];
      fixture.options.map_width = s[5];
      EXPECT(fixture.localize() == WGAP_OK);
      EXPECT(std::string(wgap_workspace_target(fixture.workspace)) == *target);
      const wgap_record& r = fixture.record;
      EXPECT(0 <= r.box[0] && r.box[0] < r.box[2] && r.box[2] <= s[5]);
      EXPECT(0 <= r.box[1] && r.box[1] < r.box[3] && r.box[3] <= s[4]);
      if (target == wgap_targets()) expected = r;
      EXPECT(std::memcmp(&expected, &r, sizeof r) == 0);
    }
  }
}

void resizes() {
  std::vector<std::uint8_t> source(7 * 5 * 4), out(300 * 200 * 4);
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::uint8_t>(37 * i);
  for (int channels = 1; channels <= 4; ++channels) {
    // Same size: the same bytes. One pixel: that pixel everywhere.
    EXPECT(wgap_resize(source.data(), 7, 5, 5 * channels, out.data(), 7, 5, 5 * channels, channels) == WGAP_OK);
    EXPECT(std::memcmp(source.data(), out.data(), static_cast<std::size_t>(7 * 5 * channels)) == 0);
    EXPECT(wgap_resize(source.data(), 1, 1, channels, out.data(), 300, 200, 200 * channels, channels) == WGAP_OK);
    for (int i = 0; i < 300 * 200 * channels; ++i) EXPECT(out[i] == source[i % channels]);
  }
  EXPECT(wgap_resize(source.data(), 7, 5, 25, out.data(), 3, 3, 15, 5) == WGAP_INVALID_ARGUMENT);
  EXPECT(wgap_resize(source.data(), 7, 0, 25, out.data(), 3, 3, 15, 3) == WGAP_INVALID_ARGUMENT);
}

}  // namespace

int main() {
  refusals();
  extremes();
  resizes();
  return 0;
}
