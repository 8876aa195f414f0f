// Python's way to the C interface: reads buffers, releases the interpreter lock, turns statuses into errors.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lease.h"
#include "record.h"
#include "targets.h"
#include "wgap/kernel/cuda_kernel.h"
#include "wgap/wgap.h"
#include "workspace.h"

namespace nb = nanobind;

namespace {

using Array = nb::ndarray<nb::ro>;

[[noreturn]] void raise(const char* error, const std::string& message) {
  PyErr_SetString(nb::module_::import_("wgap.errors").attr(error).ptr(), message.c_str());
  throw nb::python_error();
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

std::int32_t extent(const Array& a, std::size_t axis, const char* name) {
  if (a.shape(axis) > 0x7fffffff) raise("FeatureError", std::string(name) + " is too large: " + shape_text(a));
  return static_cast<std::int32_t>(a.shape(axis));
}

struct Classifier {
  wgap_classifier* handle = nullptr;
  std::int32_t classes = 0, channels = 0;

  explicit Classifier(const Array& weight) {
    const float* const data = floats(weight, 2, "classifier weight", "float32[K, C]");
    if (weight.size() == 0)
      raise("FeatureError", "classifier weight: expected at least one class and channel, got " + shape_text(weight));
    classes = extent(weight, 0, "classifier weight");
    channels = extent(weight, 1, "classifier weight");
    const wgap_status status = wgap_classifier_create(data, classes, channels, &handle);
    if (status != WGAP_OK) raise("FeatureError", wgap_status_string(status));
  }
  ~Classifier() { wgap_classifier_destroy(handle); }
  Classifier(const Classifier&) = delete;
  Classifier& operator=(const Classifier&) = delete;
};

struct BoxRecord {
  wgap_record record;
  nb::object heatmap;
  bool searched;  // edge means asked for, and known
};

nb::object edge_mean_of(const BoxRecord& r) {
  if (!r.searched) return nb::none();
  PyObject* const list = PyTuple_New(WGAP_LEVELS + 1);
  for (int l = 0; l <= WGAP_LEVELS; ++l) PyTuple_SET_ITEM(list, l, PyFloat_FromDouble(r.record.edge_mean[l]));
  return nb::steal(list);
}

int map_named(const std::string& name) {
  if (name == "recombined") return WGAP_MAP_RECOMBINED;
  if (name == "positive") return WGAP_MAP_POSITIVE;
  if (name == "signed") return WGAP_MAP_SIGNED;
  throw nb::value_error(("map: expected 'recombined', 'positive' or 'signed', got '" + name + "'").c_str());
}

double threshold_named(const std::string& name) {
  if (name == "adaptive") return WGAP_ADAPTIVE;
  if (name.rfind("fixed:", 0) == 0) {
    const char* const digits = name.c_str() + 6;
    char* end = nullptr;
    const double eta = PyOS_string_to_double(digits, &end, nullptr);
    if (PyErr_Occurred()) PyErr_Clear();
    if (end != digits && *end == '\0' && eta >= 0.0 && eta <= 0.999) return eta;
  }
  throw nb::value_error(("threshold: expected 'adaptive' or 'fixed:ETA' with "
                         "ETA in [0, 0.999], got '" +
                         name + "'")
                            .c_str());
}

// One class id per image, from any sequence of integers or integer array.
std::vector<std::int64_t> class_ids(nb::handle classes, std::int64_t images, std::int32_t known) {
  std::vector<std::int64_t> ids;
  if (PyIndex_Check(classes.ptr())) {
    const Py_ssize_t id = PyNumber_AsSsize_t(classes.ptr(), PyExc_OverflowError);
    if (id != -1 || !PyErr_Occurred()) {
      ids.assign(static_cast<std::size_t>(images), id);
    } else {
      PyErr_Clear();  // an array of several integers offers __index__ and then
                      // refuses
    }
  }
  if (ids.empty() && images > 0)
    for (nb::handle item : nb::iter(classes)) {
      const Py_ssize_t id = PyNumber_AsSsize_t(item.ptr(), PyExc_OverflowError);
      if (id == -1 && PyErr_Occurred()) throw nb::python_error();
      ids.push_back(id);
    }
  if (static_cast<std::int64_t>(ids.size()) != images)
    throw nb::value_error(("classes: expected one class id for each of " + std::to_string(images) + " images, got " +
                           std::to_string(ids.size()))
                              .c_str());
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= known)
      throw nb::value_error(("classes[" + std::to_string(i) + "] is " + std::to_string(ids[i]) + ", expected 0.." +
                             std::to_string(known - 1))
                                .c_str());
  return ids;
}

[[noreturn]] void raise_call(wgap_status status, const std::vector<wgap_record>& records, std::int64_t per_image) {
  if (status == WGAP_FEATURES_NOT_FINITE || status == WGAP_LOGITS_NOT_FINITE) {
    std::size_t first = 0;
    while (records[first].status == WGAP_OK) ++first;
    raise("FeatureError", "image " + std::to_string(static_cast<std::int64_t>(first) / per_image) +
                              " of the batch: " + wgap_status_string(status) + "; check the model and its input");
  }
  if (status == WGAP_OUT_OF_MEMORY) throw std::bad_alloc();
  raise("FeatureError", wgap_status_string(status));
}

nb::list postprocess(const Array& features, const Array& logits, const Classifier& classifier, std::pair<int, int> size,
                     nb::object classes, int top_k, const std::string& map, const std::string& threshold, bool heatmaps,
                     bool edge_means, int threads, const std::string& target) {
  wgap_input input{};
  input.features = floats(features, 4, "features", "float32[N, C, h, w]");
  input.logits = floats(logits, 2, "logits", "float32[N, K]");
  input.images = static_cast<std::int64_t>(features.shape(0));
  input.channels = extent(features, 1, "features");
  input.height = extent(features, 2, "features");
  input.width = extent(features, 3, "features");
  if (logits.shape(0) != features.shape(0) || static_cast<std::int64_t>(logits.shape(1)) != classifier.classes)
    raise("FeatureError", "logits: expected float32[" + std::to_string(features.shape(0)) + ", " +
                              std::to_string(classifier.classes) + "] for these features and this classifier, got " +
                              shape_text(logits));
  if (input.channels != classifier.channels)
    raise("FeatureError", "features: expected " + std::to_string(classifier.channels) +
                              " channels for this classifier, got " + shape_text(features));
  if (input.images > 0 && features.size() == 0)
    raise("FeatureError", "features: expected at least one channel, row and column, got " + shape_text(features));
  if (size.first < 1 || size.second < 1 || static_cast<std::int64_t>(size.first) * size.second > (1 << 20))
    throw nb::value_error(("size: expected (height, width) of at least 1x1 and "
                           "at most 2^20 pixels, got (" +
                           std::to_string(size.first) + ", " + std::to_string(size.second) + ")")
                              .c_str());
  if (threads < 1 || threads > WGAP_MOST_THREADS)
    throw nb::value_error(
        ("threads: expected 1.." + std::to_string(WGAP_MOST_THREADS) + ", got " + std::to_string(threads)).c_str());

  wgap_options options = WGAP_OPTIONS_INIT;
  options.map_height = size.first;
  options.map_width = size.second;
  options.map = map_named(map);
  options.threshold = threshold_named(threshold);
  options.top_k = top_k;
  std::vector<std::int64_t> ids;
  const bool given = !classes.is_none();
  if (given) {
    ids = class_ids(classes, input.images, classifier.classes);
  } else if (top_k < 1 || top_k > classifier.classes) {
    throw nb::value_error(
        ("top_k: expected 1.." + std::to_string(classifier.classes) + ", got " + std::to_string(top_k)).c_str());
  }
  const std::int64_t per_image = given ? 1 : top_k;
  const std::size_t count = static_cast<std::size_t>(input.images * per_image);
  std::vector<wgap_record> records(count);
  const std::size_t pixels = static_cast<std::size_t>(size.first) * static_cast<std::size_t>(size.second);
  // One allocation for all maps; each record's view keeps it alive.
  float* const maps = heatmaps ? new float[count * pixels] : nullptr;
  nb::capsule owner;
  if (maps != nullptr) owner = nb::capsule(maps, [](void* p) noexcept { delete[] static_cast<float*>(p); });

  const wgap::Lease lease(threads, target);
  wgap_status status;
  {
    nb::gil_scoped_release released;
    status = wgap_localize(lease.entry.workspace, &input, classifier.handle, &options, given ? ids.data() : nullptr,
                           records.data(), maps);
  }
  if (status != WGAP_OK) raise_call(status, records, per_image);

  nb::list all;
  for (std::int64_t i = 0; i < input.images; ++i) {
    nb::list one;
    for (std::int64_t j = 0; j < per_image; ++j) {
      const std::size_t at = static_cast<std::size_t>(i * per_image + j);
      const wgap_record& record = records[at];
      nb::object view = nb::none();
      if (maps != nullptr)
        view = nb::cast(nb::ndarray<nb::memview, const float, nb::ndim<2>>(
            maps + at * pixels, {static_cast<std::size_t>(size.first), static_cast<std::size_t>(size.second)}, owner));
      const bool searched = edge_means && options.threshold == WGAP_ADAPTIVE && record.degenerate == 0;
      one.append(BoxRecord{record, std::move(view), searched});
    }
    all.append(std::move(one));
  }
  return all;
}

// Bytes that one block of the CUDA kernel needs, of shared memory (at most `room`) and of global memory.
std::pair<std::uint64_t, std::uint64_t> cuda_layout(const std::vector<int>& shape, std::uint64_t room) {
  wgap::u64 shared = 0;
  const wgap::u64 scratch =
      wgap::cuda_layout(wgap::Shape{shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]}, room, &shared);
  return {shared, (scratch + 63) / 64 * 64};
}

// The argument of a launch, as the kernel reads it. Pointers are the device's; 0 is none.
nb::bytes cuda_task(const std::vector<int>& shape, int images, int per_image, const std::string& map,
                    const std::string& threshold, std::uint64_t room, const std::vector<std::uint64_t>& pointers) {
  const double eta = threshold_named(threshold);
  const auto [shared, scratch] = cuda_layout(shape, room);
  const auto at = [&](int i) { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(pointers[i])); };
  wgap::CudaTask task{};
  task.shape = {shape[0], shape[1], shape[2], shape[3], shape[4], shape[5]};
  task.map = map_named(map);
  task.fixed = eta == WGAP_ADAPTIVE ? -1 : static_cast<int>(std::nearbyint(eta * wgap::kOne));
  task.fixed_eta = eta;
  task.tasks = images * per_image;
  task.per_image = per_image;
  task.features = static_cast<const float*>(at(0));
  task.logits = static_cast<const float*>(at(1));
  task.weight = static_cast<const float*>(at(2));
  task.classes = static_cast<const wgap::i64*>(at(3));
  task.heatmaps = static_cast<float*>(at(4));
  task.results = static_cast<wgap::Result*>(at(5));
  task.scratch = static_cast<wgap::u8*>(at(6));
  task.scratch_bytes = scratch;
  task.shared_bytes = shared;
  return nb::bytes(reinterpret_cast<const char*>(&task), sizeof task);
}

// The records that a launch wrote, [images][per_image] of wgap::Result; maps: a view for each of them, or none.
nb::list cuda_records(const nb::bytes& results, int images, int per_image, bool adaptive, nb::object maps) {
  const std::size_t count = static_cast<std::size_t>(images) * static_cast<std::size_t>(per_image);
  if (results.size() != count * sizeof(wgap::Result)) throw nb::value_error("results: not as many as images");
  std::vector<wgap_record> records(count);
  for (std::size_t i = 0; i < count; ++i) {
    wgap::Result result;
    std::memcpy(&result, results.c_str() + i * sizeof result, sizeof result);
    wgap::tell(result, &records[i]);
  }
  for (const wgap_record& record : records)
    if (record.status != WGAP_OK) raise_call(static_cast<wgap_status>(record.status), records, per_image);
  nb::list all;
  for (int i = 0; i < images; ++i) {
    nb::list one;
    for (int j = 0; j < per_image; ++j) {
      const int at = i * per_image + j;
      const wgap_record& record = records[static_cast<std::size_t>(at)];
      one.append(
          BoxRecord{record, maps.is_none() ? nb::none() : nb::object(maps[at]), adaptive && record.degenerate == 0});
    }
    all.append(std::move(one));
  }
  return all;
}

nb::object resize(const Array& source, int height, int width, nb::object out) {
  const auto bytes_per_pixel = [](const auto& a) { return a.ndim() == 3 ? static_cast<std::int64_t>(a.shape(2)) : 0; };
  const std::int64_t channels = bytes_per_pixel(source);
  const auto usable = [](const Array& a, std::int64_t c) {
    return a.device_type() == nb::device::cpu::value && a.dtype() == nb::dtype<std::uint8_t>() && a.ndim() == 3 &&
           c >= 1 && c <= 4 && a.shape(0) >= 1 && a.shape(1) >= 1 && a.shape(0) <= 0x7fffffff &&
           a.shape(1) <= 0x7fffffff / 4;
  };
  if (!usable(source, channels))
    raise("ImageError",
          "expected uint8[H, W, C] with 1 to 4 channels and at "
          "least one pixel, got " +
              shape_text(source));
  if (!contiguous(source, 1)) raise("ImageError", "the image's rows must be contiguous (HWC); pass a contiguous copy");
  if (height < 1 || width < 1 || width > 0x7fffffff / 4)
    throw nb::value_error(
        ("expected a size of at least 1x1, got " + std::to_string(height) + "x" + std::to_string(width)).c_str());
  const std::size_t row = static_cast<std::size_t>(width) * static_cast<std::size_t>(channels);
  nb::object result;
  std::uint8_t* to = nullptr;
  std::ptrdiff_t row_bytes = static_cast<std::ptrdiff_t>(row);
  if (!out.is_none()) {
    nb::ndarray<> writable;
    if (!nb::try_cast(out, writable)) raise("ImageError", "out: expected a writable uint8 buffer on the CPU");
    const Array view(writable);
    if (!usable(view, bytes_per_pixel(view)) || view.shape(0) != static_cast<std::size_t>(height) ||
        view.shape(1) != static_cast<std::size_t>(width) || static_cast<std::int64_t>(view.shape(2)) != channels ||
        !contiguous(view, 1))
      raise("ImageError", "out: expected uint8[" + std::to_string(height) + ", " + std::to_string(width) + ", " +
                              std::to_string(channels) + "] with contiguous rows, got " + shape_text(view));
    to = static_cast<std::uint8_t*>(writable.data());
    row_bytes = static_cast<std::ptrdiff_t>(view.stride(0));
    result = out;
  } else {
    to = new std::uint8_t[static_cast<std::size_t>(height) * row];
    nb::capsule owner(to, [](void* p) noexcept { delete[] static_cast<std::uint8_t*>(p); });
    result = nb::cast(nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<3>>(
        to, {static_cast<std::size_t>(height), static_cast<std::size_t>(width), static_cast<std::size_t>(channels)},
        owner));
  }
  wgap_status status;
  {
    nb::gil_scoped_release released;
    status = wgap_resize(static_cast<const std::uint8_t*>(source.data()), static_cast<std::int32_t>(source.shape(0)),
                         static_cast<std::int32_t>(source.shape(1)), static_cast<std::ptrdiff_t>(source.stride(0)), to,
                         height, width, row_bytes, static_cast<std::int32_t>(channels));
  }
  if (status == WGAP_OUT_OF_MEMORY) throw std::bad_alloc();
  if (status != WGAP_OK) raise("ImageError", wgap_status_string(status));
  return result;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() =
      "Native core: 8-bit resize and the fused feature-map-to-box "
      "kernel. See wgap.runtime.postprocess.";
  m.attr("__version__") = wgap_version();
  nb::class_<Classifier>(m, "Classifier")
      .def(nb::init<const Array&>(), nb::arg("weight"))
      .def_ro("num_classes", &Classifier::classes)
      .def_ro("channels", &Classifier::channels);
  nb::class_<BoxRecord>(m, "BoxRecord")
      .def_prop_ro("class_id", [](const BoxRecord& r) { return r.record.class_id; })
      .def_prop_ro("score", [](const BoxRecord& r) { return r.record.score; })
      .def_prop_ro("logit", [](const BoxRecord& r) { return r.record.logit; })
      .def_prop_ro("level", [](const BoxRecord& r) { return r.record.level; })
      .def_prop_ro("threshold", [](const BoxRecord& r) { return r.record.threshold; })
      .def_prop_ro("box",
                   [](const BoxRecord& r) {
                     const std::int32_t* const b = r.record.box;
                     return nb::make_tuple(b[0], b[1], b[2], b[3]);
                   })
      .def_prop_ro("degenerate", [](const BoxRecord& r) { return r.record.degenerate != 0; })
      .def_ro("heatmap", &BoxRecord::heatmap)
      .def_prop_ro("edge_mean", edge_mean_of);
  m.def("resize", &resize, nb::arg("src"), nb::arg("height"), nb::arg("width"), nb::arg("out") = nb::none());
  m.def("postprocess", &postprocess, nb::arg("features"), nb::arg("logits"), nb::arg("classifier"), nb::kw_only(),
        nb::arg("size"), nb::arg("classes") = nb::none(), nb::arg("top_k") = 1, nb::arg("map") = "recombined",
        nb::arg("threshold") = "adaptive", nb::arg("heatmaps") = false, nb::arg("edge_means") = false,
        nb::arg("threads") = 1, nb::arg("target") = "");
  m.attr("_CUDA_RESULT_BYTES") = sizeof(wgap::Result);
  m.def("_cuda_layout", &cuda_layout, nb::arg("shape"), nb::arg("room"));
  m.def("_cuda_task", &cuda_task, nb::arg("shape"), nb::arg("images"), nb::arg("per_image"), nb::arg("map"),
        nb::arg("threshold"), nb::arg("room"), nb::arg("pointers"));
  m.def("_cuda_records", &cuda_records, nb::arg("results"), nb::arg("images"), nb::arg("per_image"),
        nb::arg("adaptive"), nb::arg("maps") = nb::none());
  m.def("cpu_targets", [] {
    nb::list names;
    for (const char* const* name = wgap_targets(); *name != nullptr; ++name) names.append(*name);
    return names;
  });
  m.def("active_target", [] {
    const wgap::Lease lease(1, "");
    return std::string(wgap_workspace_target(lease.entry.workspace));
  });
}
