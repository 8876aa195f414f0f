// The module of OpenVINO. The library is found at run time, of the release whose headers this was built with: its numbers
// for types change from one to the next.
#include <openvino/c/openvino.h>
#include <sys/stat.h>
#include <unistd.h>
#include <openvino/core/version.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../outputs.h"
#include "../sha256.h"
#include "library.h"

namespace {

using wgap::sdk::fail;
using wgap::sdk::guarded;
using wgap::sdk::opened;
using wgap::sdk::text;

constexpr wgap::sdk::LibrarySearch kSearch = {"openvino",         "OpenVINO",      "WGAP_OPENVINO",
                                              "libopenvino_c.so", "openvino/libs", "ov_core_create"};

// clang-format off
#define WGAP_OPENVINO_FUNCTIONS(each) \
  each(ov_available_devices_free) \
  each(ov_compiled_model_create_infer_request) \
  each(ov_compiled_model_export_model) \
  each(ov_compiled_model_free) \
  each(ov_compiled_model_get_property) \
  each(ov_core_compile_model) \
  each(ov_core_create) \
  each(ov_core_free) \
  each(ov_core_get_available_devices) \
  each(ov_core_get_property) \
  each(ov_core_import_model) \
  each(ov_core_read_model_from_memory_buffer) \
  each(ov_core_set_property) \
  each(ov_free) \
  each(ov_get_last_err_msg) \
  each(ov_get_openvino_version) \
  each(ov_infer_request_free) \
  each(ov_infer_request_get_tensor) \
  each(ov_infer_request_infer) \
  each(ov_infer_request_set_tensor) \
  each(ov_model_const_input_by_name) \
  each(ov_model_const_output_by_name) \
  each(ov_model_free) \
  each(ov_model_reshape_single_input) \
  each(ov_output_const_port_free) \
  each(ov_partial_shape_create_static) \
  each(ov_partial_shape_free) \
  each(ov_port_get_element_type) \
  each(ov_port_get_partial_shape) \
  each(ov_tensor_create_from_host_ptr) \
  each(ov_tensor_data) \
  each(ov_tensor_free) \
  each(ov_tensor_get_byte_size) \
  each(ov_version_free)
// clang-format on

struct Library {
#define WGAP_DECLARE(name) decltype(::name)* name = nullptr;
  WGAP_OPENVINO_FUNCTIONS(WGAP_DECLARE)
  std::string version, build;

  explicit Library(const char* option) {
    const wgap::sdk::LoadedLibrary file = wgap::sdk::load_library(kSearch, option);
#define WGAP_FIND(name)                                                                         \
  name = file.symbol<decltype(::name)>(#name);                                                  \
  if (name == nullptr)                                                                          \
    fail(WGAP_BACKEND_ERROR, "%s has no %s: expected OpenVINO %d.%d", file.path.c_str(), #name, \
         OPENVINO_VERSION_MAJOR, OPENVINO_VERSION_MINOR);
    WGAP_OPENVINO_FUNCTIONS(WGAP_FIND)
    ov_version_t told = {};
    check(ov_get_openvino_version(&told));
    version = build = told.buildNumber;
    version = version.substr(0, version.find('-'));
    ov_version_free(&told);
    const std::string expected = text("%d.%d.", OPENVINO_VERSION_MAJOR, OPENVINO_VERSION_MINOR);
    if ((version + ".").rfind(expected, 0) != 0)
      fail(WGAP_BACKEND_ERROR, "%s is OpenVINO %s; this module was built for %d.%d, and knows no other",
           file.path.c_str(), version.c_str(), OPENVINO_VERSION_MAJOR, OPENVINO_VERSION_MINOR);
  }
  void check(ov_status_e status) const {
    if (status != OK) fail(WGAP_BACKEND_ERROR, "OpenVINO %s: %s", version.c_str(), reason().c_str());
  }
  std::string reason() const {  // what it said last
    const char* const said = ov_get_last_err_msg();
    const std::string copy = said != nullptr && *said != 0 ? said : "failed";
    ov_free(said);
    return copy.substr(0, 600);
  }
};

const Library& library_of(const char* option) {
  static std::mutex lock;
  static auto& loaded =
      *new std::map<std::string,
                    std::unique_ptr<const Library>>;  // never destroyed: localizers of static lifetime outlive what is
  const std::lock_guard<std::mutex> held(lock);
  std::unique_ptr<const Library>& library = loaded[option != nullptr ? option : ""];
  if (!library) library = std::make_unique<const Library>(option);
  return *library;
}

constexpr std::size_t kKept = 4;  // batch sizes that stay compiled, those used last

// Models compiled earlier, as wgap.runtime.cache keeps them: each behind the sha256 of its content, in a folder that
// nobody else may write, since it is code.
class Cache {
 public:
  Cache() {
    const auto named = [](const char* name) {
      return std::string(std::getenv(name) != nullptr ? std::getenv(name) : "");
    };
    std::string folder = named("WGAP_CACHE");
    if (folder.empty() && !named("XDG_CACHE_HOME").empty()) folder = named("XDG_CACHE_HOME") + "/wgap";
    if (folder.empty() && !named("HOME").empty()) folder = named("HOME") + "/.cache/wgap";
    if (folder.empty() || !make_own(folder) || !make_own(folder + "/openvino")) return;
    folder_ = folder + "/openvino";
  }
  const std::string& folder() const { return folder_; }  // "" where nothing can be kept
  std::string path(const std::string& made_of) const {
    if (folder_.empty()) return "";
    wgap::sdk::Sha256 sum;
    sum.add(made_of.data(), made_of.size());
    return folder_ + "/" + sum.hexadecimal().substr(0, 32) + ".model";
  }
  // "" where there is none, or it is not what was written.
  static std::string read(const std::string& path) {
    std::string whole = content_of(path);
    if (whole.size() <= kDigest) return "";
    wgap::sdk::Sha256 sum;
    sum.add(whole.data() + kDigest, whole.size() - kDigest);
    if (whole.compare(0, kDigest, sum.hexadecimal()) != 0) return "";
    return whole.erase(0, kDigest);
  }
  // Under its own name once it is whole; what cannot be written is not kept.
  template <class Export>
  static void write(const std::string& path, Export write_to) {
    static std::atomic<unsigned> number{0};
    const std::string made = path + "." + std::to_string(getpid()) + "-" + std::to_string(number++);
    const std::string whole = made + ".new";
    if (write_to(made)) {
      const std::string content = content_of(made);
      wgap::sdk::Sha256 sum;
      sum.add(content.data(), content.size());
      std::ofstream out(whole, std::ios::binary);
      if ((out << sum.hexadecimal() << content).flush()) std::rename(whole.c_str(), path.c_str());
    }
    std::remove(made.c_str());
    std::remove(whole.c_str());
  }

 private:
  static constexpr std::size_t kDigest = 64;
  std::string folder_;

  static std::string content_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::streamoff bytes = file ? static_cast<std::streamoff>(file.tellg()) : 0;
    std::string content(static_cast<std::size_t>(std::max<std::streamoff>(bytes, 0)), '\0');
    if (!file.seekg(0) || !file.read(content.data(), bytes)) return "";
    return content;
  }

  // Makes the folder if it is not there; false where that is impossible.
  static bool make_own(const std::string& folder) {
    for (std::size_t at = 1; at != std::string::npos;) {
      at = folder.find('/', at + 1);
      if (mkdir(folder.substr(0, at).c_str(), 0700) != 0 && errno != EEXIST) return false;
    }
    struct stat about = {};
    if (stat(folder.c_str(), &about) != 0 || !S_ISDIR(about.st_mode)) return false;
    if ((about.st_uid != getuid() && about.st_uid != 0) || (about.st_mode & 2) != 0)
      fail(WGAP_BACKEND_ERROR,
           "%s: compiled models are kept there, and others may write it (mode %o, owner %u); run chmod o-w on it, or "
           "name a folder of your own in WGAP_CACHE",
           folder.c_str(), about.st_mode & 07777U, about.st_uid);
    return true;
  }
};

// Leaves the thread its alternate signal stack: the library sets one to ask for AMX and frees it, and the next signal that
// has a handler there would end the process.
class SignalStackKept {
 public:
  SignalStackKept() { sigaltstack(nullptr, &kept_); }
  ~SignalStackKept() { sigaltstack(&kept_, nullptr); }
  SignalStackKept(const SignalStackKept&) = delete;
  SignalStackKept& operator=(const SignalStackKept&) = delete;

 private:
  stack_t kept_ = {};
};

class Model {
 public:
  explicit Model(const wgap_network_request& request) : ov_(library_of(request.library)) {
    check(ov_.ov_core_create(&core_));
    try {
      plugin_ = plugin_of(request.device);
      set_properties(request);
      const ov_status_e status = ov_.ov_core_read_model_from_memory_buffer(
          core_, static_cast<const char*>(request.content), request.content_bytes, nullptr, &model_);
      if (status != OK)
        fail(WGAP_BACKEND_ERROR,
             "OpenVINO %s refuses %s: %s. If the file is damaged, copy the bundle again or export it again",
             ov_.version.c_str(), request.path, ov_.reason().c_str());
      for (std::int32_t i = 0; i < request.tensor_count; ++i) compare(request.tensors[i], request.path);
      wgap::sdk::Sha256 sum;
      sum.add(request.content, request.content_bytes);
      made_of_ = sum.hexadecimal() + ov_.build + plugin_ + property("FULL_DEVICE_NAME") + able_;
      for (const auto& [name, value] : properties_) made_of_ += "," + name + "=" + value;
      where_ = request.path;
      Lease first(*this, 1);  // the usual batch: what can fail does so now
    } catch (...) {
      release();
      throw;
    }
  }
  ~Model() { release(); }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const char* version() const { return ov_.version.c_str(); }

  void run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted, wgap_outputs* outputs) {
    auto lease = std::make_unique<Lease>(*this, count);
    ov_tensor_t* input = nullptr;
    std::int64_t extents[] = {count, image_[1], image_[2], image_[3]};
    check(ov_.ov_tensor_create_from_host_ptr(image_type_, ov_shape_t{4, extents}, const_cast<std::uint8_t*>(images),
                                             &input));
    const ov_status_e set = ov_.ov_infer_request_set_tensor(lease->request, "image", input);
    ov_.ov_tensor_free(input);
    check(set);
    check(ov_.ov_infer_request_infer(lease->request));
    for (const wgap::sdk::OutputPlace& output : wgap::sdk::places_of(outputs)) {
      if ((wanted & output.bit) == 0) continue;
      ov_tensor_t* tensor = nullptr;
      void* data = nullptr;
      std::size_t bytes = 0;
      check(ov_.ov_infer_request_get_tensor(lease->request, output.name, &tensor));
      const ov_status_e read = ov_.ov_tensor_data(tensor, &data), sized = ov_.ov_tensor_get_byte_size(tensor, &bytes);
      ov_.ov_tensor_free(tensor);  // the request holds its memory
      check(read);
      check(sized);
      *output.data = static_cast<const float*>(data), *output.bytes = bytes;
    }
    outputs->lease = lease.release();
  }
  static void release(wgap_outputs* outputs) { delete static_cast<Lease*>(outputs->lease); }

 private:
  struct Compiled {  // for batches of one size: those are fastest
    const Library& ov;
    ov_compiled_model_t* model = nullptr;
    std::vector<ov_infer_request_t*> idle = {};
    std::string kept = {};  // of the cache: the library reads weights from it for as long as the model lives

    explicit Compiled(const Library& library) : ov(library) {}
    ~Compiled() {
      for (ov_infer_request_t* const request : idle) ov.ov_infer_request_free(request);
      if (model != nullptr) ov.ov_compiled_model_free(model);
    }
    Compiled(const Compiled&) = delete;
    Compiled& operator=(const Compiled&) = delete;
  };
  struct Lease {
    Model& model;
    const std::shared_ptr<Compiled> compiled;
    ov_infer_request_t* request = nullptr;

    Lease(Model& of, std::int64_t images) : model(of), compiled(of.compiled_for(images)) {
      const std::lock_guard<std::mutex> held(model.lock_);
      if (compiled->idle.empty()) {
        model.check(model.ov_.ov_compiled_model_create_infer_request(compiled->model, &request));
      } else {
        request = compiled->idle.back();
        compiled->idle.pop_back();
      }
    }
    ~Lease() {
      const std::lock_guard<std::mutex> held(model.lock_);
      compiled->idle.push_back(request);
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
  };

  const Library& ov_;
  const Cache cache_;
  std::string plugin_, able_, made_of_, where_;
  std::map<std::string, std::string> properties_;
  ov_core_t* core_ = nullptr;
  ov_model_t* model_ = nullptr;
  ov_element_type_e image_type_ = DYNAMIC;
  std::int64_t image_[4] = {};
  std::mutex lock_;
  std::vector<std::pair<std::int64_t, std::shared_ptr<Compiled>>> compiled_;  // the one used last at the end

  void check(ov_status_e status) const { ov_.check(status); }

  void release() {
    compiled_.clear();
    if (model_ != nullptr) ov_.ov_model_free(model_);
    if (core_ != nullptr) ov_.ov_core_free(core_);
  }

  std::string property(const char* name) const {
    char* value = nullptr;
    check(ov_.ov_core_get_property(core_, plugin_.c_str(), name, &value));
    const std::string made = value;
    ov_.ov_free(value);
    return made;
  }

  // The plugin's name for a device: CPU where none is named.
  std::string plugin_of(const char* device) const {
    ov_available_devices_t there = {};
    check(ov_.ov_core_get_available_devices(core_, &there));
    std::set<std::string> names;
    for (std::size_t i = 0; i < there.size; ++i) {
      const std::string name = there.devices[i];
      names.insert({name, name.substr(0, name.find('.'))});
    }
    ov_.ov_available_devices_free(&there);
    if (device == nullptr) return "CPU";
    std::string known;
    for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
    if (names.count(device) == 0)
      fail(WGAP_BACKEND_ERROR, "OpenVINO has no device '%s' here; expected one of: %s", device, known.c_str());
    return device;
  }

  // What the model is compiled with: the file's own types, whatever else the processor could compute in.
  void set_properties(const wgap_network_request& request) {
    const std::string precision = request.precision, hint = request.hint != nullptr ? request.hint : "latency";
    if (hint != "latency" && hint != "throughput")
      fail(WGAP_DATA_ERROR, "hint: expected latency or throughput, got '%s'", hint.c_str());
    able_ = property("OPTIMIZATION_CAPABILITIES");
    if (precision == "bf16" && able_.find("BF16") == std::string::npos)
      fail(WGAP_BACKEND_ERROR,
           "%s: %s (%s) does not compute in bfloat16, and OpenVINO would take float32 in its place; run another "
           "precision "
           "here",
           request.path, plugin_.c_str(), property("FULL_DEVICE_NAME").c_str());
    // Without a hint, a processor that has bfloat16 computes float32 models in it.
    properties_["INFERENCE_PRECISION_HINT"] = precision == "fp16" && plugin_ != "CPU" ? "f16" : "f32";
    properties_["PERFORMANCE_HINT"] = hint == "latency" ? "LATENCY" : "THROUGHPUT";
    if (plugin_ == "CPU")
      properties_["INFERENCE_NUM_THREADS"] = std::to_string(wgap::sdk::threads_for(request));
    else if (request.threads != 0)
      fail(WGAP_DATA_ERROR, "threads are the CPU's, and the device is %s; leave them out", plugin_.c_str());
    if (request.streams != 0) properties_["NUM_STREAMS"] = std::to_string(request.streams);
    if (plugin_ != "CPU" && !cache_.folder().empty())  // OpenVINO knows what its other plugins' models depend on
      properties_["CACHE_DIR"] = cache_.folder();
    for (const auto& [name, value] : properties_)
      check(ov_.ov_core_set_property(core_, plugin_.c_str(), name.c_str(), value.c_str()));
  }

  std::shared_ptr<Compiled> compiled_for(std::int64_t count) {
    const SignalStackKept kept;
    const std::lock_guard<std::mutex> held(lock_);
    const auto found =
        std::find_if(compiled_.begin(), compiled_.end(), [&](const auto& entry) { return entry.first == count; });
    if (found != compiled_.end()) {
      std::rotate(found, found + 1, compiled_.end());
      return compiled_.back().second;
    }
    auto made = std::make_shared<Compiled>(ov_);
    compile(count, made.get());
    if (compiled_.size() == kKept) compiled_.erase(compiled_.begin());
    compiled_.emplace_back(count, made);
    return made;
  }

  void compile(std::int64_t count, Compiled* made) const {
    const std::string path = plugin_ == "CPU" ? cache_.path(made_of_ + ",batch=" + std::to_string(count)) : "";
    if (!path.empty()) made->kept = Cache::read(path);
    if (made->kept.empty() ||
        ov_.ov_core_import_model(core_, made->kept.data(), made->kept.size(), plugin_.c_str(), &made->model) != OK) {
      made->model = nullptr, made->kept.clear();
      const std::int64_t extents[] = {count, image_[1], image_[2], image_[3]};
      ov_partial_shape_t shape = {};
      check(ov_.ov_partial_shape_create_static(4, extents, &shape));
      const ov_status_e status = ov_.ov_model_reshape_single_input(model_, shape);
      ov_.ov_partial_shape_free(&shape);
      check(status);
      check(ov_.ov_core_compile_model(core_, model_, plugin_.c_str(), 0, &made->model));
      if (!path.empty())
        Cache::write(path, [&](const std::string& to) {
          return ov_.ov_compiled_model_export_model(made->model, to.c_str()) == OK;
        });
    }
    char* ran = nullptr;
    check(ov_.ov_compiled_model_get_property(made->model, "INFERENCE_PRECISION_HINT", &ran));
    const std::string computed = ran, &asked = properties_.at("INFERENCE_PRECISION_HINT");
    ov_.ov_free(ran);
    if (computed != asked)
      fail(WGAP_BACKEND_ERROR, "%s: OpenVINO %s computes in %s on %s, not %s", where_.c_str(), ov_.version.c_str(),
           computed.c_str(), plugin_.c_str(), asked.c_str());
  }

  // One input or output of the graph with what the manifest promises.
  void compare(const wgap_tensor& promised, const char* path) {
    const bool is_image = std::strcmp(promised.name, "image") == 0;
    ov_output_const_port_t* port = nullptr;
    std::string got = "no such tensor";
    bool same = false;
    if ((is_image ? ov_.ov_model_const_input_by_name : ov_.ov_model_const_output_by_name)(model_, promised.name,
                                                                                          &port) == OK) {
      ov_element_type_e type = DYNAMIC;
      ov_partial_shape_t shape = {};
      const ov_status_e typed = ov_.ov_port_get_element_type(port, &type),
                        shaped = ov_.ov_port_get_partial_shape(port, &shape);
      ov_.ov_output_const_port_free(port);
      check(typed);
      check(shaped);
      std::vector<std::int64_t> extents;
      for (std::int64_t i = 0; i < shape.rank.max; ++i)
        extents.push_back(shape.dims[i].min == shape.dims[i].max ? shape.dims[i].max : -1);
      ov_.ov_partial_shape_free(&shape);
      got = text("type %d of rank %zu", static_cast<int>(type), extents.size());
      same = type == (promised.type == WGAP_UINT8 ? U8 : F32) &&
             extents.size() == static_cast<std::size_t>(promised.rank) &&
             std::equal(extents.begin(), extents.end(), promised.extents);
      if (is_image) image_type_ = type;
    }
    if (!same)
      fail(WGAP_BUNDLE_ERROR, "%s: the manifest promises %s of rank %d, got %s; export the bundle again", path,
           promised.name, promised.rank, got.c_str());
    if (is_image) std::copy_n(promised.extents, 4, image_);
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) wgap_status wgap_network_open(const wgap_network_request* request,
                                                                                wgap_network* network,
                                                                                wgap_error* error) {
  return opened(request, error, [&] {
    const SignalStackKept kept;
    auto model = std::make_unique<Model>(*request);
    network->version = model->version();
    network->name = "openvino";
    network->run = [](void* context, const std::uint8_t* images, std::int64_t count, std::uint32_t wanted,
                      wgap_outputs* outputs, wgap_error* failed) {
      return guarded(failed, [&] { static_cast<Model*>(context)->run(images, count, wanted, outputs); });
    };
    network->release = [](void*, wgap_outputs* outputs) { Model::release(outputs); };
    network->destroy = [](void* context) { delete static_cast<Model*>(context); };
    network->context = model.release();
  });
}
