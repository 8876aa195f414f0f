// The C interface: checks arguments, loops, translates. The arithmetic is in localize_block.h and resize.h.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "arithmetic.h"
#include "checks.h"
#include "rule.h"
#include "targets.h"
#include "wgap/wgap.h"
#include "workspace.h"

static_assert(WGAP_LEVELS == wgap::kLevels, "the C header and the kernel disagree on the levels");
static_assert(static_cast<int>(WGAP_FEATURES_NOT_FINITE) == wgap::kBadFeatures &&
                  static_cast<int>(WGAP_LOGITS_NOT_FINITE) == wgap::kBadLogits &&
                  static_cast<int>(WGAP_SCORES_NOT_FINITE) == wgap::kBadScores,
              "the C header and the kernel disagree on the statuses");
static_assert(WGAP_MOST_BOXES == wgap::kMostBoxes, "the C header and the kernel disagree on the boxes");
#define WGAP_SAME_PLACE(field)                                                 \
  static_assert(offsetof(wgap_record, field) == offsetof(wgap::Record, field), \
                "the C header and the kernel disagree on the record: " #field)
WGAP_SAME_PLACE(struct_size);
WGAP_SAME_PLACE(status);
WGAP_SAME_PLACE(class_id);
WGAP_SAME_PLACE(score);
WGAP_SAME_PLACE(logit);
WGAP_SAME_PLACE(level);
WGAP_SAME_PLACE(degenerate);
WGAP_SAME_PLACE(boxes);
WGAP_SAME_PLACE(threshold);
WGAP_SAME_PLACE(box);
static_assert(sizeof(wgap_record) == sizeof(wgap::Record), "the C header and the kernel disagree on the record");

struct wgap_classifier {
  std::unique_ptr<float[]> weight;
  std::int32_t classes;
  std::int32_t channels;
};

struct wgap_workspace {
  const wgap::Target& target;
  const int threads;
  std::unique_ptr<wgap::Workspace> engine;
  std::atomic<std::uint64_t> state;  // twice the number of forks that the process came out of; 1 more: in use

  wgap_workspace(int count, const wgap::Target& chosen)
      : target(chosen), threads(count), engine(new wgap::Workspace(count, chosen)), state(2 * wgap::forks()) {}
  // A forked child has none of the threads, and maybe memory in disorder: it leaves both alone.
  ~wgap_workspace() {
    if (state / 2 != wgap::forks()) static_cast<void>(engine.release());
  }
};

namespace {

using wgap::aligned;
using wgap::check_buffer;
using wgap::check_size;
using wgap::fail;
using wgap::product_within;

// The size of each struct in the first version of this minor number: an older one never was.
#define WGAP_FIRST_SIZE(type, last) (offsetof(type, last) + sizeof(type::last))
constexpr std::size_t kFirstOptions = WGAP_FIRST_SIZE(wgap_options, rule);
constexpr std::size_t kFirstInput = WGAP_FIRST_SIZE(wgap_input, class_ids_bytes);
constexpr std::size_t kFirstRecord = WGAP_FIRST_SIZE(wgap_record, box);
constexpr std::size_t kFirstOutput = WGAP_FIRST_SIZE(wgap_output, edge_means_bytes);
constexpr std::size_t kFirstImage = WGAP_FIRST_SIZE(wgap_image, bytes);

// The error, and a pointer that a call cannot do without.
template <class T>
wgap_status check_pointer(const char* name, const T* pointer, wgap_error* error) {
  WGAP_CHECK(wgap::check_error(error));
  if (pointer == nullptr || !aligned(pointer))
    return fail(error, WGAP_INVALID_ARGUMENT, "%s: expected an aligned pointer, got %p", name,
                static_cast<const void*>(pointer));
  return WGAP_OK;
}

// A struct of this version or an older one, over the defaults that are in `own`.
template <class T>
wgap_status adopt(const char* name, const T* given, std::size_t first, T* own, wgap_error* error) {
  WGAP_CHECK(check_pointer(name, given, error));
  WGAP_CHECK(check_size(name, given->struct_size, first, sizeof(T), error));
  std::memcpy(own, given, given->struct_size);
  return WGAP_OK;
}

// Everything a task needs; task i is image i / per_image, rank i % per_image.
struct Call {
  const wgap::Target* target;
  const float* weight;
  wgap_input input;
  wgap_output output;
  wgap::Shape shape;
  wgap::Rule rule;
  std::int64_t per_image;
  int max_boxes;
  const int* logs;
};

wgap_record* record_at(const wgap_output& output, std::int64_t i) {
  return reinterpret_cast<wgap_record*>(reinterpret_cast<unsigned char*>(output.records) + i * output.record_size);
}

void run_task(const void* context, long long i, void* scratch) {
  const Call& call = *static_cast<const Call*>(context);
  const wgap::Shape& shape = call.shape;
  const std::int64_t image = i / call.per_image;
  wgap::Problem problem{};
  problem.shape = shape;
  problem.rule = call.rule;
  problem.logits = call.input.logits + image * shape.classes;
  if (shape.channels > 0) problem.features = call.input.features + image * shape.channels * shape.height * shape.width;
  problem.weight = call.weight;
  if (shape.score_height > 0) problem.scores = call.input.scores + image * shape.score_height * shape.score_width;
  if (shape.colour) problem.picture = call.input.pictures + image * shape.map_height * shape.map_width * 3;
  problem.logs = call.logs;
  problem.max_boxes = call.max_boxes;
  problem.class_id = call.input.class_ids != nullptr ? static_cast<int>(call.input.class_ids[image]) : -1;
  problem.class_rank = static_cast<int>(i % call.per_image);
  if (call.output.heatmaps != nullptr)
    problem.heatmap = call.output.heatmaps + static_cast<std::int64_t>(shape.map_height) * shape.map_width * i;
  if (call.output.edge_means != nullptr) problem.edge_means = call.output.edge_means + (WGAP_LEVELS + 1) * i;
  wgap::Record records[wgap::kMostBoxes];
  call.target->localize(problem, scratch, records);
  for (int n = 0; n < call.max_boxes; ++n) {
    records[n].struct_size = std::min<std::uint32_t>(call.output.record_size, sizeof records[n]);
    std::memcpy(record_at(call.output, i * call.max_boxes + n), &records[n], records[n].struct_size);
  }
}

wgap_status check_buffers(const Call& call, wgap_error* error) {
  const wgap_input& input = call.input;
  const wgap_output& output = call.output;
  // Products of three or more numbers: the last pair is checked with the buffer.
  const std::int64_t cells = static_cast<std::int64_t>(input.height) * input.width;  // at most 2^20 where they are read
  WGAP_CHECK(check_buffer("logits", input.logits, input.logits_bytes, input.images, input.classes, error));
  const std::int64_t pixels = static_cast<std::int64_t>(call.shape.map_height) * call.shape.map_width;
  if (call.shape.channels > 0)
    WGAP_CHECK(
        check_buffer("features", input.features, input.features_bytes, input.images, cells * input.channels, error));
  if (call.shape.score_height > 0)
    WGAP_CHECK(check_buffer("scores", input.scores, input.scores_bytes, input.images,
                            static_cast<std::int64_t>(input.scores_height) * input.scores_width, error));
  if (call.shape.colour)
    WGAP_CHECK(check_buffer("pictures", input.pictures, input.pictures_bytes, input.images, pixels * 3, error));
  const std::int64_t results = input.images * call.per_image;  // at most images * classes, by the logits' check
  if (output.records == nullptr || !aligned(output.records))
    return fail(error, WGAP_INVALID_ARGUMENT, "records: expected a pointer aligned to %zu bytes, got %p",
                alignof(wgap_record), static_cast<const void*>(output.records));
  WGAP_CHECK(check_buffer("records", reinterpret_cast<const unsigned char*>(output.records), output.records_bytes,
                          results, static_cast<std::int64_t>(output.record_size) * call.max_boxes, error));
  if (output.heatmaps != nullptr)
    WGAP_CHECK(check_buffer("heatmaps", output.heatmaps, output.heatmaps_bytes, results, pixels, error));
  if (output.edge_means == nullptr) return WGAP_OK;
  return check_buffer("edge_means", output.edge_means, output.edge_means_bytes, results, WGAP_LEVELS + 1, error);
}

// Pixels that a row stride and a byte count must reach.
wgap_status check_image(const char* name, const wgap_image& image, wgap_error* error) {
  if (image.height < 1 || image.width < 1 || image.channels < 1 || image.channels > 4)
    return fail(error, WGAP_INVALID_ARGUMENT, "%s: expected at least 1x1 pixels of 1 to 4 channels, got %dx%d of %d",
                name, image.height, image.width, image.channels);
  const std::int64_t row = static_cast<std::int64_t>(image.width) * image.channels;
  if (row > std::numeric_limits<std::int32_t>::max())  // row counters inside are int
    return fail(error, WGAP_TOO_LARGE, "%s: a row of %lld bytes is more than 2^31", name, static_cast<long long>(row));
  if (image.row_bytes == std::numeric_limits<std::int64_t>::min() || std::abs(image.row_bytes) < row)
    return fail(error, WGAP_INVALID_ARGUMENT, "%s: expected a row stride of at least %lld bytes, got %lld", name,
                static_cast<long long>(row), static_cast<long long>(image.row_bytes));
  if (!product_within(image.height, std::abs(image.row_bytes), std::numeric_limits<std::int64_t>::max() / 2))
    return fail(error, WGAP_TOO_LARGE, "%s: %d rows of %lld bytes are more than can be addressed", name, image.height,
                static_cast<long long>(image.row_bytes));
  const std::int64_t span = (image.height - 1) * std::abs(image.row_bytes) + row;
  return check_buffer(name, image.data, image.bytes, span, 1, error);
}

const wgap::Target* target_or_fail(const char* name, wgap_error* error) {
  const wgap::Target* const chosen = name != nullptr ? wgap::target_named(name) : wgap::default_target();
  if (chosen == nullptr) {
    const char* const wanted = name != nullptr ? name : std::getenv("WGAP_TARGET");
    fail(error, WGAP_UNSUPPORTED_TARGET,
         "instruction set '%.32s'%s is not one that this machine runs; the best is '%s'",
         wanted != nullptr ? wanted : "", name != nullptr ? "" : " (WGAP_TARGET)", wgap::best_target().name);
  }
  return chosen;
}

wgap_status out_of_memory(const char* what, wgap_error* error) {
  return fail(error, WGAP_OUT_OF_MEMORY, "out of memory or threads for %s", what);
}

// The workspace for the length of one call, or the reason why not.
class Use {
 public:
  Use(wgap_workspace* workspace, wgap_error* error) : workspace_(workspace), now_(wgap::forks()) {
    std::uint64_t state = workspace->state.load(std::memory_order_acquire);
    if (state == 2 * now_ + 1 || !workspace->state.compare_exchange_strong(state, 2 * now_ + 1)) {
      status_ = fail(error, WGAP_BUSY, "another thread is using this workspace; give each thread its own");
      return;
    }
    taken_ = true;
    if (state / 2 == now_) return;
    // In a forked child: the threads are gone, and the memory may have been in use when the parent forked.
    static_cast<void>(workspace->engine.release());
    try {
      workspace->engine.reset(new wgap::Workspace(workspace->threads, workspace->target));
    } catch (...) {
      status_ = out_of_memory("a workspace in a forked process", error);
    }
  }
  // Without an engine it counts as the parent's, so that the next call tries again.
  ~Use() {
    if (taken_) workspace_->state.store(workspace_->engine ? 2 * now_ : ~0ULL - 1, std::memory_order_release);
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  wgap_status status() const { return status_; }

 private:
  wgap_workspace* const workspace_;
  const std::uint64_t now_;
  bool taken_ = false;
  wgap_status status_ = WGAP_OK;
};

}  // namespace

extern "C" {

const char* wgap_status_string(wgap_status status) {
  switch (status) {
    case WGAP_OK: return "ok";
    case WGAP_INVALID_ARGUMENT: return "invalid argument: null or misaligned pointer, size below 1, or unknown option";
    case WGAP_SHAPE_MISMATCH: return "classifier, features and logits differ in channels or classes";
    case WGAP_TOO_LARGE: return "map or feature map of more than 2^20 pixels, or larger than memory can hold";
    case WGAP_CLASS_OUT_OF_RANGE: return "class id or top_k outside the classifier's classes";
    case WGAP_FEATURES_NOT_FINITE: return "features hold NaN or infinity, or are too large to recombine in float32";
    case WGAP_LOGITS_NOT_FINITE: return "logits hold NaN or infinity";
    case WGAP_WEIGHTS_NOT_FINITE: return "classifier weights hold NaN or infinity";
    case WGAP_UNSUPPORTED_TARGET: return "instruction set unknown or not offered by this machine";
    case WGAP_OUT_OF_MEMORY: return "out of memory or threads";
    case WGAP_BUSY: return "the workspace is in use by another thread";
    case WGAP_STRUCT_TOO_NEW: return "a struct is larger than this library knows";
    case WGAP_BUFFER_TOO_SMALL: return "a buffer has fewer bytes than its sizes ask for";
    case WGAP_UNKNOWN_RULE: return "rule unknown, or its parameter out of range";
    case WGAP_SCORES_NOT_FINITE: return "scores hold NaN or infinity";
    case WGAP_IMAGE_ERROR: return "ImageError";
    case WGAP_DATA_ERROR: return "DataError";
    case WGAP_RULE_ERROR: return "RuleError";
    case WGAP_BUNDLE_ERROR: return "BundleError";
    case WGAP_MANIFEST_ERROR: return "ManifestError";
    case WGAP_HASH_MISMATCH_ERROR: return "HashMismatchError";
    case WGAP_GATE_ERROR: return "GateError";
    case WGAP_FEATURE_ERROR: return "FeatureError";
    case WGAP_BACKEND_ERROR: return "BackendError";
    case WGAP_ENGINE_ERROR: return "EngineError";
    case WGAP_ENGINE_MISMATCH_ERROR: return "EngineMismatchError";
    case WGAP_MISSING_DEPENDENCY_ERROR: return "MissingDependencyError";
    case WGAP_CHECK_FAILED_ERROR: return "CheckFailedError";
  }
  return "unknown status";
}

#define WGAP_TEXT(number) WGAP_TEXT_OF(number)
#define WGAP_TEXT_OF(number) #number
const char* wgap_version(void) {
  return WGAP_TEXT(WGAP_VERSION_MAJOR) "." WGAP_TEXT(WGAP_VERSION_MINOR) "." WGAP_TEXT(WGAP_VERSION_PATCH);
}

const char* const* wgap_targets(void) { return wgap::supported_names(); }

wgap_status wgap_classifier_create(const float* weight, uint64_t weight_bytes, int32_t classes, int32_t channels,
                                   wgap_classifier** classifier, wgap_error* error) {
  WGAP_CHECK(check_pointer("classifier", classifier, error));
  if (classes < 1 || channels < 1)
    return fail(error, WGAP_SHAPE_MISMATCH, "classifier weight: expected at least one class and channel, got %d x %d",
                classes, channels);
  WGAP_CHECK(check_buffer("classifier weight", weight, weight_bytes, classes, channels, error));
  const std::size_t count = static_cast<std::size_t>(classes) * channels;
  for (std::size_t i = 0; i < count; ++i)
    if (!std::isfinite(weight[i]))
      return fail(error, WGAP_WEIGHTS_NOT_FINITE, "classifier weights hold NaN or infinity: class %zu, channel %zu",
                  i / channels, i % channels);
  std::unique_ptr<wgap_classifier> made(new (std::nothrow) wgap_classifier);
  if (made) made->weight.reset(new (std::nothrow) float[count]);
  if (!made || !made->weight) return out_of_memory("a classifier", error);
  std::memcpy(made->weight.get(), weight, count * sizeof(float));
  made->classes = classes;
  made->channels = channels;
  *classifier = made.release();
  return WGAP_OK;
}

void wgap_classifier_destroy(wgap_classifier* classifier) { delete classifier; }

wgap_status wgap_workspace_create(int32_t threads, const char* target, wgap_workspace** workspace, wgap_error* error) {
  WGAP_CHECK(check_pointer("workspace", workspace, error));
  if (threads < 1 || threads > WGAP_MOST_THREADS)
    return fail(error, WGAP_INVALID_ARGUMENT, "threads: expected 1..%d, got %d", WGAP_MOST_THREADS, threads);
  const wgap::Target* const chosen = target_or_fail(target, error);
  if (chosen == nullptr) return WGAP_UNSUPPORTED_TARGET;
  try {
    *workspace = new wgap_workspace(threads, *chosen);
  } catch (...) {  // an exception must not cross a C boundary
    return out_of_memory("a workspace", error);
  }
  return WGAP_OK;
}

void wgap_workspace_destroy(wgap_workspace* workspace) { delete workspace; }

const char* wgap_workspace_target(const wgap_workspace* workspace) {
  return workspace != nullptr ? workspace->target.name : "";
}

wgap_status wgap_localize(wgap_workspace* workspace, const wgap_classifier* classifier, const wgap_input* given_input,
                          const wgap_options* given_options, const wgap_output* given_output, wgap_error* error) {
  WGAP_CHECK(check_pointer("workspace", workspace, error));
  WGAP_CHECK(check_pointer("classifier", classifier, error));
  const wgap::DefaultArithmetic arithmetic;
  Call call{};
  wgap_options options = WGAP_OPTIONS_INIT;
  WGAP_CHECK(adopt("wgap_input", given_input, kFirstInput, &call.input, error));
  WGAP_CHECK(adopt("wgap_options", given_options, kFirstOptions, &options, error));
  WGAP_CHECK(adopt("wgap_output", given_output, kFirstOutput, &call.output, error));
  WGAP_CHECK(check_size("wgap_record", call.output.record_size, kFirstRecord, sizeof(wgap_record), error));
  if (call.output.record_size % alignof(wgap_record) != 0)
    return fail(error, WGAP_INVALID_ARGUMENT, "record_size: expected a multiple of %zu, got %u", alignof(wgap_record),
                call.output.record_size);
  WGAP_CHECK(wgap::kernel_rule(options.rule, &call.rule, error));
  const wgap_input& input = call.input;
  WGAP_CHECK(wgap::check_sizes(input, classifier->classes, classifier->channels, options, call.rule, error));
  WGAP_CHECK(wgap::check_classes(input, options, error));
  if (input.images == 0) return WGAP_OK;
  call.shape = wgap::shape_of(input, options, call.rule);
  call.max_boxes = options.max_boxes;
  call.per_image = input.class_ids != nullptr ? 1 : options.top_k;
  WGAP_CHECK(check_buffers(call, error));
  const Use use(workspace, error);
  WGAP_CHECK(use.status());
  if (!workspace->engine->prepare(call.shape)) return out_of_memory("a map of this size", error);
  call.target = &workspace->target;
  call.logs = workspace->engine->logs();
  call.weight = classifier->weight.get();
  const std::int64_t tasks = input.images * call.per_image;
  workspace->engine->run(tasks, run_task, &call);
  for (std::int64_t i = 0; i < tasks; ++i) {
    const auto status = static_cast<wgap_status>(record_at(call.output, i * call.max_boxes)->status);
    if (status != WGAP_OK)
      return fail(error, status, "image %lld of the batch: %s", static_cast<long long>(i / call.per_image),
                  wgap_status_string(status));
  }
  return WGAP_OK;
}

wgap_status wgap_resize(const wgap_image* given_source, const wgap_image* given_destination, wgap_error* error) {
  wgap_image source = WGAP_IMAGE_INIT, destination = WGAP_IMAGE_INIT;
  WGAP_CHECK(adopt("source (wgap_image)", given_source, kFirstImage, &source, error));
  WGAP_CHECK(adopt("destination (wgap_image)", given_destination, kFirstImage, &destination, error));
  WGAP_CHECK(check_image("source", source, error));
  WGAP_CHECK(check_image("destination", destination, error));
  if (source.channels != destination.channels)
    return fail(error, WGAP_SHAPE_MISMATCH, "destination: expected %d channels as the source has, got %d",
                source.channels, destination.channels);
  const wgap::Target* const target = target_or_fail(nullptr, error);
  if (target == nullptr) return WGAP_UNSUPPORTED_TARGET;
  thread_local wgap::Memory memory;
  const wgap::ImageView from{source.data, static_cast<std::ptrdiff_t>(source.row_bytes), source.height, source.width};
  void* const scratch =
      memory.at_least(target->resize_bytes(source.channels, from, destination.height, destination.width));
  if (scratch == nullptr) return out_of_memory("a resize", error);
  target->resize(source.channels, from, destination.data, static_cast<std::ptrdiff_t>(destination.row_bytes),
                 destination.height, destination.width, scratch);
  return WGAP_OK;
}

}  // extern "C"
