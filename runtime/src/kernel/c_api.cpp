// The C interface: checks arguments, loops, translates. The arithmetic is in localize_block.h and resize.h.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "record.h"
#include "targets.h"
#include "wgap/wgap.h"
#include "workspace.h"

static_assert(WGAP_LEVELS == wgap::kLevels, "the C header and the kernel disagree on the levels");

struct wgap_classifier {
  std::unique_ptr<float[]> weight;
  std::int32_t classes;
  std::int32_t channels;
};

struct wgap_workspace {
  wgap::Workspace engine;
};

namespace {

constexpr double kLargestFixed = 0.999;  // beyond it the peak itself could round below the threshold

bool aligned(const void* p, std::size_t alignment) { return reinterpret_cast<std::uintptr_t>(p) % alignment == 0; }

// Everything a task needs; task i is image i / per_image, rank i % per_image.
struct Call {
  const wgap::Target* target;
  const wgap_input* input;
  const wgap_classifier* classifier;
  const std::int64_t* classes;
  wgap_record* records;
  float* heatmaps;
  wgap::Shape shape;
  std::int64_t per_image;
  int map;
  int fixed;
  double fixed_eta;
};

void run_task(const void* context, long long i, void* scratch) {
  const Call& call = *static_cast<const Call*>(context);
  const wgap::Shape& shape = call.shape;
  const std::int64_t image = i / call.per_image;
  const std::size_t feature_count = static_cast<std::size_t>(shape.channels) * shape.height * shape.width;
  const std::size_t pixels = static_cast<std::size_t>(shape.map_height) * shape.map_width;
  wgap::Problem problem{};
  problem.shape = shape;
  problem.features = call.input->features + feature_count * image;
  problem.logits = call.input->logits + static_cast<std::size_t>(shape.classes) * image;
  problem.weight = call.classifier->weight.get();
  problem.map = call.map;
  problem.class_id = call.classes != nullptr ? static_cast<int>(call.classes[image]) : -1;
  problem.class_rank = static_cast<int>(i % call.per_image);
  problem.fixed = call.fixed;
  problem.fixed_eta = call.fixed_eta;
  problem.heatmap = call.heatmaps != nullptr ? call.heatmaps + pixels * i : nullptr;
  wgap::Result result;
  call.target->localize(problem, scratch, &result);
  wgap::tell(result, &call.records[i]);
}

// a * b <= limit for positive a, b.
bool product_within(std::int64_t a, std::int64_t b, std::int64_t limit) { return a <= limit / b; }

wgap_status check(const wgap_input& input, const wgap_classifier& classifier, const wgap_options& options,
                  const std::int64_t* classes, const float* heatmaps) {
  if (options.struct_size != sizeof(wgap_options) || options.reserved != 0) return WGAP_INVALID_ARGUMENT;
  if (input.images < 0 || input.channels < 1 || input.height < 1 || input.width < 1) return WGAP_INVALID_ARGUMENT;
  if (options.map_height < 1 || options.map_width < 1) return WGAP_INVALID_ARGUMENT;
  if (options.map < WGAP_MAP_RECOMBINED || options.map > WGAP_MAP_SIGNED) return WGAP_INVALID_ARGUMENT;
  if (options.threshold != WGAP_ADAPTIVE && !(options.threshold >= 0.0 && options.threshold <= kLargestFixed))
    return WGAP_INVALID_ARGUMENT;
  if (input.images > 0 && (input.features == nullptr || input.logits == nullptr)) return WGAP_INVALID_ARGUMENT;
  if (!aligned(input.features, alignof(float)) || !aligned(input.logits, alignof(float)) ||
      !aligned(heatmaps, alignof(float)) || !aligned(classes, alignof(std::int64_t)))
    return WGAP_INVALID_ARGUMENT;
  if (input.channels != classifier.channels) return WGAP_SHAPE_MISMATCH;
  if (!product_within(input.height, input.width, wgap::kMaxPixels) ||
      !product_within(options.map_height, options.map_width, wgap::kMaxPixels) ||
      !product_within(input.height, options.map_width, 64LL * wgap::kMaxPixels))
    return WGAP_TOO_LARGE;
  const std::int64_t per_image = static_cast<std::int64_t>(input.height) * input.width;
  const std::int64_t most = std::numeric_limits<std::ptrdiff_t>::max() / static_cast<std::int64_t>(sizeof(float));
  if (!product_within(per_image, input.channels, most)) return WGAP_TOO_LARGE;
  if (input.images > 0 && !product_within(per_image * input.channels, input.images, most)) return WGAP_TOO_LARGE;
  if (classes == nullptr)
    return options.top_k < 1 || options.top_k > classifier.classes ? WGAP_CLASS_OUT_OF_RANGE : WGAP_OK;
  for (std::int64_t i = 0; i < input.images; ++i)
    if (classes[i] < 0 || classes[i] >= classifier.classes) return WGAP_CLASS_OUT_OF_RANGE;
  return WGAP_OK;
}

}  // namespace

extern "C" {

const char* wgap_status_string(wgap_status status) {
  switch (status) {
    case WGAP_OK: return "ok";
    case WGAP_INVALID_ARGUMENT:
      return "invalid argument: null or misaligned pointer, size below 1, or "
             "unknown option";
    case WGAP_SHAPE_MISMATCH: return "features and classifier differ in their number of channels";
    case WGAP_TOO_LARGE:
      return "map or feature map of more than 2^20 pixels, or larger than memory "
             "can hold";
    case WGAP_CLASS_OUT_OF_RANGE: return "class id or top_k outside the classifier's classes";
    case WGAP_FEATURES_NOT_FINITE:
      return "features hold NaN or infinity, or are too large to recombine in "
             "float32";
    case WGAP_LOGITS_NOT_FINITE: return "logits hold NaN or infinity";
    case WGAP_WEIGHTS_NOT_FINITE: return "classifier weights hold NaN or infinity";
    case WGAP_UNSUPPORTED_TARGET: return "instruction set unknown or not offered by this machine";
    case WGAP_OUT_OF_MEMORY: return "out of memory or threads";
  }
  return "unknown status";
}

#define WGAP_TEXT(number) WGAP_TEXT_OF(number)
#define WGAP_TEXT_OF(number) #number
const char* wgap_version(void) {
  return WGAP_TEXT(WGAP_VERSION_MAJOR) "." WGAP_TEXT(WGAP_VERSION_MINOR) "." WGAP_TEXT(WGAP_VERSION_PATCH);
}

const char* const* wgap_targets(void) { return wgap::supported_names(); }

wgap_status wgap_classifier_create(const float* weight, int32_t classes, int32_t channels,
                                   wgap_classifier** classifier) {
  if (weight == nullptr || classifier == nullptr || classes < 1 || channels < 1 || !aligned(weight, alignof(float)))
    return WGAP_INVALID_ARGUMENT;
  const std::size_t count = static_cast<std::size_t>(classes) * channels;
  for (std::size_t i = 0; i < count; ++i)
    if (!std::isfinite(weight[i])) return WGAP_WEIGHTS_NOT_FINITE;
  std::unique_ptr<wgap_classifier> made(new (std::nothrow) wgap_classifier);
  if (!made) return WGAP_OUT_OF_MEMORY;
  made->weight.reset(new (std::nothrow) float[count]);
  if (!made->weight) return WGAP_OUT_OF_MEMORY;
  std::memcpy(made->weight.get(), weight, count * sizeof(float));
  made->classes = classes;
  made->channels = channels;
  *classifier = made.release();
  return WGAP_OK;
}

void wgap_classifier_destroy(wgap_classifier* classifier) { delete classifier; }

wgap_status wgap_workspace_create(int32_t threads, const char* target, wgap_workspace** workspace) {
  if (threads < 1 || threads > WGAP_MOST_THREADS || workspace == nullptr) return WGAP_INVALID_ARGUMENT;
  const wgap::Target* const chosen = target != nullptr ? wgap::target_named(target) : wgap::default_target();
  if (chosen == nullptr) return WGAP_UNSUPPORTED_TARGET;
  try {
    *workspace = new wgap_workspace{{threads, *chosen}};
  } catch (...) {  // no memory or no threads: an exception must not cross a C
                   // boundary
    return WGAP_OUT_OF_MEMORY;
  }
  return WGAP_OK;
}

void wgap_workspace_destroy(wgap_workspace* workspace) { delete workspace; }

const char* wgap_workspace_target(const wgap_workspace* workspace) { return workspace->engine.target().name; }

wgap_status wgap_localize(wgap_workspace* workspace, const wgap_input* input, const wgap_classifier* classifier,
                          const wgap_options* options, const int64_t* classes, wgap_record* records, float* heatmaps) {
  if (workspace == nullptr || input == nullptr || classifier == nullptr || options == nullptr)
    return WGAP_INVALID_ARGUMENT;
  const wgap_status checked = check(*input, *classifier, *options, classes, heatmaps);
  if (checked != WGAP_OK || input->images == 0) return checked;
  if (records == nullptr || !aligned(records, alignof(wgap_record))) return WGAP_INVALID_ARGUMENT;
  const wgap::Shape shape{input->channels,     input->height,      input->width,
                          options->map_height, options->map_width, classifier->classes};
  if (!workspace->engine.prepare(shape)) return WGAP_OUT_OF_MEMORY;
  Call call{};
  call.target = &workspace->engine.target();
  call.input = input;
  call.classifier = classifier;
  call.classes = classes;
  call.records = records;
  call.heatmaps = heatmaps;
  call.shape = shape;
  call.per_image = classes != nullptr ? 1 : options->top_k;
  call.map = options->map;
  call.fixed_eta = options->threshold;
  call.fixed =
      options->threshold == WGAP_ADAPTIVE ? -1 : static_cast<int>(std::nearbyint(options->threshold * wgap::kOne));
  const std::int64_t tasks = input->images * call.per_image;
  workspace->engine.run(tasks, run_task, &call);
  for (std::int64_t i = 0; i < tasks; ++i)
    if (records[i].status != WGAP_OK) return static_cast<wgap_status>(records[i].status);
  return WGAP_OK;
}

wgap_status wgap_resize(const uint8_t* source, int32_t source_height, int32_t source_width, ptrdiff_t source_row_bytes,
                        uint8_t* destination, int32_t height, int32_t width, ptrdiff_t row_bytes, int32_t channels) {
  if (source == nullptr || destination == nullptr || source_height < 1 || source_width < 1 || height < 1 || width < 1 ||
      channels < 1 || channels > 4)
    return WGAP_INVALID_ARGUMENT;
  // Row counters inside are int.
  if (static_cast<std::int64_t>(width) * channels > std::numeric_limits<std::int32_t>::max()) return WGAP_TOO_LARGE;
  const wgap::Target* const target = wgap::default_target();
  if (target == nullptr) return WGAP_UNSUPPORTED_TARGET;
  thread_local wgap::Memory memory;
  const wgap::ImageView from{source, source_row_bytes, source_height, source_width};
  void* const scratch = memory.at_least(target->resize_bytes(channels, from, height, width));
  if (scratch == nullptr) return WGAP_OUT_OF_MEMORY;
  target->resize(channels, from, destination, row_bytes, height, width, scratch);
  return WGAP_OK;
}

}  // extern "C"
