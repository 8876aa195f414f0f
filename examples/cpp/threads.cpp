// Several threads share one localizer: threads BUNDLE THREADS IMAGE...
//
// Prints a JSON line for each image, in their order, as `wgap localize --json` does.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>
#include <wgap/wgap.hpp>

int main(int count, char** arguments) {
  const int workers = count > 3 ? std::atoi(arguments[2]) : 0;
  if (workers < 1) {
    std::fprintf(stderr, "usage: threads BUNDLE THREADS IMAGE...\n");
    return 2;
  }
  // Each of our threads runs its own picture on one core. Few callers and many cores: leave threads at 0 instead.
  wgap::Options options;
  options.threads = 1;
  const auto localizer = wgap::Localizer::open(arguments[1], options);
  if (!localizer) {
    std::fprintf(stderr, "error: %s\n", localizer.error().text.c_str());
    return 1;
  }
  std::vector<std::string> lines(static_cast<std::size_t>(count - 3));
  std::atomic<std::size_t> next{0};
  std::atomic<int> failed{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < lines.size(); i = next++) {
      const auto result = localizer->file(arguments[i + 3]);  // no lock: calls do not disturb each other
      if (!result) ++failed;
      lines[i] = result ? result->json : result.error().json;
      // Only what concerns a picture has a JSON line; a network that fails concerns all of them.
      if (lines[i].empty()) std::fprintf(stderr, "error: %s\n", result.error().text.c_str());
    }
  };
  std::vector<std::thread> threads;
  for (int n = 0; n < workers; ++n) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();  // before the localizer is closed

  for (const std::string& line : lines)
    if (!line.empty()) std::puts(line.c_str());
  return failed > 0 ? 1 : 0;
}
