// A batch gives the same records however many threads share it; callers with their own workspaces do not disturb each
// other, and of two callers with one workspace one is told so.
#include <atomic>
#include <thread>

#include "batch.h"

namespace {

constexpr int kImages = 9, kClasses = 5, kTop = 2;

// What the last of several calls writes; shapes change between them.
std::string localized(int threads, int rounds) {
  Batch batch(kImages, kClasses, 12, 7, 7);
  const Workspace workspace(threads);
  for (int round = 0; round < rounds; ++round) {
    const int side = round + 1 < rounds ? 20 + 13 * (round % 3) : 56;
    batch.want(kTop, side, side, true, true);
    EXPECT(batch.localize(workspace) == WGAP_OK);
  }
  return batch.written();
}

// Every call answers WGAP_OK with the right records, or WGAP_BUSY with none.
void two_callers_of_one_workspace() {
  const Workspace workspace(2);
  std::atomic<int> done{0}, refused{0};
  const auto caller = [&](int side) {
    Batch batch(kImages, kClasses, 12, 7, 7);
    batch.want(kTop, side, side);
    EXPECT(batch.localize(Workspace(1)) == WGAP_OK);
    const std::string expected = batch.written();
    std::memset(batch.records.data(), 0x5a, batch.records.size() * sizeof(wgap_record));
    const std::string untouched = batch.written();
    // Until both have been refused and served; a workspace that serves one call at a time refuses soon.
    for (int i = 0; i < 200 || (refused == 0 && i < 20000); ++i) {
      std::memset(batch.records.data(), 0x5a, batch.records.size() * sizeof(wgap_record));
      batch.error = WGAP_ERROR_INIT;
      const wgap_status status = batch.localize(workspace);
      EXPECT(status == WGAP_OK || status == WGAP_BUSY);
      EXPECT(batch.written() == (status == WGAP_OK ? expected : untouched));
      EXPECT(status == WGAP_OK || std::strstr(batch.error.text, "another thread") != nullptr);
      ++(status == WGAP_OK ? done : refused);
    }
  };
  std::thread other(caller, 40);
  caller(56);
  other.join();
  EXPECT(done > 0 && refused > 0);
  Batch batch(kImages, kClasses, 12, 7, 7);
  EXPECT(batch.localize(workspace) == WGAP_OK);  // and it is free again
}

// Its record says so, the others are complete.
void one_bad_image() {
  Batch batch(kImages, kClasses, 12, 7, 7);
  const Workspace workspace(2);
  batch.want(kTop, 56, 56);
  EXPECT(batch.localize(workspace) == WGAP_OK);
  const std::vector<wgap_record> expected = batch.records;
  batch.features[batch.features.size() / kImages * 4 + 3] = INFINITY;
  EXPECT(batch.localize(workspace) == WGAP_FEATURES_NOT_FINITE);
  EXPECT(batch.error.status == WGAP_FEATURES_NOT_FINITE);
  EXPECT(std::strstr(batch.error.text, "image 4 of the batch: features hold NaN") != nullptr);
  for (int i = 0; i < kImages * kTop; ++i) {
    const bool bad = i / kTop == 4;
    EXPECT(batch.records[i].status == (bad ? WGAP_FEATURES_NOT_FINITE : WGAP_OK));
    EXPECT(bad || std::memcmp(&batch.records[i], &expected[i], sizeof(wgap_record)) == 0);
  }
}

}  // namespace

int main() {
  const std::string expected = localized(1, 1);
  for (const int threads : {2, 3, 8}) EXPECT(expected == localized(threads, 20));
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) callers.emplace_back([&, i] { EXPECT(expected == localized(1 + i % 2, 10)); });
  for (std::thread& caller : callers) caller.join();
  two_callers_of_one_workspace();
  one_bad_image();
  return 0;
}
