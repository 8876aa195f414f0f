#include "network.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <vector>

#include "cpus.h"
#include "engine.h"

namespace wgap::sdk {
namespace {

struct Backend {
  const char* name;
  bool on_gpu;   // takes a device and slots, others take threads
  bool engines;  // runs engines of the bundle, others its ONNX files
};
constexpr Backend kBackends[] = {{"onnxruntime", false, false},
                                 {"onnxruntime_cuda", true, false},
                                 {"openvino", false, false},
                                 {"tensorrt", true, true}};

// The module of a backend, loaded: from the folder that the environment names, or from beside this code, never by the
// loader's own path, which may lead to the current folder.
void* module_of(const std::string& backend) {
  const std::string file = "libwgap_" + backend + ".so";
  std::vector<std::string> places;
  if (const char* const folder = std::getenv("WGAP_MODULES"); folder != nullptr && *folder != 0)
    places = {std::string(folder) + "/" + file};
  else
    for (const char* const below : {"/wgap/", "/", "/../lib/wgap/"}) places.push_back(own_folder() + below + file);
  std::string looked;
  for (const std::string& place : places) {
    looked += (looked.empty() ? "" : ", ") + place;
    if (!exists(place)) continue;
    void* const module = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: engines keep threads
    if (module == nullptr) fail(WGAP_BACKEND_ERROR, "%s", dlerror());
    if (dlsym(module, "wgap_network_open") == nullptr)
      fail(WGAP_BACKEND_ERROR, "%s is no module of wgap's: it has no wgap_network_open", place.c_str());
    return module;
  }
  fail(WGAP_MISSING_DEPENDENCY_ERROR,
       "the backend %s needs its module, which is not there (looked for %s); install wgap's component of that name, or "
       "name "
       "its folder in WGAP_MODULES",
       backend.c_str(), looked.c_str());
}

void require_equal_sums(const Bundle& bundle, const File& file, const wgap_rule& rule, const std::string& backend) {
  const Gate* const gate = file.verdict(backend);
  const std::string judged = gate != nullptr ? gate->int8_sums : "";
  if (judged == "saturating" || !int8_sums_saturate()) return;
  fail(WGAP_GATE_ERROR,
       "%s: this processor has no VNNI, so INT8's sums saturate and boxes move; the gate ran on %s. Run %s here, or "
       "pass ungated (--ungated) to run it all the same",
       bundle.path(file).c_str(), judged.empty() ? "a processor that is not recorded" : "one that sums exactly",
       bundle.gate_command("int8", rule, backend).c_str());
}

// What runs engines here: the module's library and the GPU.
Host host_of(void* module, const NetworkOptions& options) {
  auto* const ask = reinterpret_cast<wgap_network_hoster*>(dlsym(module, "wgap_network_host"));
  wgap_network_host_info about = {};
  wgap_error error = WGAP_ERROR_INIT;
  if (ask == nullptr)
    fail(WGAP_BACKEND_ERROR, "the module of %s runs no engines: it has no wgap_network_host", options.backend.c_str());
  if (const wgap_status status = ask(options.library, options.device, &about, &error); status != WGAP_OK)
    throw Failure(status, error.text);
  return {options.backend, about.version, about.compute_capability, this_platform()};
}

}  // namespace

Network::Network(const wgap_network& given) : network_(given) {}

Network::~Network() {
  if (network_.destroy != nullptr) network_.destroy(network_.context);
}

std::string Network::told() const {
  const std::string name = network_.name != nullptr ? network_.name : "network";
  return network_.version != nullptr ? name + " " + network_.version : name;
}

void Network::locate(const wgap_locate_request& request) const {
  wgap_error error = WGAP_ERROR_INIT;
  require(network_.locate(network_.context, &request, &error), &error);
}

void Network::require(wgap_status status, wgap_error* error) const {
  error->text[sizeof error->text - 1] = 0;
  if (status != WGAP_OK)
    fail(status, "%s", error->text[0] != 0 ? error->text : (told() + " failed and did not say why").c_str());
}

Network::Pass::Pass(const Network& network, const std::uint8_t* images, std::int64_t count, std::uint32_t wanted)
    : network_(network.get()) {
  wgap_error error = WGAP_ERROR_INIT;
  network.require(network_.run(network_.context, images, count, wanted, &outputs_, &error), &error);
}

Network::Pass::~Pass() {
  if (network_.release != nullptr) network_.release(network_.context, &outputs_);
}

namespace {

// Backends for each precision on a CPU, the faster one first: the table of the Python package's wgap.runtime.networks.auto.
std::vector<std::string> on_cpu(const std::string& precision) {
  if (precision == "bf16") return {"openvino"};
  if (precision == "int8") return {"openvino", "onnxruntime"};
  return {"onnxruntime", "openvino"};
}

// Whether one of the bundle's engines fits this GPU.
bool has_engine(const Bundle& bundle, const wgap_rule& rule, NetworkOptions options, const std::string& backend) {
  const std::vector<File>& files = bundle.manifest().files;
  if (options.threads != 0 || options.hint != nullptr || options.streams != 0) return false;  // options of the CPU
  if (std::none_of(files.begin(), files.end(), [&](const File& file) {
        return file.engine && file.engine->flavor == backend && file.precision == options.precision;
      }))
    return false;
  options.backend = backend;
  try {
    const Host host = host_of(module_of(backend), options);
    return engine_fits(bundle, engine_file(bundle, host, options.precision, rule), host, rule);
  } catch (const Failure& failure) {  // no module or library, no driver or GPU
    if (failure.status() != WGAP_MISSING_DEPENDENCY_ERROR && failure.text().rfind("no NVIDIA ", 0) != 0) throw;
    return false;
  }
}

// The first backend that can run the model at that precision: an engine on a GPU, else the first on the CPU. One is
// passed over whose library or module is not there, or whose gate has not passed the model; any other error is an error.
Network open_best(const Bundle& bundle, const wgap_rule& rule, const std::vector<float>& classifier,
                  NetworkOptions options) {
  std::vector<std::string> backends = on_cpu(options.precision);
  if (has_engine(bundle, rule, options, "tensorrt")) backends.insert(backends.begin(), "tensorrt");
  for (const std::string& backend : backends) {
    options.backend = backend;
    try {
      return open_network(bundle, rule, classifier, options);
    } catch (const Failure& failure) {
      const bool passed_over = failure.status() == WGAP_MISSING_DEPENDENCY_ERROR || failure.status() == WGAP_GATE_ERROR;
      if (!passed_over || backend == backends.back()) throw;
    }
  }
  fail(WGAP_BACKEND_ERROR, "no backend for %s", options.precision.c_str());  // the last one has returned or thrown
}

}  // namespace

Network open_network(const Bundle& bundle, const wgap_rule& rule, const std::vector<float>& classifier,
                     const NetworkOptions& options) {
  if (options.backend == "auto") return open_best(bundle, rule, classifier, options);
  std::string known = "auto";
  const Backend* chosen = nullptr;
  for (const Backend& backend : kBackends) {
    known += ", " + std::string(backend.name);
    if (options.backend == backend.name) chosen = &backend;
  }
  if (options.backend == "tensorrt_rtx")
    fail(WGAP_BACKEND_ERROR,
         "the backend tensorrt_rtx runs in the Python package alone: `wgap localize ... --backend tensorrt_rtx`; here, "
         "expected one of: %s. A program of your own that loads TensorRT-RTX gets its engine from wgap_bundle_engine",
         known.c_str());
  if (chosen == nullptr)
    fail(WGAP_BACKEND_ERROR, "unknown backend %s; expected one of: %s", in_quotes(options.backend).c_str(),
         known.c_str());
  if (chosen->on_gpu && options.threads != 0)
    fail(WGAP_DATA_ERROR, "the backend %s has no threads; it takes device and slots", options.backend.c_str());
  const bool plugins = options.backend == "openvino";
  if (!chosen->on_gpu && ((options.device != nullptr && !plugins) || options.slots != 0))
    fail(WGAP_DATA_ERROR, "the backend %s has no %s; it takes threads%s", options.backend.c_str(),
         plugins ? "slots" : "device and no slots", plugins ? ", device, hint and streams" : "");
  if (!plugins && (options.hint != nullptr || options.streams != 0))
    fail(WGAP_DATA_ERROR, "the backend %s has no hint and no streams; openvino has them", options.backend.c_str());
  if (options.backend != "onnxruntime_cuda" && options.memory_limit != 0)
    fail(WGAP_DATA_ERROR, "the backend %s has no memory_limit", options.backend.c_str());
  void* const module = module_of(options.backend);
  wgap_network_request request = {};
  request.struct_size = sizeof request;
  std::string path, content, source_path, source;
  request.largest = options.batch_size;
  if (chosen->engines) {
    const Host host = host_of(module, options);
    const File& file = engine_file(bundle, host, options.precision, rule);
    path = bundle.path(file);
    content = preflight(bundle, file, host, 0, options.ungated, rule);
    if (file.engine->strip_weights) {  // the preflight has compared its model with the one it was built from
      const File& model = bundle.model_file(options.precision, true, rule);
      source_path = bundle.path(model);
      source = bundle.content(model);
      request.source_path = source_path.c_str();
      request.source = source.data();
      request.source_bytes = source.size();
    }
    request.largest = static_cast<std::int32_t>(std::min<std::int64_t>(file.engine->most, 1 << 20));
    request.version_compatible = file.engine->version_compatible ? 1 : 0;
  } else {
    const File& file = bundle.model_file(options.precision, options.ungated, rule, options.backend);
    path = bundle.path(file);
    if (plugins && options.precision != "fp32" && options.device != nullptr && std::string(options.device) != "CPU" &&
        !options.ungated)
      fail(WGAP_GATE_ERROR,
           "%s: its gate ran on the CPU, which says nothing of %s; run fp32 there, or pass ungated (--ungated) to run "
           "it "
           "all the same",
           path.c_str(), options.device);
    if (options.precision == "bf16" && options.backend == "onnxruntime")
      fail(WGAP_BACKEND_ERROR,
           "%s: ONNX Runtime's CPU provider has no bfloat16 convolution; run another precision here", path.c_str());
    if (options.precision == "int8" && !chosen->on_gpu && !options.ungated)
      require_equal_sums(bundle, file, rule, options.backend);
    content = bundle.content(file);
  }

  std::vector<wgap_tensor> tensors;
  for (const auto* const group : {&bundle.manifest().inputs, &bundle.manifest().outputs})
    for (const Tensor& tensor : *group) {
      wgap_tensor made{sizeof(wgap_tensor),
                       tensor.dtype == "uint8" ? WGAP_UINT8 : WGAP_FLOAT32,
                       tensor.name.c_str(),
                       static_cast<std::int32_t>(tensor.shape.size()),
                       0,
                       {}};
      if (tensor.shape.size() > std::size(made.extents))  // one that the runtime does not read
        fail(WGAP_BACKEND_ERROR, "%s: %s has %zu extents; at most 4 are known here", path.c_str(), made.name,
             tensor.shape.size());
      std::copy(tensor.shape.begin(), tensor.shape.end(), made.extents);
      tensors.push_back(made);
    }
  request.tensor_count = static_cast<std::int32_t>(tensors.size());
  request.path = path.c_str();
  request.content = content.data();
  request.content_bytes = content.size();
  request.tensors = tensors.data();
  request.precision = options.precision.c_str();
  request.library = options.library;
  request.device = options.device;
  request.threads = options.threads;
  request.slots = options.slots;
  request.memory_limit = options.memory_limit;
  request.hint = options.hint;
  request.streams = options.streams;
  request.classes = static_cast<std::int32_t>(bundle.manifest().classes.size());
  request.channels = static_cast<std::int32_t>(bundle.manifest().output("features").shape[1]);
  request.weight = classifier.data();
  wgap_network network = WGAP_NETWORK_INIT;
  wgap_error error = WGAP_ERROR_INIT;
  auto* const open = reinterpret_cast<wgap_network_opener*>(dlsym(module, "wgap_network_open"));
  if (const wgap_status status = open(&request, &network, &error); status != WGAP_OK) throw Failure(status, error.text);
  return Network(network);
}

}  // namespace wgap::sdk
