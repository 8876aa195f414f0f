// A batch gives the same records however many threads share it, and callers with their own workspaces do not disturb
// each other.
#include <cstring>
#include <thread>
#include <vector>

#include "expect.h"
#include "wgap/wgap.h"

namespace {

constexpr int kImages = 9, kChannels = 12, kSide = 7, kClasses = 5, kTop = 2;

struct Batch {
  std::vector<float> features, logits;
};

std::vector<wgap_record> localized(const Batch& batch, const wgap_classifier* classifier, int threads, int rounds) {
  wgap_workspace* workspace = nullptr;
  EXPECT(wgap_workspace_create(threads, nullptr, &workspace) == WGAP_OK);
  std::vector<wgap_record> records(kImages * kTop);
  const wgap_input input{batch.features.data(), batch.logits.data(), kImages, kChannels, kSide, kSide};
  wgap_options options = WGAP_OPTIONS_INIT;
  options.top_k = kTop;
  for (int round = 0; round < rounds; ++round) {
    // Shapes change between calls; the last one counts.
    options.map_height = options.map_width = round + 1 < rounds ? 20 + 13 * (round % 3) : 56;
    std::memset(records.data(), 0, records.size() * sizeof(wgap_record));
    EXPECT(wgap_localize(workspace, &input, classifier, &options, nullptr, records.data(), nullptr) == WGAP_OK);
  }
  wgap_workspace_destroy(workspace);
  return records;
}

bool same(const std::vector<wgap_record>& a, const std::vector<wgap_record>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(wgap_record)) == 0;
}

}  // namespace

int main() {
  Random random{3};
  Batch batch;
  for (int i = 0; i < kImages; ++i) {
    const std::vector<float> one = feature_maps(random, kChannels, kSide, kSide, i % 4);
    batch.features.insert(batch.features.end(), one.begin(), one.end());
  }
  batch.logits = random_floats(random, kImages * kClasses);
  const std::vector<float> weight = random_floats(random, kClasses * kChannels);
  wgap_classifier* classifier = nullptr;
  EXPECT(wgap_classifier_create(weight.data(), kClasses, kChannels, &classifier) == WGAP_OK);
  const std::vector<wgap_record> expected = localized(batch, classifier, 1, 1);
  for (const int threads : {2, 3, 8}) EXPECT(same(expected, localized(batch, classifier, threads, 20)));

  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&, i] { EXPECT(same(expected, localized(batch, classifier, 1 + i % 2, 10))); });
  for (std::thread& caller : callers) caller.join();

  // One bad image: its record says so, the others are complete.
  batch.features[batch.features.size() / kImages * 4 + 3] = INFINITY;
  wgap_workspace* workspace = nullptr;
  EXPECT(wgap_workspace_create(2, nullptr, &workspace) == WGAP_OK);
  const wgap_input input{batch.features.data(), batch.logits.data(), kImages, kChannels, kSide, kSide};
  wgap_options options = WGAP_OPTIONS_INIT;
  options.top_k = kTop;
  options.map_height = options.map_width = 56;
  std::vector<wgap_record> records(expected.size());
  EXPECT(wgap_localize(workspace, &input, classifier, &options, nullptr, records.data(), nullptr) ==
         WGAP_FEATURES_NOT_FINITE);
  for (int i = 0; i < kImages * kTop; ++i) {
    const bool bad = i / kTop == 4;
    EXPECT(records[i].status == (bad ? WGAP_FEATURES_NOT_FINITE : WGAP_OK));
    EXPECT(bad || std::memcmp(&records[i], &expected[i], sizeof(wgap_record)) == 0);
  }
  wgap_workspace_destroy(workspace);
  wgap_classifier_destroy(classifier);
  return 0;
}
