// The module of OpenVINO on the CPU. The library is found at run time, of the release whose headers this was built with:
// its numbers for types change from one to the next.
#include <openvino/c/openvino.h>
#include <openvino/core/version.hpp>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../outputs.h"
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
  each(ov_compiled_model_create_infer_request) \
  each(ov_compiled_model_free) \
  each(ov_core_compile_model) \
  each(ov_core_create) \
  each(ov_core_free) \
  each(ov_core_read_model_from_memory_buffer) \
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
  std::string version;

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
    version = told.buildNumber;
    version = version.substr(0, version.find('-'));
    ov_version_free(&told);
    const std::string expected = text("%d.%d.", OPENVINO_VERSION_MAJOR, OPENVINO_VERSION_MINOR);
    if ((version + ".").rfind(expected, 0) != 0)
      fail(WGAP_BACKEND_ERROR, "%s is OpenVINO %s; this module was built for %d.%d, and knows no other",
           file.path.c_str(), version.c_str(), OPENVINO_VERSION_MAJOR, OPENVINO_VERSION_MINOR);
  }
  void check(ov_status_e status) const {
    if (status == OK) return;
    const char* const said = ov_get_last_err_msg();
    fail(WGAP_BACKEND_ERROR, "OpenVINO %s: %s", version.c_str(), said != nullptr && *said != 0 ? said : "failed");
  }
};

constexpr std::size_t kBatches = 4;  // sizes of batches for which a compiled model is kept; the oldest goes

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

class Model {
 public:
  explicit Model(const wgap_network_request& request) : ov_(library_of(request.library)) {
    const std::string precision = request.precision;
    // Without a hint, a processor that has bfloat16 computes float32 models in it.
    hint_ = precision == "bf16" ? "bf16" : "f32";
    threads_ = std::to_string(wgap::sdk::threads_for(request));
    check(ov_.ov_core_create(&core_));
    const ov_status_e status = ov_.ov_core_read_model_from_memory_buffer(
        core_, static_cast<const char*>(request.content), request.content_bytes, nullptr, &model_);
    if (status != OK) {
      const std::string said = ov_.ov_get_last_err_msg();
      release();
      fail(WGAP_BACKEND_ERROR,
           "OpenVINO %s refuses %s: %s. If the file is damaged, copy the bundle again or export it again",
           ov_.version.c_str(), request.path, said.substr(0, 600).c_str());
    }
    try {
      for (std::int32_t i = 0; i < request.tensor_count; ++i) compare(request.tensors[i], request.path);
      const Lease usual(*this, 1);  // what can fail does so now
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
  // A model compiled for batches of one size: those are fastest.
  struct Compiled {
    const Library& ov;
    ov_compiled_model_t* model = nullptr;
    std::vector<ov_infer_request_t*> idle = {};
    std::uint64_t used = 0;

    explicit Compiled(const Library& of) : ov(of) {}
    ~Compiled() {
      for (ov_infer_request_t* const request : idle) ov.ov_infer_request_free(request);
      if (model != nullptr) ov.ov_compiled_model_free(model);
    }
    Compiled(const Compiled&) = delete;
    Compiled& operator=(const Compiled&) = delete;
  };
  // An infer request for one pass. It keeps its model, which others may have pushed out meanwhile.
  struct Lease {
    Model& of;
    const std::shared_ptr<Compiled> compiled;
    ov_infer_request_t* const request;

    Lease(Model& model, std::int64_t images)
        : of(model), compiled(model.compiled_for(images)), request(model.request_of(compiled.get())) {}
    ~Lease() {
      const std::lock_guard<std::mutex> held(of.lock_);
      compiled->idle.push_back(request);
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
  };

  const Library& ov_;
  std::string hint_, threads_;
  ov_core_t* core_ = nullptr;
  ov_model_t* model_ = nullptr;
  ov_element_type_e image_type_ = DYNAMIC;
  std::int64_t image_[4] = {};
  std::mutex lock_;
  std::map<std::int64_t, std::shared_ptr<Compiled>> compiled_;
  std::uint64_t uses_ = 0;

  void check(ov_status_e status) const { ov_.check(status); }

  void release() {
    compiled_.clear();
    if (model_ != nullptr) ov_.ov_model_free(model_);
    if (core_ != nullptr) ov_.ov_core_free(core_);
  }

  std::shared_ptr<Compiled> compiled_for(std::int64_t count) {
    const std::lock_guard<std::mutex> held(lock_);
    if (compiled_.count(count) == 0) {
      auto made = std::make_shared<Compiled>(ov_);
      const std::int64_t extents[] = {count, image_[1], image_[2], image_[3]};
      ov_partial_shape_t shape = {};
      check(ov_.ov_partial_shape_create_static(4, extents, &shape));
      const ov_status_e status = ov_.ov_model_reshape_single_input(model_, shape);
      ov_.ov_partial_shape_free(&shape);
      check(status);
      check(ov_.ov_core_compile_model(core_, model_, "CPU", 6, &made->model, "INFERENCE_PRECISION_HINT", hint_.c_str(),
                                      "INFERENCE_NUM_THREADS", threads_.c_str(), "PERFORMANCE_HINT", "LATENCY"));
      if (compiled_.size() >= kBatches)
        compiled_.erase(std::min_element(compiled_.begin(), compiled_.end(),
                                         [](const auto& a, const auto& b) { return a.second->used < b.second->used; }));
      compiled_[count] = std::move(made);
    }
    compiled_[count]->used = ++uses_;
    return compiled_[count];
  }
  ov_infer_request_t* request_of(Compiled* compiled) {
    const std::lock_guard<std::mutex> held(lock_);
    ov_infer_request_t* request = nullptr;
    if (compiled->idle.empty()) {
      check(ov_.ov_compiled_model_create_infer_request(compiled->model, &request));
    } else {
      request = compiled->idle.back();
      compiled->idle.pop_back();
    }
    return request;
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
