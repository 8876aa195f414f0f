// wgap's runtime in C++17, header-only over wgap/runtime.h: a bundle and a picture in, boxes out.
//
//   wgap::Options options;
//   options.precision = "int8";
//   auto localizer = wgap::Localizer::open("bundle", options);
//   for (const wgap::Found& found : localizer->file("bird.jpg"))
//     std::printf("%s %.1f%% at %g %g %g %g\n", found.class_name.c_str(), 100 * found.score, found.box().x0, ...);
//
// Every call returns a Result. Ask it (`if (!result) ... result.error()`), or use the value at once: that throws
// wgap::Exception where there is none or, where exceptions are off, prints the error and ends the program.
// A result lives as long as its name: give it one before keeping a reference into it (`const auto result =
// localizer->file("bird.jpg"); const wgap::Found& found = result->best();`).
// Errors, threads and boxes are as wgap/runtime.h says.
#ifndef WGAP_WGAP_HPP
#define WGAP_WGAP_HPP

#include <wgap/runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#if defined(__cpp_exceptions)
#include <exception>
#endif

namespace wgap {

// Why a call failed: a status, whose name `code()` is ("ImageError", ...), and a sentence.
struct Error {
  wgap_status status = WGAP_OK;
  std::string text;
  std::string json = {};  // of a picture: the line that `wgap localize --json` prints; of a selftest: its report

  const char* code() const { return wgap_status_string(status); }
  // Whether it is that one or a kind of it: a WGAP_GATE_ERROR is a WGAP_BUNDLE_ERROR.
  bool is(wgap_status kind) const {
    return status == kind || (kind >= 0x100 && (kind & 0xff) == 0 && (status & ~0xff) == kind);
  }
};

#if defined(__cpp_exceptions)
class Exception : public std::exception {
 public:
  explicit Exception(Error error) : error_(std::move(error)) {}
  const Error& error() const { return error_; }
  const char* what() const noexcept override { return error_.text.c_str(); }

 private:
  Error error_;
};
#endif

// A value or the error in its place.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : content_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : content_(std::in_place_index<1>, std::move(error)) {}

  explicit operator bool() const { return content_.index() == 0; }
  const Error& error() const {  // an empty one where there is a value
    static const Error none;
    return *this ? none : *std::get_if<1>(&content_);
  }
  T& value() & { return require(), *std::get_if<0>(&content_); }
  const T& value() const& { return require(), *std::get_if<0>(&content_); }
  T value() && { return require(), std::move(*std::get_if<0>(&content_)); }  // by value: it outlives what it came from
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // Of a value with a range.
  auto begin() const { return value().begin(); }
  auto end() const { return value().end(); }

 private:
  std::variant<T, Error> content_;

  void require() const {
    if (*this) return;
#if defined(__cpp_exceptions)
    throw Exception(error());
#else
    std::fprintf(stderr, "wgap: %s: %s\n", error().code(), error().text.c_str());
    std::abort();
#endif
  }
};

using Box = wgap_box;
using Timings = wgap_timings;

// One class of one picture.
struct Found {
  int class_id = 0;
  std::string class_name;
  float score = 0;         // softmax probability of the class
  std::vector<Box> boxes;  // in pixels of the picture, half-open, the best component's first
  double threshold = 0;
  int level = -1;
  bool degenerate = false;     // the mask is empty, the box is the whole picture
  std::vector<float> heatmap;  // [heatmap_height][heatmap_width] in [0, 1], where it was asked for
  int heatmap_height = 0;
  int heatmap_width = 0;

  const Box& box() const { return boxes.front(); }
};

// What was found in one picture, best class first.
struct Localization {
  std::vector<Found> found;
  std::string json;                     // the line that `wgap localize --json` prints
  Timings timings = WGAP_TIMINGS_INIT;  // of the call, over all its pictures

  auto begin() const { return found.begin(); }
  auto end() const { return found.end(); }
  const Found& best() const { return found.front(); }
};

// A result for each picture of a batch, in order.
struct Batch : std::vector<Result<Localization>> {
  Timings timings = WGAP_TIMINGS_INIT;
};

// Pixels of the caller's: 8-bit RGB. The height comes first, as of an array; fields that are named, in C++20
// `{.data = rgb, .height = 480, .width = 640}`, cannot be swapped. Where `row_bytes` and `bytes` are given, a picture that
// is wider than high and has its sides swapped does not fit its memory, and is refused.
struct Pixels {
  const std::uint8_t* data = nullptr;
  int height = 0;
  int width = 0;
  std::int64_t row_bytes = 0;  // from one row to the next; 0: rows without gaps
  std::size_t bytes = 0;       // of memory, which the picture has to fit; 0: as many as it takes
};

// A picture that was decoded: pixels that stay for as long as it or a copy of it does.
struct Image : Pixels {
  std::shared_ptr<const std::uint8_t> owner;
};

// The pixels of a JPEG or PNG file of so many bytes, as the localizer and Python get them. name: what messages call it.
inline Result<Image> decode(const void* encoded, std::size_t bytes, const std::string& name = "<bytes>") {
  wgap_error error = WGAP_ERROR_INIT;
  wgap_image made = WGAP_IMAGE_INIT;
  if (const wgap_status status = wgap_decode(encoded, bytes, name.c_str(), &made, &error); status != WGAP_OK)
    return Error{status, error.text, {}};
  Image image;
  image.owner.reset(made.data, [made](const std::uint8_t*) mutable { wgap_pixels_free(&made); });
  image.data = made.data, image.height = made.height, image.width = made.width;
  image.row_bytes = made.row_bytes, image.bytes = static_cast<std::size_t>(made.bytes);
  return image;
}

// One picture of a batch: a file's path, the bytes of an image file, or pixels. What it points at must outlive the call.
class Picture {
 public:
  Picture(const char* path) : content_(std::string(path != nullptr ? path : "")) {}
  Picture(std::string path) : content_(std::move(path)) {}
  Picture(const void* encoded, std::size_t bytes) : content_(Encoded{encoded, bytes}) {}
  Picture(const Pixels& pixels) : content_(pixels) {}
  Picture& of_class(int id) { return class_id_ = id, *this; }  // to localize, in all pictures of a call or in none

 private:
  friend class Localizer;
  struct Encoded {
    const void* data;
    std::size_t bytes;
  };
  std::variant<std::string, Encoded, Pixels> content_;
  int class_id_ = -1;
};

// Of one call.
struct RunOptions {
  bool heatmaps = false;  // also return each class's map
};
inline constexpr RunOptions with_heatmaps{true};

// One output of a network: float32 rows, and what owns their memory.
class Rows {
 public:
  Rows() = default;  // of an output that is not wanted
  Rows(std::vector<float> values) {
    const auto held = std::make_shared<const std::vector<float>>(std::move(values));
    data_ = {held, held->data()}, size_ = held->size();
  }
  // In memory that stays for as long as `owner` is kept: until the boxes are made. Null: it is yours to keep.
  Rows(const std::shared_ptr<const void>& owner, const float* data, std::size_t size)
      : data_(owner, data), size_(size) {}

  const float* data() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  std::shared_ptr<const float> data_;
  std::size_t size_ = 0;
};

// What a network gives for a batch: a row for each image, of what the bundle's signature says.
struct Outputs {
  Rows logits, features, foreground;
};

// An engine of your own in place of wgap's modules. Called by several threads at once.
class Network {
 public:
  virtual ~Network() = default;
  // images: uint8 [count][height][width][3], RGB, at the bundle's input size; wanted: WGAP_LOGITS, WGAP_FEATURES and
  // WGAP_FOREGROUND together.
  virtual Result<Outputs> run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted) = 0;
  virtual int largest() const { return 0; }  // images that run takes at most; 0: any number
  virtual const char* name() const { return "network"; }
};

struct Options {
  std::string backend;  // empty: "onnxruntime"; "onnxruntime_cuda", "openvino", "tensorrt"; "auto": what runs best here
  std::string precision;  // empty: "fp32"; "int8", "fp16" once calibrated
  std::string rule;       // "adaptive", "fixed:0.2", "foreground", ...; empty: the bundle's own
  std::string map;        // likewise
  std::string library;    // file of the backend's library; empty: searched
  std::string device;     // of backends on GPUs: an ordinal or a UUID; empty: the first. Of openvino: "CPU", "GPU", ...
  std::string hint;       // of openvino: "throughput"; empty: "latency"
  int top_k = 1;
  int max_boxes = 1;
  int batch_size = 1;
  int threads = 0;                // 0: every core for the network, one for the kernel
  int slots = 0;                  // of backends on GPUs: calls on the GPU at the same time; 0: 4
  std::int64_t memory_limit = 0;  // of onnxruntime_cuda: bytes that it may hold on the GPU; 0: 4 GiB
  int streams = 0;                // of openvino: forward passes side by side; 0: as the hint has it
  bool ungated = false;
  bool trusted = false;              // do not compare every file of the bundle with its hash
  std::shared_ptr<Network> network;  // of your own
};

// The sizes and the rule of a bundle, for an engine of your own before there is a localizer.
inline Result<wgap_bundle_info> describe(const std::string& bundle) {
  wgap_error error = WGAP_ERROR_INIT;
  wgap_bundle_info info = WGAP_BUNDLE_INFO_INIT;
  wgap_bundle* opened = nullptr;
  wgap_status status = wgap_bundle_open(bundle.c_str(), 0, &opened, &error);
  if (status == WGAP_OK) status = wgap_bundle_describe(opened, &info, &error);
  wgap_bundle_close(opened);
  if (status != WGAP_OK) return Error{status, error.text, {}};
  return info;
}

class Localizer {
 public:
  static Result<Localizer> open(const std::string& bundle, const Options& options = {}) {
    const auto text = [](const std::string& value) { return value.empty() ? nullptr : value.c_str(); };
    wgap_localizer_options given = WGAP_LOCALIZER_OPTIONS_INIT;
    given.backend = text(options.backend);
    given.precision = text(options.precision);
    given.rule = text(options.rule);
    given.map = text(options.map);
    given.library = text(options.library);
    given.device = text(options.device);
    given.slots = options.slots;
    given.memory_limit = options.memory_limit;
    given.hint = text(options.hint);
    given.streams = options.streams;
    given.top_k = options.top_k;
    given.max_boxes = options.max_boxes;
    given.batch_size = options.batch_size;
    given.threads = options.threads;
    given.ungated = options.ungated;
    given.trusted = options.trusted;
    wgap_network network = WGAP_NETWORK_INIT;
    auto owned = options.network ? std::make_unique<std::shared_ptr<Network>>(options.network) : nullptr;
    if (owned) {
      network.largest = options.network->largest();
      network.name = options.network->name();
      network.context = owned.get();
      network.run = run_network;
      network.release = [](void*, wgap_outputs* outputs) { delete static_cast<Outputs*>(outputs->lease); };
      network.destroy = [](void* context) { delete static_cast<std::shared_ptr<Network>*>(context); };
      given.network = &network;
    }
    wgap_error error = WGAP_ERROR_INIT;
    wgap_localizer* made = nullptr;
    const wgap_status status = wgap_localizer_open(bundle.c_str(), &given, &made, &error);
    if (status != WGAP_OK) return Error{status, error.text, {}};
    static_cast<void>(owned.release());  // the localizer's now
    return Localizer(made);
  }

  // One picture. The options may be `wgap::with_heatmaps`.
  Result<Localization> file(const std::string& path, const RunOptions& options = {}) const {
    return one(Picture(path), options);
  }
  Result<Localization> encoded(const void* data, std::size_t bytes, const RunOptions& options = {}) const {
    return one(Picture(data, bytes), options);
  }
  Result<Localization> pixels(const Pixels& rgb, const RunOptions& options = {}) const {
    return one(Picture(rgb), options);
  }
  Result<Localization> one(const Picture& picture, const RunOptions& options = {}) const {
    auto results = run(&picture, 1, options);
    if (!results) return results.error();
    return std::move(results->front());
  }

  // Many pictures, batch_size in a forward pass. The whole fails where the network does.
  Result<Batch> batch(const std::vector<Picture>& pictures, const RunOptions& options = {}) const {
    return run(pictures.data(), pictures.size(), options);
  }

  // Does the bundle give here what it gave where it was made? The report, which `wgap selftest --json` prints; where a
  // check failed, an error WGAP_CHECK_FAILED_ERROR with the report as its json.
  Result<std::string> selftest() const {
    wgap_error error = WGAP_ERROR_INIT;
    char* raw = nullptr;
    const wgap_status status = wgap_localizer_selftest(handle_.get(), &raw, &error);
    const std::unique_ptr<char, void (*)(void*)> report(raw, wgap_free);
    if (status != WGAP_OK) return Error{status, error.text, raw != nullptr ? raw : ""};
    return std::string(raw);
  }

  // Pictures in the memory of the localizer's GPU, at the network's input size: uint8 [count][height][width][3], RGB.
  // The work is queued on `stream` behind what it holds, and waited for; boxes are in pixels of these pictures.
  // class_ids: one for each picture, or none for the top_k by logit.
  Result<Batch> device(const void* images, std::size_t count, void* stream = nullptr,
                       const std::vector<std::int64_t>& class_ids = {}, const RunOptions& options = {}) const {
    wgap_device_pictures given = WGAP_DEVICE_PICTURES_INIT;
    given.images = images;
    given.count = static_cast<std::int64_t>(count);
    given.stream = stream;
    given.class_ids = class_ids.empty() ? nullptr : class_ids.data();
    if (!class_ids.empty() && class_ids.size() != count)
      return Error{WGAP_INVALID_ARGUMENT, "class_ids: expected one for each picture", {}};
    wgap_run_options asked = WGAP_RUN_OPTIONS_INIT;
    asked.heatmaps = options.heatmaps;
    wgap_error error = WGAP_ERROR_INIT;
    wgap_results* raw = nullptr;
    const wgap_status status = wgap_localizer_run_device(handle_.get(), &given, &asked, &raw, &error);
    return results_of(status, error, raw);
  }

  wgap_rule rule() const {  // that it runs under
    wgap_rule rule = WGAP_RULE_INIT;
    wgap_localizer_rule(handle_.get(), &rule, nullptr);
    return rule;
  }
  std::string backend() const { return wgap_localizer_backend(handle_.get()); }  // such as "onnxruntime 1.32.0"
  int classes() const {
    wgap_bundle_info info = WGAP_BUNDLE_INFO_INIT;
    return wgap_bundle_describe(wgap_localizer_bundle(handle_.get()), &info, nullptr) == WGAP_OK ? info.classes : 0;
  }
  std::string class_name(int id) const {  // empty where there is no such class
    const char* const name = wgap_bundle_class_name(wgap_localizer_bundle(handle_.get()), id);
    return name != nullptr ? name : "";
  }
  wgap_localizer* handle() const { return handle_.get(); }

 private:
  struct Close {
    void operator()(wgap_localizer* localizer) const { wgap_localizer_close(localizer); }
  };
  std::unique_ptr<wgap_localizer, Close> handle_;

  explicit Localizer(wgap_localizer* handle) : handle_(handle) {}

  static Network& network_of(void* context) { return **static_cast<std::shared_ptr<Network>*>(context); }
  static wgap_status run_network(void* context, const std::uint8_t* images, std::int64_t count, std::uint32_t wanted,
                                 wgap_outputs* outputs, wgap_error* error) {
    Error failed;
    const auto work = [&] {
      Result<Outputs> made = network_of(context).run(images, count, wanted);
      if (!made) {
        failed = made.error();
        if (failed.status == WGAP_OK) failed.status = WGAP_BACKEND_ERROR;
        return;
      }
      auto* const kept = new Outputs(std::move(*made));  // until release
      outputs->lease = kept;
      outputs->logits = kept->logits.data(), outputs->logits_bytes = kept->logits.size() * sizeof(float);
      outputs->features = kept->features.data(), outputs->features_bytes = kept->features.size() * sizeof(float);
      outputs->foreground = kept->foreground.data();
      outputs->foreground_bytes = kept->foreground.size() * sizeof(float);
    };
#if defined(__cpp_exceptions)
    try {
      work();
    } catch (const Exception& exception) {
      failed = exception.error();
    } catch (const std::exception& exception) {
      failed = {WGAP_BACKEND_ERROR, exception.what(), {}};
    } catch (...) {  // nothing may cross a C boundary
      failed = {WGAP_BACKEND_ERROR, "the network threw something that is no std::exception", {}};
    }
#else
    work();
#endif
    std::snprintf(error->text, sizeof error->text, "%s", failed.text.c_str());
    return error->status = failed.status, failed.status;
  }

  Result<Batch> run(const Picture* pictures, std::size_t count, const RunOptions& asked) const {
    std::vector<wgap_picture> given(count, wgap_picture WGAP_PICTURE_INIT);
    std::vector<wgap_image> images(count, wgap_image WGAP_IMAGE_INIT);
    for (std::size_t i = 0; i < count; ++i) {
      given[i].class_id = pictures[i].class_id_;
      if (const auto* const path = std::get_if<std::string>(&pictures[i].content_)) {
        given[i].path = path->c_str();
      } else if (const auto* const encoded = std::get_if<Picture::Encoded>(&pictures[i].content_)) {
        given[i].encoded = encoded->data != nullptr ? encoded->data : "";  // no bytes: an empty file
        given[i].encoded_bytes = encoded->data != nullptr ? encoded->bytes : 0;
      } else {
        const Pixels& pixels = *std::get_if<Pixels>(&pictures[i].content_);
        images[i].height = pixels.height;
        images[i].width = pixels.width;
        images[i].channels = 3;
        images[i].data = const_cast<std::uint8_t*>(pixels.data);  // only read
        images[i].row_bytes = pixels.row_bytes != 0 ? pixels.row_bytes : static_cast<std::int64_t>(pixels.width) * 3;
        const auto rows =
            static_cast<std::uint64_t>(pixels.height > 0 ? pixels.height - 1 : 0);  // wraps: the library judges
        const auto stride = static_cast<std::uint64_t>(images[i].row_bytes);
        images[i].bytes = pixels.bytes != 0 ? pixels.bytes
                                            : rows * (images[i].row_bytes < 0 ? 0 - stride : stride) +
                                                  static_cast<std::uint64_t>(pixels.width) * 3;
        given[i].pixels = &images[i];
      }
    }
    wgap_run_options options = WGAP_RUN_OPTIONS_INIT;
    options.heatmaps = asked.heatmaps;
    wgap_error error = WGAP_ERROR_INIT;
    wgap_results* raw = nullptr;
    const wgap_status status =
        wgap_localizer_run(handle_.get(), given.data(), static_cast<std::int64_t>(count), &options, &raw, &error);
    return results_of(status, error, raw);
  }

  static Result<Batch> results_of(wgap_status status, const wgap_error& error, wgap_results* raw) {
    if (status != WGAP_OK) return Error{status, error.text, {}};
    const std::unique_ptr<wgap_results, void (*)(wgap_results*)> results(raw, wgap_results_destroy);
    Batch made;
    wgap_results_timings(raw, &made.timings, nullptr);
    for (std::int64_t i = 0; i < wgap_results_count(raw); ++i) made.push_back(result_of(raw, i, made.timings));
    return made;
  }

  static Result<Localization> result_of(const wgap_results* results, std::int64_t i, const Timings& timings) {
    if (const wgap_status status = wgap_results_status(results, i); status != WGAP_OK)
      return Error{status, wgap_results_message(results, i), wgap_results_json(results, i)};
    Localization made;
    made.json = wgap_results_json(results, i);
    made.timings = timings;
    for (std::int32_t rank = 0; rank < wgap_results_classes(results, i); ++rank) {
      const wgap_found& from = *wgap_results_found(results, i, rank);
      Found found;
      found.class_id = from.class_id;
      found.class_name = from.class_name;
      found.score = from.score;
      found.boxes.assign(from.boxes, from.boxes + from.box_count);
      found.threshold = from.threshold;
      found.level = from.level;
      found.degenerate = from.degenerate != 0;
      found.heatmap_height = from.heatmap_height;
      found.heatmap_width = from.heatmap_width;
      if (from.heatmap != nullptr)
        found.heatmap.assign(from.heatmap, from.heatmap + std::ptrdiff_t{from.heatmap_height} * from.heatmap_width);
      made.found.push_back(std::move(found));
    }
    return made;
  }
};

}  // namespace wgap

#endif
