// One localizer under many threads, and in a forked child: test_sdk_threads BUNDLE [PICTURES [FILES...]]
// With files, through ONNX Runtime; else pixels, through an engine of one's own.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <thread>

#include "fake.h"

namespace {

long resident_kib() {
  std::ifstream file("/proc/self/statm");
  long size = 0, resident = 0;
  file >> size >> resident;
  return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

}  // namespace

int main(int count, char** arguments) {
  constexpr int kThreads = 8;
  const int pictures = count > 2 ? std::atoi(arguments[2]) : 2000, files = std::max(0, count - 3);
  const auto network = std::make_shared<FakeNetwork>(Sizes(arguments[1]));
  wgap::Options options;
  if (files == 0) options.network = network;
  const auto localizer = wgap::Localizer::open(arguments[1], options);
  const int kinds = files > 0 ? files : 16;
  std::vector<std::vector<std::uint8_t>> rgb;
  for (int n = 0; n < kinds; ++n) rgb.push_back(pixels(static_cast<unsigned>(n), 30, 20 + n % 16));
  const auto line_of = [&](int i, bool heatmaps) {
    if (files > 0) return localizer->file(arguments[3 + i % kinds], {heatmaps})->json;
    return localizer->pixels({rgb[static_cast<std::size_t>(i % kinds)].data(), 30, 20 + i % 16, 0}, {heatmaps})->json;
  };
  std::vector<std::string> expected;
  for (int n = 0; n < kinds; ++n) expected.push_back(line_of(n, false));
  std::atomic<int> next{0}, wrong{0};
  std::vector<long> memory;
  const auto work = [&](bool first) {
    for (int i = next++; i < pictures; i = next++) {
      wrong += line_of(i, i % 3 == 0) != expected[static_cast<std::size_t>(i % kinds)];
      if (first && i >= pictures / 10 * static_cast<int>(memory.size() + 1)) memory.push_back(resident_kib());
    }
  };
  std::vector<std::thread> threads;
  for (int n = 0; n < kThreads; ++n) threads.emplace_back(work, n == 0);
  for (std::thread& thread : threads) thread.join();
  EXPECT(wrong == 0);
  std::printf("%d pictures by %d threads through %s; memory in KiB after each tenth:", pictures, kThreads,
              localizer->backend().c_str());
  for (const long kib : memory) std::printf(" %ld", kib);
  std::printf("\n");
  if (files > 0) return std::puts("passed"), 0;
  EXPECT(network->calls == network->released && network->calls == pictures + kinds);

  // An engine without threads of its own goes on in a child; so does the kernel.
  const pid_t child = fork();
  EXPECT(child >= 0);
  if (child == 0) _exit(line_of(0, false) == expected[0] ? 0 : 1);
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  std::puts("passed");
}
