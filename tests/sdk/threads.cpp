// One localizer under many threads, and in a forked child: test_sdk_threads BUNDLE [PICTURES]
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

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
  constexpr int kThreads = 8, kKinds = 16;
  const int pictures = count > 2 ? std::atoi(arguments[2]) : 2000;
  const auto network = std::make_shared<FakeNetwork>(Sizes(arguments[1]));
  wgap::Options options;
  options.network = network;
  const auto localizer = wgap::Localizer::open(arguments[1], options);
  std::vector<std::vector<std::uint8_t>> kinds;
  std::vector<std::string> expected;
  for (unsigned n = 0; n < kKinds; ++n) {
    kinds.push_back(pixels(n, 30, 20 + static_cast<int>(n)));
    expected.push_back(localizer->pixels({kinds.back().data(), 30, 20 + static_cast<int>(n), 0})->json);
  }
  std::atomic<int> next{0}, wrong{0};
  long early = 0;
  const auto work = [&](bool first) {
    for (int i = next++; i < pictures; i = next++) {
      const auto kind = static_cast<std::size_t>(i % kKinds);
      const auto found = localizer->pixels({kinds[kind].data(), 30, 20 + i % kKinds, 0}, i % 3 == 0);
      wrong += !found || found->json != expected[kind];
      if (first && early == 0 && i > pictures / 10) early = resident_kib();
    }
  };
  std::vector<std::thread> threads;
  for (int n = 0; n < kThreads; ++n) threads.emplace_back(work, n == 0);
  for (std::thread& thread : threads) thread.join();
  EXPECT(wrong == 0);
  EXPECT(network->calls == network->released && network->calls == pictures + kKinds);
  std::printf("%d pictures by %d threads; %ld KiB early, %ld at the end\n", pictures, kThreads, early, resident_kib());

  // An engine without threads of its own goes on in a child; so does the kernel.
  const pid_t child = fork();
  EXPECT(child >= 0);
  if (child == 0) _exit(localizer->pixels({kinds[0].data(), 30, 20, 0})->json == expected[0] ? 0 : 1);
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  std::puts("passed");
}
