// Where the kernel's time goes, without Python, on one thread: median microseconds of each stage, of a whole call, and of
// merely reading the features once, as one JSON object.
//
//   kernel_stages [--target NAME] [--repeats N]                                     generated feature maps, 512x14x14
//   kernel_stages [--rule foreground|foreground+colour] ...      generated 28x28 scores, and pictures of that size times 8
//   kernel_stages [...] FEATURES LOGITS WEIGHT N C h w K [SIZE]     raw float32: [N][C][h][w], [N][K] and [K][C]
//
// Top-1 class, adaptive threshold unless another rule is named, a SIZE x SIZE map (224).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "expect.h"
#include "targets.h"
#include "wgap/kernel/logs.h"
#include "workspace.h"

namespace {

constexpr const char* kStageNames[] = {"class", "recombine", "upsample_columns", "quantise", "edges",
                                       "level", "component", "heatmap",          "scores",   "colour"};
static_assert(sizeof kStageNames / sizeof kStageNames[0] == wgap::kStages, "a stage has no name");

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  std::exit(1);
}

struct Data {
  wgap::Shape shape{512, 14, 14, 224, 224, 200};
  int images = 8;
  std::vector<float> features, logits, weight, scores;
  std::vector<std::uint8_t> pictures;
};

// Every channel a bump, most of them near a common object, cut off so that most values are zero.
Data generated() {
  Data d;
  Random random{20220527};
  const auto about = [&](float centre, float spread) { return centre + spread * (2.0f * random.unit() - 1.0f); };
  for (int image = 0; image < d.images; ++image) {
    const float cy = about(7.0f, 2.5f), cx = about(7.0f, 2.5f);
    for (int c = 0; c < d.shape.channels; ++c) {
      const float spread = random.below(10) < 7 ? 4.0f : 9.0f, y0 = about(cy, spread), x0 = about(cx, spread);
      const float width = 0.6f + 1.6f * random.unit(), height = 300.0f * random.unit(), cut = 30.0f * random.unit();
      for (int y = 0; y < d.shape.height; ++y)
        for (int x = 0; x < d.shape.width; ++x) {
          const float dy = (static_cast<float>(y) - y0) / width, dx = (static_cast<float>(x) - x0) / width;
          d.features.push_back(std::fmax(0.0f, height * std::exp(-0.5f * (dy * dy + dx * dx)) - cut));
        }
    }
  }
  // An object that is brighter than a smooth ground, where the scores say, and a little beyond.
  for (int image = 0; image < d.images; ++image) {
    const float cy = about(14.0f, 5.0f), cx = about(14.0f, 5.0f);
    for (int y = 0; y < 28; ++y)
      for (int x = 0; x < 28; ++x)
        d.scores.push_back(3.0f * std::exp(-std::hypot(y - cy, x - cx) / 8.0f) - 1.3f + about(0.0f, 0.2f));
    for (int y = 0; y < 224; ++y)
      for (int x = 0; x < 224; ++x) {
        const float bright = std::hypot(y / 8.0f - cy, x / 8.0f - cx) < 7.0f ? 150.0f : 60.0f;
        for (int channel = 0; channel < 3; ++channel)
          d.pictures.push_back(static_cast<std::uint8_t>(about(bright + 20.0f * channel + x / 10.0f, 12.0f)));
      }
  }
  d.logits = random_floats(random, static_cast<std::size_t>(d.images) * d.shape.classes);
  d.weight = random_floats(random, static_cast<std::size_t>(d.shape.classes) * d.shape.channels);
  return d;
}

std::vector<float> read_floats(const std::string& path, std::size_t count) {
  std::vector<float> values(count);
  std::ifstream file(path, std::ios::binary);
  const std::streamsize bytes = static_cast<std::streamsize>(count * sizeof(float));
  if (!file.read(reinterpret_cast<char*>(values.data()), bytes) || file.peek() != std::ifstream::traits_type::eof())
    fail(path + ": expected exactly " + std::to_string(bytes) + " bytes of float32");
  return values;
}

Data from_files(const std::vector<std::string>& words) {
  Data d;
  int size = 224;
  int* const numbers[] = {&d.images, &d.shape.channels, &d.shape.height, &d.shape.width, &d.shape.classes, &size};
  for (std::size_t i = 3; i < words.size(); ++i) {
    *numbers[i - 3] = std::atoi(words[i].c_str());
    if (*numbers[i - 3] < 1) fail("every size must be at least 1, got " + words[i]);
  }
  d.shape.map_height = d.shape.map_width = size;
  const std::size_t images = static_cast<std::size_t>(d.images), classes = static_cast<std::size_t>(d.shape.classes);
  d.features = read_floats(words[0], images * d.shape.channels * d.shape.height * d.shape.width);
  d.logits = read_floats(words[1], images * classes);
  d.weight = read_floats(words[2], classes * d.shape.channels);
  return d;
}

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

int main(int count, char** arguments) {
  const char* name = nullptr;
  wgap::Rule rule = wgap::adaptive_rule();
  int repeats = 200, at = 1;
  for (; at + 1 < count && std::string(arguments[at]).rfind("--", 0) == 0; at += 2) {
    const std::string option = arguments[at];
    if (option == "--target") name = arguments[at + 1];
    if (option == "--repeats") repeats = std::atoi(arguments[at + 1]);
    const std::string value = arguments[at + 1];
    if (option == "--rule" && value != "adaptive") {
      rule = {value == "foreground" ? wgap::kForeground : wgap::kForegroundColour, wgap::kNoMap, 0, 0.0};
      if (value.rfind("foreground", 0) != 0) fail("unknown rule " + value);
    }
    if (option != "--target" && option != "--repeats" && option != "--rule") fail("unknown option " + option);
  }
  const std::vector<std::string> words(arguments + at, arguments + count);
  if (!words.empty() && words.size() != 8 && words.size() != 9)
    fail("usage: kernel_stages [--target NAME] [--repeats N] [FEATURES LOGITS WEIGHT N C h w K [SIZE]]");
  if (!words.empty() && wgap::on_scores(rule)) fail("scores and pictures are generated: name no files");
  Data data = words.empty() ? generated() : from_files(words);
  if (wgap::on_scores(rule)) {
    data.shape.channels = data.shape.height = data.shape.width = 0;
    data.shape.score_height = data.shape.score_width = 28;
    data.shape.colour = rule.kind == wgap::kForegroundColour;
  }
  std::vector<int> logs(static_cast<std::size_t>(wgap::logs_for(data.shape)));
  wgap::fill_logs(logs.data(), 0, logs.size());
  const wgap::Target* const target = name != nullptr ? wgap::target_named(name) : wgap::default_target();
  if (target == nullptr) fail("this machine does not run the instruction set that was asked for");
  if (repeats < 1) fail("expected --repeats of at least 1");

  wgap::Memory memory;
  void* const scratch = memory.at_least(target->scratch_bytes(data.shape));
  if (scratch == nullptr) fail("out of memory");
  target->prepare(data.shape, scratch);
  const std::size_t per_image = data.features.size() / static_cast<std::size_t>(data.images);
  wgap::Problem problem{};
  problem.shape = data.shape;
  problem.weight = data.weight.data();
  problem.rule = rule;
  problem.logs = logs.data();
  problem.class_id = -1;

  using Clock = std::chrono::steady_clock;
  const auto microseconds = [](Clock::duration d) { return std::chrono::duration<double, std::micro>(d).count(); };
  std::vector<double> stages[wgap::kStages], whole, read_once;
  volatile wgap::u64 seen = 0;
  for (int image = 0; image < data.images; ++image) {
    problem.features = data.features.data() + per_image * image;
    if (wgap::on_scores(rule)) {
      problem.scores = data.scores.data() + 28 * 28 * image;
      problem.picture = data.pictures.data() + 224 * 224 * 3 * image;
    }
    problem.logits = data.logits.data() + static_cast<std::size_t>(data.shape.classes) * image;
    for (int i = 0; i < repeats; ++i) {
      wgap::Record record{};
      wgap::u64 ticks[wgap::kStages], all = 0;
      const Clock::time_point start = Clock::now();
      target->profile(problem, scratch, &record, ticks);
      const Clock::time_point profiled = Clock::now();
      target->localize(problem, scratch, &record);
      const Clock::time_point localized = Clock::now();
      seen = target->read_once(problem.features, per_image * sizeof(float));
      const Clock::time_point read = Clock::now();
      if (record.status != wgap::kDone) fail("features or logits are not finite");
      for (const wgap::u64 t : ticks) all += t;
      const double tick = microseconds(profiled - start) / static_cast<double>(all);
      for (int stage = 0; stage < wgap::kStages; ++stage)
        stages[stage].push_back(static_cast<double>(ticks[stage]) * tick);
      whole.push_back(microseconds(localized - profiled));
      read_once.push_back(microseconds(read - localized));
    }
  }
  (void)seen;
  std::printf("{\"target\": \"%s\", \"images\": %d, \"repeats\": %d", target->name, data.images, repeats);
  for (int stage = 0; stage < wgap::kStages; ++stage)
    std::printf("%s\"%s\": %.2f", stage == 0 ? ", \"stages_us\": {" : ", ", kStageNames[stage], median(stages[stage]));
  std::printf("}, \"whole_us\": %.2f, \"read_once_us\": %.2f}\n", median(whole), median(read_once));
  return 0;
}
