// wgap-bench: latency of a bundle from C++. Its JSON is that of `wgap bench --export`, which `wgap bench --compare` reads.
#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "arguments.h"

namespace {

constexpr const char* kUsage =
    "Usage: wgap-bench [OPTIONS] BUNDLE IMAGES...\n"
    "\n"
    "Time BUNDLE on image files: reading, decoding and resizing; the network; the kernel; and the whole of it.\n"
    "\n"
    "  --batch N,N,...    pictures per call; several take turns; default: 1\n"
    "  --iterations N     timed calls of each; default: 50\n"
    "  --warmup N         untimed ones before them; default: 5\n"
    "  --backend NAME, --precision NAME, --rule RULE, --map MAP, --threads N, --library FILE, --device GPU, "
    "--ungated,\n"
    "  --hint HINT, --streams N\n"
    "                     as of wgap-localize\n"
    "  --json             print the report as JSON, with every time, for wgap bench --compare\n"
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

  double quantile(double q) const {  // as NumPy's
    std::vector<double> sorted = times;
    std::sort(sorted.begin(), sorted.end());
    const double at = q * static_cast<double>(sorted.size() - 1), below = std::floor(at);
    const auto low = static_cast<std::size_t>(below), high = std::min(low + 1, sorted.size() - 1);
    return sorted[low] + (at - below) * (sorted[high] - sorted[low]);
  }
  double mean() const { return std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(times.size()); }
};

// One batch size.
struct Cell {
  std::size_t batch;
  wgap::Localizer localizer;
  double open_ms;
  Stage stages[4] = {{"prepare", {}}, {"network", {}}, {"kernel", {}}, {"total", {}}};

  const Stage& total() const { return stages[3]; }

  // The call of that number, on the pictures that are its turn.
  void run(const std::vector<std::string>& images, std::size_t number, bool timed) {
    std::vector<wgap_picture> pictures(batch, WGAP_PICTURE_INIT);
    for (std::size_t i = 0; i < batch; ++i) pictures[i].path = images[(number * batch + i) % images.size()].c_str();
    wgap_error error = WGAP_ERROR_INIT;
    wgap_results* raw = nullptr;
    const auto before = Clock::now();
    if (wgap_localizer_run(localizer.handle(), pictures.data(), static_cast<int64_t>(batch), nullptr, &raw, &error) !=
        WGAP_OK)
      end_with(1, shown(error.text));
    const double total = milliseconds(before);
    const std::unique_ptr<wgap_results, void (*)(wgap_results*)> results(raw, wgap_results_destroy);
    for (std::size_t i = 0; i < batch; ++i)
      if (wgap_results_status(raw, static_cast<int64_t>(i)) != WGAP_OK)
        end_with(1, shown(wgap_results_message(raw, static_cast<int64_t>(i))));
    wgap_timings timings = WGAP_TIMINGS_INIT;
    wgap_results_timings(raw, &timings, nullptr);
    if (!timed) return;
    const double times[] = {timings.prepare_ms, timings.network_ms, timings.kernel_ms, total};
    for (std::size_t n = 0; n < 4; ++n) stages[n].times.push_back(times[n]);
  }
};

std::string quoted(const std::string& value) {
  std::string made = "\"";
  for (const char c : value) {
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    const bool plain = static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\' && c != 0x7f;
    made += plain ? std::string(1, c) : escaped;
  }
  return made + "\"";
}

std::string name_of(const wgap_rule& rule) {
  static constexpr const char* kKinds[] = {"adaptive", "fixed", "foreground", "foreground+colour"};
  std::string name = kKinds[rule.kind];
  if (rule.kind != WGAP_RULE_FIXED) return name;
  char eta[32];
  const auto end = std::to_chars(eta, eta + sizeof eta, rule.parameters[0]).ptr;
  const std::string text(eta, end);
  return name + ":" + text + (text.find_first_of(".e") == std::string::npos ? ".0" : "");  // as Python's repr
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(std::min(line.find(": ") + 2, line.size()));
  return "unknown";
}

double peak_rss_mib() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

// Numbers of 1 or more, separated by commas; 1 where none are given.
std::vector<int> numbers(wgap::programs::Arguments& arguments, const char* name) {
  std::vector<int> found;
  const std::string given = arguments.text(name), text = given.empty() ? "1" : given;
  for (std::size_t start = 0; start <= text.size();) {
    const std::size_t end = std::min(text.find(',', start), text.size());
    const std::string one = text.substr(start, end - start);
    if (one.empty() || one.size() > 4 || one[0] == '0' || one.find_first_not_of("0123456789") != std::string::npos)
      arguments.refuse(std::string(name) +
                       " expects whole numbers of 1 or more, separated by commas, such as 1,8; got '" + text + "'");
    found.push_back(std::stoi(one));
    start = end + 1;
  }
  return found;
}

void print_cell(const Cell& cell, const std::string& settings, int warmup) {
  std::printf("{\"settings\": {%s, \"batch\": %zu}, \"stages\": {", settings.c_str(), cell.batch);
  for (const Stage& stage : cell.stages)
    std::printf(
        "%s\"%s\": {\"samples\": %zu, \"p50_ms\": %.5f, \"p90_ms\": %.5f, \"p99_ms\": %.5f, \"mean_ms\": %.5f, "
        "\"min_ms\": %.5f}",
        &stage == cell.stages ? "" : ", ", stage.name, stage.times.size(), stage.quantile(0.5), stage.quantile(0.9),
        stage.quantile(0.99), stage.mean(), stage.quantile(0));
  std::printf("}, \"images_per_second\": %.4f, \"samples\": {",
              1000 * static_cast<double>(cell.batch) / cell.total().quantile(0.5));
  for (const Stage& stage : cell.stages) {
    std::printf("%s\"%s\": [", &stage == cell.stages ? "" : ", ", stage.name);
    for (std::size_t i = 0; i < stage.times.size(); ++i) std::printf("%s%.5f", i > 0 ? ", " : "", stage.times[i]);
    std::printf("]");
  }
  std::printf("}, \"warmup\": %d, \"open_ms\": %.3f}", warmup, cell.open_ms);
}

}  // namespace

int main(int count, char** given) {
  wgap::programs::Arguments arguments(count, given, kUsage);
  wgap::Options options = arguments.localizer();
  const int iterations = arguments.number("--iterations", 50), warmup = arguments.number("--warmup", 5);
  const std::vector<int> batches = numbers(arguments, "--batch");
  const bool json = arguments.flag("--json");
  std::vector<std::string> images = arguments.rest(2);
  if (iterations < 1 || warmup < 0) arguments.refuse("expected at least one iteration, and no warm-up below 0");
  const std::string bundle = images[0];
  images.erase(images.begin());

  std::vector<Cell> cells;
  for (const int size : batches) {
    options.batch_size = size;
    const auto start = Clock::now();
    auto localizer = wgap::Localizer::open(bundle, options);
    if (!localizer) end_with(1, shown(localizer.error().text));
    cells.push_back({static_cast<std::size_t>(size), std::move(*localizer), milliseconds(start)});
  }
  for (int round = -warmup; round < iterations; ++round) {
    const auto number = static_cast<std::size_t>(round + warmup);
    for (std::size_t turn = 0; turn < cells.size(); ++turn)
      cells[(number + turn) % cells.size()].run(images, number, round >= 0);
  }

  const wgap::Localizer& localizer = cells[0].localizer;
  const std::string backend = localizer.backend();
  if (json) {
    static constexpr const char* kMaps[] = {"recombined", "positive", "signed", "none"};
    const wgap_rule rule = localizer.rule();
    const std::size_t space = std::min(backend.find(' '), backend.size());
    const std::string name = backend.substr(0, space), version = backend.substr(std::min(space + 1, backend.size()));
    std::string settings = "\"bundle\": " + quoted(bundle) + ", \"backend\": " + quoted(name) +
                           ", \"precision\": " + quoted(options.precision.empty() ? "fp32" : options.precision) +
                           ", \"rule\": " + quoted(name_of(rule)) + ", \"map\": \"" + kMaps[rule.map] + "\"";
    if (options.threads > 0) settings += ", \"threads\": " + std::to_string(options.threads);
    const bool on_gpu = name == "tensorrt" || name == "onnxruntime_cuda";
    const std::string device = options.device.empty() && on_gpu ? "0" : options.device;
    if (!device.empty()) {
      const bool ordinal = device.find_first_not_of("0123456789") == std::string::npos;
      settings += ", \"device\": " + (ordinal ? device : quoted(device));
    }
    if (!options.hint.empty()) settings += ", \"hint\": " + quoted(options.hint);
    if (options.streams > 0) settings += ", \"streams\": " + std::to_string(options.streams);
    cpu_set_t cores;
    sched_getaffinity(0, sizeof cores, &cores);
    std::printf(
        "{\"schema\": 1, \"program\": \"wgap-bench\", \"image\": {\"source\": %s}, \"plan\": {\"iterations\": %d, "
        "\"warmup\": %d, \"pause_ms\": 0.0}, \"machine\": {\"cpu\": %s, \"cores\": %d, \"peak_rss_mib\": %.1f}, "
        "\"versions\": {\"wgap\": \"%s\", %s: %s}, \"cells\": [",
        quoted(images.size() == 1 ? images[0] : std::to_string(images.size()) + " files").c_str(), iterations, warmup,
        quoted(cpu_model()).c_str(), CPU_COUNT(&cores), peak_rss_mib(), wgap_version(), quoted(name).c_str(),
        quoted(version).c_str());
    for (const Cell& cell : cells) {
      if (&cell != cells.data()) std::printf(", ");
      print_cell(cell, settings, warmup);
    }
    std::printf("]}\n");
    return 0;
  }
  std::printf("%s, peak memory %.0f MiB, %d calls\n", backend.c_str(), peak_rss_mib(), iterations);
  for (const Cell& cell : cells) {
    std::printf("batch %zu, opened in %.0f ms: %.1f images/s\n", cell.batch, cell.open_ms,
                1000 * static_cast<double>(cell.batch) / cell.total().quantile(0.5));
    std::printf("%-8s %9s %9s %9s %9s\n", "stage", "p10 ms", "p50 ms", "p90 ms", "p99 ms");
    for (const Stage& stage : cell.stages)
      std::printf("%-8s %9.3f %9.3f %9.3f %9.3f\n", stage.name, stage.quantile(0.1), stage.quantile(0.5),
                  stage.quantile(0.9), stage.quantile(0.99));
  }
  return 0;
}
