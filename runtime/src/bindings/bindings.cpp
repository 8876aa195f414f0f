// Python's way to the C interface: reads buffers, releases the interpreter lock, turns statuses into errors.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arithmetic.h"
#include "checks.h"
#include "lease.h"
#include "rule.h"
#include "wgap/kernel/cuda_kernel.h"
#include "wgap/kernel/logs.h"
#include "wgap/wgap.h"

namespace nb = nanobind;

namespace {

using Array = nb::ndarray<nb::ro>;

[[noreturn]] void raise(const char* error, const std::string& message) {
  PyErr_SetString(nb::module_::import_("wgap.errors").attr(error).ptr(), message.c_str());
  throw nb::python_error();
}

// An error of a whole call; `kind` names the Python class for arrays that do not fit.
void check(wgap_status status, const wgap_error& error, const char* kind) {
  switch (status) {
    case WGAP_OK: return;
    case WGAP_OUT_OF_MEMORY: throw std::bad_alloc();
    case WGAP_UNKNOWN_RULE: raise("RuleError", error.text);
    case WGAP_CLASS_OUT_OF_RANGE:
    case WGAP_UNSUPPORTED_TARGET:
    case WGAP_INVALID_ARGUMENT: throw nb::value_error(error.text);
    default: raise(kind, error.text);
  }
}

std::string shape_text(const Array& a) {
  std::string text;
  switch (static_cast<nb::dlpack::dtype_code>(a.dtype().code)) {
    case nb::dlpack::dtype_code::Int: text = "int"; break;
    case nb::dlpack::dtype_code::UInt: text = "uint"; break;
    case nb::dlpack::dtype_code::Float: text = "float"; break;
    case nb::dlpack::dtype_code::Bool: text = "bool"; break;
    default: text = "dtype"; break;
  }
  text += std::to_string(a.dtype().bits) + "[";
  for (std::size_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
  return text + "]";
}

bool contiguous(const Array& a, std::size_t from = 0) {
  std::int64_t expected = 1;
  for (std::size_t i = a.ndim(); i-- > from;) {
    if (a.shape(i) != 1 && a.stride(i) != expected) return false;
    expected *= static_cast<std::int64_t>(a.shape(i));
  }
  return true;
}

// float32, C-contiguous, on the CPU; anything else is refused by name rather than converted behind the caller's back.
const float* floats(const Array& a, std::size_t dimensions, const char* name, const char* expected) {
  if (a.device_type() != nb::device::cpu::value)
    raise("FeatureError", std::string(name) + " must be in CPU memory; copy them to the host first");
  if (a.dtype() != nb::dtype<float>() || a.ndim() != dimensions)
    raise("FeatureError", std::string(name) + ": expected " + expected + ", got " + shape_text(a));
  if (a.size() != 0 && !contiguous(a))
    raise("FeatureError", std::string(name) + " must be C-contiguous; pass a contiguous copy");
  return static_cast<const float*>(a.data());
}

// Larger ones are beyond what the C interface takes, which refuses what fits in an int.
std::int32_t extent(const Array& a, std::size_t axis) {
  return static_cast<std::int32_t>(std::min<std::size_t>(a.shape(axis), 0x7fffffff));
}

struct Classifier {
  wgap_classifier* handle = nullptr;
  std::int32_t classes = 0, channels = 0;

  explicit Classifier(const Array& weight) {
    const float* const data = floats(weight, 2, "classifier weight", "float32[K, C]");
    classes = extent(weight, 0);
    channels = extent(weight, 1);
    wgap_error error = WGAP_ERROR_INIT;
    check(wgap_classifier_create(data, weight.nbytes(), classes, channels, &handle, &error), error, "FeatureError");
  }
  ~Classifier() { wgap_classifier_destroy(handle); }
  Classifier(const Classifier&) = delete;
  Classifier& operator=(const Classifier&) = delete;
};

wgap_rule rule_named(const std::string& text, const char* map) {
  wgap_rule rule = WGAP_RULE_INIT;
  wgap_error error = WGAP_ERROR_INIT;
  check(wgap_rule_parse(text.c_str(), map, &rule, &error), error, "RuleError");
  return rule;
}

// A wgap.rule.Rule, or None for the adaptive one.
wgap_rule rule_of(nb::handle given) {
  if (given.is_none()) return WGAP_RULE_INIT;
  return rule_named(nb::cast<std::string>(nb::str(given)), nb::cast<std::string>(given.attr("map")).c_str());
}

// (kind, map, eta) of a rule's text; map None: the kind's own. eta is None where the kind has none.
nb::tuple parse_rule(const std::string& text, const std::optional<std::string>& map) {
  constexpr const char* kinds[] = {"adaptive", "fixed", "foreground", "foreground+colour"};
  constexpr const char* maps[] = {"recombined", "positive", "signed", "none"};
  const wgap_rule rule = rule_named(text, map ? map->c_str() : nullptr);
  const nb::object eta = rule.kind == WGAP_RULE_FIXED ? nb::object(nb::float_(rule.parameters[0])) : nb::none();
  return nb::make_tuple(kinds[rule.kind], maps[rule.map], eta);
}

struct BoxRecord {
  wgap_record record;
  std::vector<std::array<std::int32_t, 4>> boxes;
  nb::object heatmap, edge_means;
};

nb::tuple box_tuple(const std::array<std::int32_t, 4>& b) { return nb::make_tuple(b[0], b[1], b[2], b[3]); }

nb::list boxes_of(const BoxRecord& r) {
  nb::list boxes;
  for (const auto& box : r.boxes) boxes.append(box_tuple(box));
  return boxes;
}

nb::object error_of(const BoxRecord& r) {
  if (r.record.status == WGAP_OK) return nb::none();
  return nb::str(wgap_status_string(static_cast<wgap_status>(r.record.status)));
}

nb::object tuple_of(const double* values, std::size_t count) {
  nb::object tuple = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(count)));
  for (std::size_t i = 0; i < count; ++i)
    PyTuple_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i), PyFloat_FromDouble(values[i]));
  return tuple;
}

// One class id per image, from an integer for all or any sequence of integers or integer array.
std::vector<std::int64_t> class_ids(nb::handle classes, std::int64_t images) {
  const auto id_of = [](nb::handle item) {
    const Py_ssize_t id = PyNumber_AsSsize_t(item.ptr(), PyExc_OverflowError);
    if (id == -1 && PyErr_Occurred()) throw nb::python_error();
    return static_cast<std::int64_t>(id);
  };
  std::vector<std::int64_t> ids;
  if (PySequence_Check(classes.ptr()) || !PyIndex_Check(classes.ptr())) {
    for (nb::handle item : nb::iter(classes)) ids.push_back(id_of(item));
  } else {
    ids.assign(static_cast<std::size_t>(images), id_of(classes));
  }
  if (static_cast<std::int64_t>(ids.size()) != images)
    throw nb::value_error(("classes: expected one class id for each of " + std::to_string(images) + " images, got " +
                           std::to_string(ids.size()))
                              .c_str());
  return ids;
}

// [images][per_image] records of [images][per_image][max_boxes], with views of what belongs to each.
template <class View>
nb::list rows_of(const wgap_record* records, std::int64_t images, std::int64_t per_image, int max_boxes,
                 const View& heatmap, const double* edge_means) {
  nb::list all;
  for (std::int64_t i = 0; i < images; ++i) {
    nb::list one;
    for (std::int64_t at = i * per_image; at < (i + 1) * per_image; ++at) {
      const wgap_record* const first = records + at * max_boxes;
      BoxRecord made{*first, {}, heatmap(at), nb::none()};
      for (int n = 0; first->status == WGAP_OK && n < first->boxes; ++n) {
        const std::int32_t* const b = first[n].box;
        made.boxes.push_back({b[0], b[1], b[2], b[3]});
      }
      if (edge_means != nullptr && first->level >= 0)
        made.edge_means = tuple_of(edge_means + at * (WGAP_LEVELS + 1), WGAP_LEVELS + 1);
      one.append(std::move(made));
    }
    all.append(std::move(one));
  }
  return all;
}

// Which inputs a rule reads, from arrays or, on a GPU, from their shapes; what it does not read stays 0.
struct Extents {
  std::int64_t images = 0;
  std::vector<int> features, scores;  // [C, h, w], [h, w]
};

wgap_input input_of(const Extents& given, std::int32_t classes) {
  wgap_input input = WGAP_INPUT_INIT;
  input.images = given.images;
  input.classes = classes;
  if (given.features.size() == 3)
    input.channels = given.features[0], input.height = given.features[1], input.width = given.features[2];
  if (given.scores.size() == 2) input.scores_height = given.scores[0], input.scores_width = given.scores[1];
  return input;
}

void require_images(const char* name, std::size_t found, const Array& logits, const std::string& shape) {
  if (found != logits.shape(0))
    raise("FeatureError", std::string(name) + ": expected those of " + std::to_string(logits.shape(0)) +
                              " images, as the logits, got " + shape);
}

// An array that a rule reads.
const Array& required(const std::optional<Array>& given, const char* name, const char* how) {
  if (!given) raise("FeatureError", std::string("the rule reads ") + name + ", and none were given; " + how);
  return *given;
}

// float32[N, 1, h, w] or [N, h, w].
const float* score_map(const Array& a, Extents* extents) {
  const std::size_t dimensions = a.ndim() == 4 && a.shape(1) == 1 ? 4 : 3;
  const float* const data = floats(a, dimensions, "scores", "float32[N, 1, h, w]");
  extents->scores = {extent(a, dimensions - 2), extent(a, dimensions - 1)};
  return data;
}

const std::uint8_t* rgb(const Array& a, std::pair<int, int> size) {
  const bool fits = a.device_type() == nb::device::cpu::value && a.dtype() == nb::dtype<std::uint8_t>() &&
                    a.ndim() == 4 && extent(a, 1) == size.first && extent(a, 2) == size.second && a.shape(3) == 3;
  if (!fits || (a.size() != 0 && !contiguous(a)))
    raise("FeatureError", "pictures: expected C-contiguous uint8[N, " + std::to_string(size.first) + ", " +
                              std::to_string(size.second) + ", 3] in CPU memory, the map's size, got " + shape_text(a));
  return static_cast<const std::uint8_t*>(a.data());
}

nb::list localize(const Array& logits, const std::optional<Array>& features, const Classifier& classifier,
                  std::pair<int, int> size, nb::handle rule, nb::handle classes, int top_k, bool heatmaps,
                  bool edge_means, int threads, const std::string& target, const std::optional<Array>& scores,
                  const std::optional<Array>& pictures, int max_boxes) {
  wgap_options options = WGAP_OPTIONS_INIT;
  options.map_height = size.first;
  options.map_width = size.second;
  options.top_k = top_k;
  options.rule = rule_of(rule);
  options.max_boxes = max_boxes;
  const float* const of_classes = floats(logits, 2, "logits", "float32[N, K]");
  const float* of_features = nullptr;
  const float* of_scores = nullptr;
  const std::uint8_t* of_pictures = nullptr;
  Extents extents;
  extents.images = static_cast<std::int64_t>(logits.shape(0));
  if (options.rule.map != WGAP_MAP_NONE) {
    const Array& a = required(features, "features", "ask the network for them, or take the map 'none'");
    of_features = floats(a, 4, "features", "float32[N, C, h, w]");
    extents.features = {extent(a, 1), extent(a, 2), extent(a, 3)};
    require_images("features", a.shape(0), logits, shape_text(a));
  }
  if (options.rule.kind >= WGAP_RULE_FOREGROUND) {
    const Array& a = required(scores, "scores", "give the network's output foreground");
    of_scores = score_map(a, &extents);
    require_images("scores", a.shape(0), logits, shape_text(a));
  }
  if (options.rule.kind == WGAP_RULE_FOREGROUND_COLOUR) {
    const Array& a = required(pictures, "pictures", "give the network's input, or take the rule 'foreground'");
    of_pictures = rgb(a, size);
    require_images("pictures", a.shape(0), logits, shape_text(a));
  }
  wgap_input input = input_of(extents, extent(logits, 1));
  input.logits = of_classes, input.logits_bytes = logits.nbytes();
  if (of_features != nullptr) input.features = of_features, input.features_bytes = features->nbytes();
  if (of_scores != nullptr) input.scores = of_scores, input.scores_bytes = scores->nbytes();
  if (of_pictures != nullptr) input.pictures = of_pictures, input.pictures_bytes = pictures->nbytes();
  std::vector<std::int64_t> ids;
  if (!classes.is_none()) {
    ids = class_ids(classes, input.images);
    ids.reserve(1);  // an empty batch, too, has its class ids given
    input.class_ids = ids.data();
    input.class_ids_bytes = ids.size() * sizeof(std::int64_t);
  }
  const std::int64_t per_image = classes.is_none() ? std::clamp(top_k, 0, classifier.classes) : 1;
  const std::size_t count = static_cast<std::size_t>(input.images * per_image);
  const std::size_t height = static_cast<std::size_t>(std::max(size.first, 0));
  const std::size_t width = static_cast<std::size_t>(std::max(size.second, 0));
  const std::size_t boxes = static_cast<std::size_t>(std::clamp(max_boxes, 1, WGAP_MOST_BOXES));
  std::vector<wgap_record> records(std::max<std::size_t>(count * boxes, 1));
  std::vector<double> means(edge_means ? std::max<std::size_t>(count, 1) * (WGAP_LEVELS + 1) : 0);
  wgap_output output = WGAP_OUTPUT_INIT;
  output.records = records.data();
  output.records_bytes = records.size() * sizeof(wgap_record);
  if (edge_means) {
    output.edge_means = means.data();
    output.edge_means_bytes = means.size() * sizeof(double);
  }
  // One allocation for all maps; each record's view keeps it alive.
  nb::capsule owner;
  if (heatmaps && height * width <= wgap::kMaxPixels) {
    output.heatmaps = new float[count * height * width];
    output.heatmaps_bytes = count * height * width * sizeof(float);
    owner = nb::capsule(output.heatmaps, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  }
  wgap_error error = WGAP_ERROR_INIT;
  const wgap::Lease lease(threads, target, &error);
  wgap_status status = lease.status;
  if (status == WGAP_OK) {
    const nb::gil_scoped_release released;
    status = wgap_localize(lease.workspace, classifier.handle, &input, &options, &output, &error);
  }
  // Single images that fail say so in their records.
  if (status != WGAP_FEATURES_NOT_FINITE && status != WGAP_LOGITS_NOT_FINITE && status != WGAP_SCORES_NOT_FINITE)
    check(status, error, "FeatureError");
  const auto heatmap = [&](std::int64_t at) -> nb::object {
    if (output.heatmaps == nullptr) return nb::none();
    return nb::cast(nb::ndarray<nb::memview, const float, nb::ndim<2>>(
        output.heatmaps + static_cast<std::size_t>(at) * height * width, {height, width}, owner));
  };
  return rows_of(records.data(), input.images, per_image, max_boxes, heatmap, output.edge_means);
}

// The bytes of one class id per image, checked.
nb::bytes cuda_class_ids(nb::handle classes, std::int64_t images, std::int32_t known) {
  const std::vector<std::int64_t> ids = class_ids(classes, images);
  wgap_input input = WGAP_INPUT_INIT;
  input.images = images;
  input.classes = known;
  input.class_ids = ids.data();
  input.class_ids_bytes = ids.size() * sizeof(std::int64_t);
  wgap_error error = WGAP_ERROR_INIT;
  check(wgap::check_classes(input, WGAP_OPTIONS_INIT, &error), error, "FeatureError");
  return nb::bytes(reinterpret_cast<const char*>(ids.data()), input.class_ids_bytes);
}

wgap::Shape shape_of(const std::vector<int>& s) { return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8]}; }

wgap::Rule kernel_rule(nb::handle rule) {
  wgap_error error = WGAP_ERROR_INIT;
  wgap::Rule made{};
  check(wgap::kernel_rule(rule_of(rule), &made, &error), error, "RuleError");
  return made;
}

// Judges the shapes [N, K], [C, h, w] and [h, w] (empty: not given) as wgap_localize does. (shape, shared, scratch): what
// the memory depends on, and the bytes that one block of the CUDA kernel needs of shared memory, at most `room`, and of
// global memory.
nb::tuple cuda_layout(const Classifier& classifier, const std::vector<int>& logits, const std::vector<int>& features,
                      const std::vector<int>& scores, std::pair<int, int> size, nb::handle rule, int top_k,
                      int max_boxes, std::uint64_t room) {
  const wgap::DefaultArithmetic arithmetic;
  const wgap_input input = input_of({logits[0], features, scores}, logits[1]);
  wgap_options options = WGAP_OPTIONS_INIT;
  options.map_height = size.first, options.map_width = size.second, options.top_k = top_k;
  options.max_boxes = max_boxes;
  const wgap::Rule made = kernel_rule(rule);
  wgap_error error = WGAP_ERROR_INIT;
  wgap_status status = wgap::check_sizes(input, classifier.classes, classifier.channels, options, made, &error);
  if (status == WGAP_OK) status = wgap::check_classes(input, options, &error);
  check(status, error, "FeatureError");
  const wgap::Shape s = wgap::shape_of(input, options, made);
  const std::vector<int> shape{s.channels, s.height,       s.width,       s.map_height, s.map_width,
                               s.classes,  s.score_height, s.score_width, s.colour};
  wgap::u64 shared = 0;
  const wgap::u64 scratch = wgap::cuda_layout(s, room, &shared);
  return nb::make_tuple(nb::cast(shape), shared, (scratch + 63) / 64 * 64);
}

// The table of logarithms that the colours of the largest map need, int32.
nb::bytes cuda_logs() {
  const wgap::DefaultArithmetic arithmetic;
  std::vector<int> table(wgap::kMaxPixels + wgap::kColours + 1);
  wgap::fill_logs(table.data(), 0, table.size());
  return nb::bytes(reinterpret_cast<const char*>(table.data()), table.size() * sizeof(int));
}

// The argument of a launch, as the kernel reads it. Addresses are the device's; 0 is none.
nb::bytes cuda_task(const std::vector<int>& shape, int images, int per_image, nb::handle rule, std::uint64_t shared,
                    std::uint64_t scratch, const nb::dict& addresses, int max_boxes) {
  const wgap::DefaultArithmetic arithmetic;
  const auto at = [&](const char* name) {
    const nb::object address = nb::borrow(PyDict_GetItemString(addresses.ptr(), name));
    return address.is_valid() ? reinterpret_cast<void*>(nb::cast<std::uintptr_t>(address)) : nullptr;
  };
  wgap::CudaTask task{};
  task.rule = kernel_rule(rule);
  task.max_boxes = max_boxes;
  task.shape = shape_of(shape);
  task.tasks = images * per_image;
  task.per_image = per_image;
  task.logits = static_cast<const float*>(at("logits"));
  task.features = static_cast<const float*>(at("features"));
  task.weight = static_cast<const float*>(at("weight"));
  task.scores = static_cast<const float*>(at("foreground"));
  task.pictures = static_cast<const wgap::u8*>(at("picture"));
  task.logs = static_cast<const int*>(at("logs"));
  task.class_ids = static_cast<const wgap::i64*>(at("class_ids"));
  task.heatmaps = static_cast<float*>(at("heatmaps"));
  task.edge_means = static_cast<double*>(at("edge_means"));
  task.records = static_cast<wgap::Record*>(at("records"));
  task.scratch = static_cast<wgap::u8*>(at("scratch"));
  task.shared_bytes = shared;
  task.scratch_bytes = scratch;
  return nb::bytes(reinterpret_cast<const char*>(&task), sizeof task);
}

// What a launch wrote, [images][per_image]; heatmaps: a view for each record, or none.
nb::list cuda_records(const nb::bytes& records, int images, int per_image, nb::object heatmaps,
                      const nb::bytes& edge_means, int max_boxes) {
  const std::size_t count = static_cast<std::size_t>(images) * static_cast<std::size_t>(per_image);
  std::vector<wgap_record> copies(count * static_cast<std::size_t>(max_boxes));
  std::vector<double> means(edge_means.size() / sizeof(double));
  if (records.size() != copies.size() * sizeof(wgap_record) ||
      (!means.empty() && means.size() != count * (WGAP_LEVELS + 1)))
    throw nb::value_error("records: not as many as images");
  if (count != 0) std::memcpy(copies.data(), records.c_str(), records.size());
  if (!means.empty()) std::memcpy(means.data(), edge_means.c_str(), means.size() * sizeof(double));
  const auto heatmap = [&](std::int64_t at) { return heatmaps.is_none() ? nb::none() : nb::object(heatmaps[at]); };
  return rows_of(copies.data(), images, per_image, max_boxes, heatmap, means.empty() ? nullptr : means.data());
}

// uint8[H, W, C] with contiguous rows.
wgap_image image_of(const char* name, const Array& a, void* data) {
  if (a.device_type() != nb::device::cpu::value || a.dtype() != nb::dtype<std::uint8_t>() || a.ndim() != 3)
    raise("ImageError", std::string(name) + ": expected uint8[H, W, C] in CPU memory, got " + shape_text(a));
  if (a.size() != 0 && !contiguous(a, 1))
    raise("ImageError", std::string(name) + ": rows must be contiguous (HWC); pass a contiguous copy");
  wgap_image image = WGAP_IMAGE_INIT;
  image.height = extent(a, 0);
  image.width = extent(a, 1);
  image.channels = extent(a, 2);
  image.data = static_cast<std::uint8_t*>(data);
  const std::int64_t row = static_cast<std::int64_t>(a.shape(1)) * static_cast<std::int64_t>(a.shape(2));
  image.row_bytes = a.shape(0) > 1 ? a.stride(0) : row;
  image.bytes = a.size() == 0 ? 0 : static_cast<std::uint64_t>((image.height - 1) * std::abs(image.row_bytes) + row);
  return image;
}

nb::object resize(const Array& source, int height, int width, nb::object out) {
  const wgap_image from = image_of("image", source, const_cast<void*>(source.data()));
  wgap_image to = WGAP_IMAGE_INIT;
  nb::object result = out;
  if (out.is_none()) {
    if (height < 1 || width < 1)
      throw nb::value_error(
          ("expected a size of at least 1x1, got " + std::to_string(height) + "x" + std::to_string(width)).c_str());
    const std::size_t h = static_cast<std::size_t>(height), w = static_cast<std::size_t>(width);
    const std::size_t c = static_cast<std::size_t>(std::clamp(from.channels, 0, 4));
    to.height = height, to.width = width, to.channels = from.channels;
    to.row_bytes = static_cast<std::int64_t>(w * c);
    to.bytes = h * w * c;
    to.data = new std::uint8_t[to.bytes];
    nb::capsule owner(to.data, [](void* p) noexcept { delete[] static_cast<std::uint8_t*>(p); });
    result = nb::cast(nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<3>>(to.data, {h, w, c}, owner));
  } else {
    nb::ndarray<> writable;
    if (!nb::try_cast(out, writable)) raise("ImageError", "out: expected a writable uint8 buffer on the CPU");
    to = image_of("out", Array(writable), writable.data());
    if (to.height != height || to.width != width || to.channels != from.channels)
      raise("ImageError", "out: expected uint8[" + std::to_string(height) + ", " + std::to_string(width) + ", " +
                              std::to_string(from.channels) + "], got " + shape_text(Array(writable)));
  }
  wgap_error error = WGAP_ERROR_INIT;
  wgap_status status;
  {
    const nb::gil_scoped_release released;
    status = wgap_resize(&from, &to, &error);
  }
  if (status != WGAP_OK && status != WGAP_UNSUPPORTED_TARGET && status != WGAP_OUT_OF_MEMORY)
    raise("ImageError", error.text);
  check(status, error, "ImageError");
  return result;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native core: 8-bit resize and the fused feature-map-to-box kernel. See wgap.runtime.postprocess.";
  m.attr("__version__") = wgap_version();
  m.attr("_CUDA_RECORD_BYTES") = sizeof(wgap::Record);
  m.attr("LEVELS") = WGAP_LEVELS;
  m.attr("MAX_BOXES") = WGAP_MOST_BOXES;
  nb::class_<Classifier>(m, "Classifier")
      .def(nb::init<const Array&>(), nb::arg("weight"))
      .def_ro("num_classes", &Classifier::classes)
      .def_ro("channels", &Classifier::channels);
  nb::class_<BoxRecord>(m, "BoxRecord")
      .def_prop_ro("error", error_of)
      .def_prop_ro("class_id", [](const BoxRecord& r) { return r.record.class_id; })
      .def_prop_ro("score", [](const BoxRecord& r) { return r.record.score; })
      .def_prop_ro("logit", [](const BoxRecord& r) { return r.record.logit; })
      .def_prop_ro("level", [](const BoxRecord& r) { return r.record.level; })
      .def_prop_ro("threshold", [](const BoxRecord& r) { return r.record.threshold; })
      .def_prop_ro("boxes", boxes_of)
      .def_prop_ro("box",
                   [](const BoxRecord& r) {
                     const std::int32_t* const b = r.record.box;
                     return box_tuple({b[0], b[1], b[2], b[3]});
                   })
      .def_prop_ro("degenerate", [](const BoxRecord& r) { return r.record.degenerate != 0; })
      .def_ro("heatmap", &BoxRecord::heatmap)
      .def_ro("edge_means", &BoxRecord::edge_means);
  m.def("parse_rule", &parse_rule, nb::arg("text"), nb::arg("map") = nb::none());
  m.def("resize", &resize, nb::arg("src"), nb::arg("height"), nb::arg("width"), nb::arg("out") = nb::none());
  m.def("localize", &localize, nb::arg("logits"), nb::arg("features").none(), nb::arg("classifier"), nb::kw_only(),
        nb::arg("size"), nb::arg("rule").none() = nb::none(), nb::arg("classes").none() = nb::none(),
        nb::arg("top_k") = 1, nb::arg("heatmaps") = false, nb::arg("edge_means") = false, nb::arg("threads") = 1,
        nb::arg("target") = "", nb::arg("scores").none() = nb::none(), nb::arg("pictures").none() = nb::none(),
        nb::arg("max_boxes") = 1);
  m.def("_cuda_class_ids", &cuda_class_ids, nb::arg("classes"), nb::arg("images"), nb::arg("known"));
  m.def("_cuda_layout", &cuda_layout, nb::arg("classifier"), nb::arg("logits"), nb::arg("features"), nb::arg("scores"),
        nb::arg("size"), nb::arg("rule").none(), nb::arg("top_k"), nb::arg("max_boxes"), nb::arg("room"));
  m.def("_cuda_logs", &cuda_logs);
  m.def("_cuda_task", &cuda_task, nb::arg("shape"), nb::arg("images"), nb::arg("per_image"), nb::arg("rule").none(),
        nb::arg("shared"), nb::arg("scratch"), nb::arg("addresses"), nb::arg("max_boxes") = 1);
  m.def("_cuda_records", &cuda_records, nb::arg("records"), nb::arg("images"), nb::arg("per_image"),
        nb::arg("heatmaps") = nb::none(), nb::arg("edge_means") = nb::bytes("", 0), nb::arg("max_boxes") = 1);
  m.def("cpu_targets", [] {
    nb::list names;
    for (const char* const* name = wgap_targets(); *name != nullptr; ++name) names.append(*name);
    return names;
  });
  m.def("active_target", [] {
    wgap_error error = WGAP_ERROR_INIT;
    const wgap::Lease lease(1, "", &error);
    check(lease.status, error, "BackendError");
    return std::string(wgap_workspace_target(lease.workspace));
  });
}
