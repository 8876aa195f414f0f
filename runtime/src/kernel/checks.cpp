#include "checks.h"

#include <algorithm>
#include <cstdarg>
#include <cstddef>
#include <cstdio>

#include "wgap/kernel/problem.h"

namespace wgap {

wgap_status fail(wgap_error* error, wgap_status status, const char* format, ...) {
  constexpr std::size_t kHead = offsetof(wgap_error, text);
  if (error == nullptr || error->struct_size <= kHead) return status;
  error->status = status;
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(error->text, std::min<std::size_t>(error->struct_size, sizeof(wgap_error)) - kHead, format, arguments);
  va_end(arguments);
  return status;
}

wgap_status check_size(const char* name, std::uint32_t size, std::size_t first, std::size_t known, wgap_error* error) {
  if (size > known)
    return fail(error, WGAP_STRUCT_TOO_NEW, "%s has %u bytes, wgap %s knows %zu: the program's header is newer", name,
                size, wgap_version(), known);
  if (size < first)
    return fail(error, WGAP_INVALID_ARGUMENT, "%s: expected a size of at least %zu bytes, got %u; begin with its _INIT",
                name, first, size);
  return WGAP_OK;
}

wgap_status check_error(wgap_error* error) {
  if (error == nullptr) return WGAP_OK;
  if (!aligned(error)) return WGAP_INVALID_ARGUMENT;
  return check_size("wgap_error", error->struct_size, 0, sizeof(wgap_error), error);
}

namespace {

wgap_status check_features(const wgap_input& input, int channels, const wgap_options& options, wgap_error* error) {
  if (input.channels != channels)
    return fail(error, WGAP_SHAPE_MISMATCH, "features: expected %d channels for this classifier, got %d x %d x %d",
                channels, input.channels, input.height, input.width);
  if (input.height < 1 || input.width < 1)
    return fail(error, WGAP_SHAPE_MISMATCH, "features: expected at least one row and column, got %d x %d x %d",
                input.channels, input.height, input.width);
  const int W = options.map_width;
  if (!product_within(input.height, input.width, kMaxPixels) || !product_within(input.height, W, 64LL * kMaxPixels))
    return fail(error, WGAP_TOO_LARGE, "features: expected maps of at most 2^20 pixels, got %d x %d for a map %d wide",
                input.height, input.width, W);
  return WGAP_OK;
}

wgap_status check_scores(const wgap_input& input, const wgap_options& options, wgap_error* error) {
  const int h = input.scores_height, w = input.scores_width, H = options.map_height, W = options.map_width;
  if (h < 1 || w < 1 || h > H || w > W)
    return fail(error, WGAP_SHAPE_MISMATCH,
                "scores: the rule reads a score map of at least 1 x 1 and at most the map's %d x %d, got %d x %d", H, W,
                h, w);
  return WGAP_OK;
}

}  // namespace

wgap_status check_sizes(const wgap_input& input, int classes, int channels, const wgap_options& options,
                        const Rule& rule, wgap_error* error) {
  if (input.images < 0 || input.reserved != 0)
    return fail(error, WGAP_INVALID_ARGUMENT, "wgap_input: expected 0 or more images and reserved 0, got %lld and %d",
                static_cast<long long>(input.images), input.reserved);
  if (options.max_boxes < 1 || options.max_boxes > kMostBoxes || options.reserved != 0)
    return fail(error, WGAP_INVALID_ARGUMENT, "max_boxes: expected 1..%d, and reserved 0, got %d and %d", kMostBoxes,
                options.max_boxes, options.reserved);
  if (input.classes != classes)
    return fail(error, WGAP_SHAPE_MISMATCH, "logits: expected %d classes for this classifier, got %d", classes,
                input.classes);
  const int H = options.map_height, W = options.map_width;
  if (H < 1 || W < 1 || !product_within(H, W, kMaxPixels))
    return fail(error, H < 1 || W < 1 ? WGAP_INVALID_ARGUMENT : WGAP_TOO_LARGE,
                "size: expected (height, width) of at least 1x1 and at most 2^20 pixels, got (%d, %d)", H, W);
  if (rule.map != kNoMap) WGAP_CHECK(check_features(input, channels, options, error));
  return on_scores(rule) ? check_scores(input, options, error) : WGAP_OK;
}

Shape shape_of(const wgap_input& input, const wgap_options& options, const Rule& rule) {
  Shape shape{0, 0, 0, options.map_height, options.map_width, input.classes};
  if (rule.map != kNoMap) shape.channels = input.channels, shape.height = input.height, shape.width = input.width;
  if (on_scores(rule)) shape.score_height = input.scores_height, shape.score_width = input.scores_width;
  shape.colour = rule.kind == kForegroundColour;
  return shape;
}

wgap_status check_classes(const wgap_input& input, const wgap_options& options, wgap_error* error) {
  if (input.class_ids == nullptr) {
    if (options.top_k >= 1 && options.top_k <= input.classes) return WGAP_OK;
    return fail(error, WGAP_CLASS_OUT_OF_RANGE, "top_k: expected 1..%d, got %d", input.classes, options.top_k);
  }
  WGAP_CHECK(check_buffer("class_ids", input.class_ids, input.class_ids_bytes, input.images, 1, error));
  for (std::int64_t i = 0; i < input.images; ++i)
    if (input.class_ids[i] < 0 || input.class_ids[i] >= input.classes)
      return fail(error, WGAP_CLASS_OUT_OF_RANGE, "classes[%lld] is %lld, expected 0..%d", static_cast<long long>(i),
                  static_cast<long long>(input.class_ids[i]), input.classes - 1);
  return WGAP_OK;
}

}  // namespace wgap
