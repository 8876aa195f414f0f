// The runtime's C interface: checks arguments, and turns exceptions into statuses.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <new>

#include "engine.h"
#include "localizer.h"
#include "wgap/runtime.h"

struct wgap_bundle {
  std::shared_ptr<const wgap::sdk::Bundle> bundle;
};

struct wgap_localizer {
  wgap::sdk::Localizer localizer;
  wgap_bundle bundle;

  wgap_localizer(const char* path, const wgap_localizer_options& options)
      : localizer(path, options), bundle{localizer.shared_bundle()} {}
};

struct wgap_results {
  std::shared_ptr<const wgap::sdk::Bundle> bundle;  // class names lie there
  std::vector<wgap::sdk::Result> results;
  wgap_timings timings = WGAP_TIMINGS_INIT;
  mutable std::mutex lock;
  mutable std::vector<std::string> lines;
};

namespace {

using wgap::sdk::Failure;

#define WGAP_FIRST_SIZE(type, last) (offsetof(type, last) + sizeof(type::last))

template <class T>
bool aligned(const T* p) {
  return reinterpret_cast<std::uintptr_t>(p) % alignof(T) == 0;
}

// Writes as much of a sentence as the caller's struct has room for.
wgap_status tell(wgap_error* error, wgap_status status, const char* sentence) {
  constexpr std::size_t kHead = offsetof(wgap_error, text);
  if (error == nullptr || error->struct_size <= kHead) return status;
  error->status = status;
  const std::size_t room = error->struct_size - kHead, length = std::min(std::strlen(sentence), room - 1);
  std::memcpy(error->text, sentence, length);
  error->text[length] = 0;
  return status;
}

void require_size(const char* name, std::uint32_t size, std::size_t first, std::size_t known) {
  if (size > known)
    wgap::sdk::fail(WGAP_STRUCT_TOO_NEW, "%s has %u bytes, wgap %s knows %zu: the program's header is newer", name,
                    size, wgap_version(), known);
  if (size < first)
    wgap::sdk::fail(WGAP_INVALID_ARGUMENT, "%s: expected a size of at least %zu bytes, got %u; begin with its _INIT",
                    name, first, size);
}

// The whole of a function behind the C boundary.
template <class Work>
wgap_status guarded(wgap_error* error, Work work) {
  if (error != nullptr && !aligned(error)) return WGAP_INVALID_ARGUMENT;
  if (error != nullptr && error->struct_size > sizeof *error) {
    wgap_error known = WGAP_ERROR_INIT;
    try {
      require_size("wgap_error", error->struct_size, 0, sizeof *error);
    } catch (const Failure& failure) {
      tell(&known, failure.status(), failure.what());
    }
    std::memcpy(&error->status, &known.status, sizeof known - offsetof(wgap_error, status));
    return WGAP_STRUCT_TOO_NEW;
  }
  try {
    work();
    return WGAP_OK;
  } catch (const Failure& failure) {
    return tell(error, failure.status(), failure.what());
  } catch (const std::bad_alloc&) {
    return tell(error, WGAP_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& other) {
    return tell(error, WGAP_OUT_OF_MEMORY, (std::string("the system failed: ") + other.what()).c_str());
  }
}

template <class T>
void require_pointer(const char* name, const T* pointer) {
  if (pointer == nullptr || !aligned(pointer))
    wgap::sdk::fail(WGAP_INVALID_ARGUMENT, "%s: expected an aligned pointer, got %p", name,
                    static_cast<const void*>(pointer));
}

// A struct of this version or an older one, over the defaults that are in `own`.
template <class T>
T adopted(const char* name, const T* given, std::size_t first, T own) {
  require_pointer(name, given);
  require_size(name, given->struct_size, first, sizeof(T));
  std::memcpy(&own, given, given->struct_size);
  return own;
}

wgap_run_options run_options(const wgap_run_options* given) {  // null: the defaults
  const wgap_run_options usual = WGAP_RUN_OPTIONS_INIT;
  if (given == nullptr) return usual;
  return adopted("wgap_run_options", given, WGAP_FIRST_SIZE(wgap_run_options, heatmaps), usual);
}

void require_count(std::int64_t count) {
  if (count < 0 || count > (1 << 30))
    wgap::sdk::fail(WGAP_INVALID_ARGUMENT, "count: expected 0 to 2^30 pictures, got %lld",
                    static_cast<long long>(count));
}

// With a zero byte behind it, for wgap_free.
char* copied(const std::string& text) {
  auto* const made = static_cast<char*>(std::malloc(text.size() + 1));
  if (made == nullptr) throw std::bad_alloc();
  std::memcpy(made, text.c_str(), text.size() + 1);
  return made;
}

const wgap::sdk::Result* result_of(const wgap_results* results, std::int64_t picture) {
  if (results == nullptr || picture < 0 || picture >= static_cast<std::int64_t>(results->results.size()))
    return nullptr;
  return &results->results[static_cast<std::size_t>(picture)];
}

}  // namespace

extern "C" {

wgap_status wgap_bundle_open(const char* path, int32_t verify, wgap_bundle** bundle, wgap_error* error) {
  return guarded(error, [&] {
    require_pointer("path", path);
    require_pointer("bundle", bundle);
    *bundle = new wgap_bundle{std::make_shared<const wgap::sdk::Bundle>(path, verify != 0)};
  });
}

void wgap_bundle_close(wgap_bundle* bundle) { delete bundle; }

wgap_status wgap_bundle_describe(const wgap_bundle* bundle, wgap_bundle_info* info, wgap_error* error) {
  return guarded(error, [&] {
    require_pointer("bundle", bundle);
    adopted("wgap_bundle_info", info, WGAP_FIRST_SIZE(wgap_bundle_info, rule), wgap_bundle_info{});
    const wgap::sdk::Manifest& manifest = bundle->bundle->manifest();
    const auto extent = [&](const char* name, int axis) {
      const wgap::sdk::Tensor* const tensor = manifest.tensor(name);
      return tensor == nullptr ? 0 : static_cast<std::int32_t>(tensor->shape[static_cast<std::size_t>(axis)]);
    };
    const wgap_bundle_info told{info->struct_size,       manifest.schema,       extent("image", 1),
                                extent("image", 2),      extent("logits", 1),   extent("features", 1),
                                extent("features", 2),   extent("features", 3), extent("foreground", 2),
                                extent("foreground", 3), manifest.rule};
    std::memcpy(info, &told, info->struct_size);
  });
}

const char* wgap_bundle_class_name(const wgap_bundle* bundle, int32_t class_id) {
  if (bundle == nullptr || class_id < 0) return nullptr;
  const std::vector<std::string>& classes = bundle->bundle->manifest().classes;
  return static_cast<std::size_t>(class_id) < classes.size() ? classes[static_cast<std::size_t>(class_id)].c_str()
                                                             : nullptr;
}

wgap_status wgap_bundle_engine(const wgap_bundle* bundle, const wgap_engine_host* host, const char* precision,
                               const wgap_rule* rule, int32_t ungated, void** plan, uint64_t* plan_bytes, char** path,
                               wgap_error* error) {
  return guarded(error, [&] {
    require_pointer("bundle", bundle);
    require_pointer("plan", plan);
    require_pointer("plan_bytes", plan_bytes);
    wgap_engine_host asked = WGAP_ENGINE_HOST_INIT;
    asked = adopted("wgap_engine_host", host, WGAP_FIRST_SIZE(wgap_engine_host, platform), asked);
    require_pointer("flavor", asked.flavor);
    require_pointer("version", asked.version);
    const auto given = [](const char* text, const std::string& usual) { return text != nullptr ? text : usual; };
    const wgap::sdk::Host here{asked.flavor, asked.version, given(asked.compute_capability, ""),
                               given(asked.platform, wgap::sdk::this_platform())};
    const wgap::sdk::Bundle& of = *bundle->bundle;
    const wgap_rule own =
        rule != nullptr ? adopted("wgap_rule", rule, sizeof(wgap_rule), wgap_rule{}) : of.manifest().rule;
    wgap::sdk::require_rule(own);
    of.require_rule(own);
    const wgap::sdk::File& file = wgap::sdk::engine_file(of, here, given(precision, "fp32"), own);
    const std::string bytes = wgap::sdk::preflight(of, file, here, asked.batch, ungated != 0, own);
    char* const name = path != nullptr ? copied(file.path) : nullptr;
    try {
      *plan = copied(bytes);
    } catch (...) {
      std::free(name);
      throw;
    }
    *plan_bytes = bytes.size();
    if (path != nullptr) *path = name;
  });
}

void wgap_free(void* memory) { std::free(memory); }

wgap_status wgap_localizer_open(const char* path, const wgap_localizer_options* options, wgap_localizer** localizer,
                                wgap_error* error) {
  return guarded(error, [&] {
    require_pointer("path", path);
    require_pointer("localizer", localizer);
    wgap_localizer_options own = WGAP_LOCALIZER_OPTIONS_INIT;
    if (options != nullptr)
      own = adopted("wgap_localizer_options", options, WGAP_FIRST_SIZE(wgap_localizer_options, network), own);
    wgap_network network = WGAP_NETWORK_INIT;
    if (own.network != nullptr) {
      network = adopted("wgap_network", own.network, WGAP_FIRST_SIZE(wgap_network, version), network);
      if (network.run == nullptr || network.largest < 0)
        wgap::sdk::fail(WGAP_INVALID_ARGUMENT, "wgap_network: expected a function run, and largest of 0 or more");
      own.network = &network;
    }
    *localizer = new wgap_localizer(path, own);
  });
}

void wgap_localizer_close(wgap_localizer* localizer) { delete localizer; }

const wgap_bundle* wgap_localizer_bundle(const wgap_localizer* localizer) {
  return localizer != nullptr ? &localizer->bundle : nullptr;
}

const char* wgap_localizer_backend(const wgap_localizer* localizer) {
  return localizer != nullptr ? localizer->localizer.backend().c_str() : "";
}

wgap_status wgap_localizer_rule(const wgap_localizer* localizer, wgap_rule* rule, wgap_error* error) {
  return guarded(error, [&] {
    require_pointer("localizer", localizer);
    adopted("wgap_rule", rule, sizeof(wgap_rule), wgap_rule{});
    *rule = localizer->localizer.rule();
  });
}

wgap_status wgap_localizer_run(wgap_localizer* localizer, const wgap_picture* pictures, int64_t count,
                               const wgap_run_options* options, wgap_results** results, wgap_error* error) {
  return guarded(error, [&] {
    require_pointer("localizer", localizer);
    require_pointer("results", results);
    require_count(count);
    if (count > 0) require_pointer("pictures", pictures);
    const wgap_run_options own = run_options(options);
    std::vector<wgap_picture> given;
    std::vector<wgap_image> pixels(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) {
      // As far apart as the first one says: an array of older, smaller structs.
      const auto* const place = reinterpret_cast<const unsigned char*>(pictures) + i * pictures->struct_size;
      wgap_picture picture = WGAP_PICTURE_INIT;
      picture = adopted("wgap_picture", reinterpret_cast<const wgap_picture*>(place),
                        WGAP_FIRST_SIZE(wgap_picture, pixels), picture);
      if (picture.pixels != nullptr && picture.path == nullptr && picture.encoded == nullptr) {
        wgap_image image = WGAP_IMAGE_INIT;
        pixels[static_cast<std::size_t>(i)] =
            adopted("wgap_image", picture.pixels, WGAP_FIRST_SIZE(wgap_image, bytes), image);
        picture.pixels = &pixels[static_cast<std::size_t>(i)];
      }
      given.push_back(picture);
    }
    auto made = std::make_unique<wgap_results>();
    made->bundle = localizer->localizer.shared_bundle();
    made->results = localizer->localizer.run(given.data(), count, own.heatmaps != 0, &made->timings);
    *results = made.release();
  });
}

wgap_status wgap_localizer_run_device(wgap_localizer* localizer, const wgap_device_pictures* pictures,
                                      const wgap_run_options* options, wgap_results** results, wgap_error* error) {
  return guarded(error, [&] {
    require_pointer("localizer", localizer);
    require_pointer("results", results);
    wgap_device_pictures given = WGAP_DEVICE_PICTURES_INIT;
    given = adopted("wgap_device_pictures", pictures, WGAP_FIRST_SIZE(wgap_device_pictures, class_ids), given);
    require_count(given.count);
    if (given.count > 0) require_pointer("images", static_cast<const char*>(given.images));
    const wgap_run_options own = run_options(options);
    auto made = std::make_unique<wgap_results>();
    made->bundle = localizer->localizer.shared_bundle();
    made->results = localizer->localizer.run_device(given, own.heatmaps != 0, &made->timings);
    *results = made.release();
  });
}

wgap_status wgap_results_timings(const wgap_results* results, wgap_timings* timings, wgap_error* error) {
  return guarded(error, [&] {
    require_pointer("results", results);
    adopted("wgap_timings", timings, WGAP_FIRST_SIZE(wgap_timings, kernel_ms), wgap_timings{});
    wgap_timings told = results->timings;
    told.struct_size = timings->struct_size;
    std::memcpy(timings, &told, told.struct_size);
  });
}

wgap_status wgap_localizer_selftest(wgap_localizer* localizer, char** report, wgap_error* error) {
  return guarded(error, [&] {
    require_pointer("localizer", localizer);
    require_pointer("report", report);
    bool passed = false;
    *report = copied(localizer->localizer.selftest(&passed));
    if (!passed) wgap::sdk::fail(WGAP_CHECK_FAILED_ERROR, "a golden case came out otherwise; the report says which");
  });
}

void wgap_results_destroy(wgap_results* results) { delete results; }

int64_t wgap_results_count(const wgap_results* results) {
  return results != nullptr ? static_cast<int64_t>(results->results.size()) : 0;
}

wgap_status wgap_results_status(const wgap_results* results, int64_t picture) {
  const wgap::sdk::Result* const result = result_of(results, picture);
  return result != nullptr ? result->status : WGAP_INVALID_ARGUMENT;
}

const char* wgap_results_message(const wgap_results* results, int64_t picture) {
  const wgap::sdk::Result* const result = result_of(results, picture);
  return result != nullptr ? result->message.c_str() : "there is no such picture among the results";
}

int32_t wgap_results_classes(const wgap_results* results, int64_t picture) {
  const wgap::sdk::Result* const result = result_of(results, picture);
  return result != nullptr ? static_cast<int32_t>(result->found.size()) : 0;
}

const wgap_found* wgap_results_found(const wgap_results* results, int64_t picture, int32_t rank) {
  if (rank < 0 || rank >= wgap_results_classes(results, picture)) return nullptr;
  return &result_of(results, picture)->found[static_cast<std::size_t>(rank)].told;
}

const char* wgap_results_json(const wgap_results* results, int64_t picture) {
  const wgap::sdk::Result* const result = result_of(results, picture);
  if (result == nullptr) return "";
  try {
    const std::lock_guard<std::mutex> lock(results->lock);
    results->lines.resize(results->results.size());
    std::string& line = results->lines[static_cast<std::size_t>(picture)];
    if (line.empty()) line = wgap::sdk::json_line(*result);
    return line.c_str();
  } catch (const std::exception&) {  // out of memory
    return "";
  }
}

wgap_status wgap_decode(const void* encoded, uint64_t bytes, const char* name, wgap_image* pixels, wgap_error* error) {
  return guarded(error, [&] {
    adopted("wgap_image", pixels, WGAP_FIRST_SIZE(wgap_image, bytes), wgap_image{});
    if (bytes > 0) require_pointer("encoded", static_cast<const char*>(encoded));
    wgap::sdk::Pixels decoded = wgap::sdk::decode({static_cast<const char*>(encoded), static_cast<std::size_t>(bytes)},
                                                  name != nullptr ? name : "<bytes>");
    pixels->height = decoded.height, pixels->width = decoded.width, pixels->channels = 3;
    pixels->row_bytes = static_cast<std::int64_t>(decoded.row_bytes());
    pixels->bytes = decoded.row_bytes() * static_cast<std::size_t>(decoded.height);
    pixels->data = decoded.data.release();
  });
}

void wgap_pixels_free(wgap_image* pixels) {
  if (pixels == nullptr) return;
  std::free(pixels->data);
  pixels->data = nullptr;
}

}  // extern "C"
