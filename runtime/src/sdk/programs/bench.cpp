// wgap-bench: latency of a bundle from C++.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "arguments.h"

namespace {

constexpr const char* kUsage =
    "Usage: wgap-bench [OPTIONS] BUNDLE IMAGES...\n"
    "\n"
    "Time BUNDLE on image files, one by one: reading, decoding and resizing; the network; the kernel; and the whole of "
    "it.\n"
    "\n"
    "  --iterations N     timed pictures, round and round; default: 50\n"
    "  --warmup N         untimed ones before them; default: 5\n"
    "  --backend NAME, --precision NAME, --rule RULE, --map MAP, --threads N, --library FILE, --device GPU, --ungated\n"
    "                     as of wgap-localize\n"
    "  --json             print the report as JSON, with every time\n"
    "  --version, --help\n";

using Clock = std::chrono::steady_clock;
using wgap::programs::end_with;
using wgap::programs::shown;

double milliseconds(Clock::time_point since) {
  return std::chrono::duration<double, std::milli>(Clock::now() - since).count();
}

struct Stage {
  const char* name;
  std::vector<double> times;

  double quantile(double q) const {
    std::vector<double> sorted = times;
    std::sort(sorted.begin(), sorted.end());
    return sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1) + 0.5)];
  }
};

}  // namespace

int main(int count, char** given) {
  wgap::programs::Arguments arguments(count, given, kUsage);
  const wgap::Options options = arguments.localizer();
  const int iterations = arguments.number("--iterations", 50), warmup = arguments.number("--warmup", 5);
  const bool json = arguments.flag("--json");
  std::vector<std::string> images = arguments.rest(2);
  if (iterations < 1 || warmup < 0) arguments.refuse("expected at least one iteration, and no warm-up below 0");
  const std::string bundle = images[0];
  images.erase(images.begin());
  const auto start = Clock::now();
  const auto localizer = wgap::Localizer::open(bundle, options);
  if (!localizer) end_with(1, shown(localizer.error().text));
  const double open_ms = milliseconds(start);
  Stage stages[] = {{"prepare", {}}, {"network", {}}, {"kernel", {}}, {"total", {}}};
  for (int i = -warmup; i < iterations; ++i) {
    wgap_picture picture = WGAP_PICTURE_INIT;
    picture.path = images[static_cast<std::size_t>(i + warmup) % images.size()].c_str();
    wgap_error error = WGAP_ERROR_INIT;
    wgap_results* raw = nullptr;
    const auto before = Clock::now();
    if (wgap_localizer_run(localizer->handle(), &picture, 1, nullptr, &raw, &error) != WGAP_OK)
      end_with(1, shown(error.text));
    const double total = milliseconds(before);
    const std::unique_ptr<wgap_results, void (*)(wgap_results*)> results(raw, wgap_results_destroy);
    if (wgap_results_status(raw, 0) != WGAP_OK) end_with(1, shown(wgap_results_message(raw, 0)));
    wgap_timings timings = WGAP_TIMINGS_INIT;
    wgap_results_timings(raw, &timings, nullptr);
    if (i < 0) continue;
    const double times[] = {timings.prepare_ms, timings.network_ms, timings.kernel_ms, total};
    for (std::size_t n = 0; n < 4; ++n) stages[n].times.push_back(times[n]);
  }
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  if (json) {
    std::printf("{\"backend\": \"%s\", \"open_ms\": %.3f, \"peak_rss_mib\": %.1f, \"stages\": {",
                localizer->backend().c_str(), open_ms, static_cast<double>(usage.ru_maxrss) / 1024);
    for (const Stage& stage : stages) {
      std::printf("%s\"%s\": [", stage.name == stages[0].name ? "" : ", ", stage.name);
      for (std::size_t i = 0; i < stage.times.size(); ++i) std::printf("%s%.4f", i > 0 ? ", " : "", stage.times[i]);
      std::printf("]");
    }
    std::printf("}}\n");
    return 0;
  }
  std::printf("%s, opened in %.0f ms, peak memory %.0f MiB, %d pictures\n", localizer->backend().c_str(), open_ms,
              static_cast<double>(usage.ru_maxrss) / 1024, iterations);
  std::printf("%-8s %9s %9s %9s %9s\n", "stage", "p10 ms", "p50 ms", "p90 ms", "p99 ms");
  for (const Stage& stage : stages)
    std::printf("%-8s %9.3f %9.3f %9.3f %9.3f\n", stage.name, stage.quantile(0.1), stage.quantile(0.5),
                stage.quantile(0.9), stage.quantile(0.99));
  return 0;
}
