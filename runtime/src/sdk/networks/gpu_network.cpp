#include "gpu_network.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "../outputs.h"
#include "library.h"

namespace wgap::sdk {
namespace {

constexpr int kSlots = 4;               // calls on the GPU at the same time, by default
constexpr std::size_t kExecutions = 4;  // sizes of batches for which a slot keeps the network; the oldest goes
constexpr std::size_t kWorks = 8;       // sizes and questions for which it keeps a launch and a graph; likewise
constexpr int kMostFailures = 3;        // captures that may fail before a network goes on without graphs

// CU_POINTER_ATTRIBUTE_MEMORY_TYPE and _DEVICE_ORDINAL; CU_MEMORYTYPE_HOST
constexpr int kMemoryType = 2, kDeviceOrdinal = 9;
constexpr unsigned kHostMemory = 1;

// Of what is kept by key, the one that was used least lately.
template <class Map>
auto oldest(const Map& map) {
  return std::min_element(map.begin(), map.end(),
                          [](const auto& a, const auto& b) { return a.second.used < b.second.used; });
}

}  // namespace

class GpuNetwork::Slot {
 public:
  explicit Slot(GpuNetwork& owner) : owner_(owner), driver_(owner.driver_), stream_(driver_) {
    for (const Tensor& tensor : owner.tensors_)
      at_[tensor.name] = device_.emplace_back(driver_, CudaMemory::kDevice, room(tensor)).address();
    staging_.emplace(driver_, CudaMemory::kPinned, room(owner.tensors_.front()));
  }

  void run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted, wgap_outputs* outputs) {
    const auto pictures = static_cast<std::size_t>(count);
    Execution& network = execution(count, wanted);
    Work& work = work_for({pictures, wanted});
    stage(images, pictures);
    perform(&work, stream_.handle, [&](CudaHandle stream) {
      copy_in(pictures, stream);
      network.enqueue(stream);
      for (const Tensor& tensor : owner_.tensors_)
        if ((tensor.bit & wanted) != 0)
          driver_.check(driver_.cuMemcpyDtoHAsync(host(tensor), at(tensor.name), tensor.bytes * pictures, stream),
                        "cuMemcpyDtoHAsync");
    });
    for (const Tensor& tensor : owner_.tensors_)
      for (const OutputPlace& output : places_of(outputs))
        if ((output.bit & tensor.bit & wanted) != 0)
          *output.data = static_cast<const float*>(host(tensor)), *output.bytes = tensor.bytes * pictures;
  }

  void locate(const wgap_locate_request& asked) {
    const auto pictures = static_cast<std::size_t>(asked.count);
    const bool staged = asked.on_device == 0;
    const wgap_rule& rule = *asked.rule;
    const int flags = staged + 2 * (asked.heatmaps != nullptr) + 4 * (asked.outputs != nullptr);
    Key key{pictures, 0};
    for (const int part : {asked.class_ids != nullptr ? 0 : asked.top_k, asked.max_boxes, flags, rule.kind, rule.map})
      key.push_back(static_cast<std::uint64_t>(part));
    std::memcpy(&key.emplace_back(), &rule.parameters[0], sizeof rule.parameters[0]);
    const std::uint32_t wanted = read_by(rule);
    Execution* const network = asked.outputs == nullptr ? &execution(asked.count, wanted) : nullptr;
    Work& work = work_for(key);
    if (!work.launch) {
      const CudaKernel::Inputs inputs{at("logits"), at("features"), at("foreground"), at("image")};
      work.launch = std::make_unique<CudaKernel::Launch>(*owner_.kernel_, owner_.shape_for(rule), asked, inputs);
    }
    work.launch->choose(asked.class_ids);
    const CudaHandle stream = staged ? stream_.handle : asked.stream;
    if (staged)
      stage(asked.images, pictures);
    else
      take_from_device(asked.images, pictures, stream);
    if (network == nullptr) upload(*asked.outputs, pictures, stream);
    perform(&work, stream, [&](CudaHandle on) {
      if (staged) copy_in(pictures, on);
      if (network != nullptr) network->enqueue(on);
      work.launch->enqueue(on);
    });
    work.launch->read(asked);
  }

  void wait(const wgap_locate_request* asked) {  // whatever failed: nothing may still run in buffers that others take
    driver_.cuStreamSynchronize(asked != nullptr && asked->on_device != 0 ? asked->stream : stream_.handle);
  }

 private:
  struct Stream {
    const CudaDriver& driver;
    CudaHandle handle = nullptr;
    explicit Stream(const CudaDriver& of) : driver(of) {
      driver.check(driver.cuStreamCreate(&handle, 1), "cuStreamCreate");  // CU_STREAM_NON_BLOCKING
    }
    ~Stream() { driver.cuStreamDestroy(handle); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
  };
  struct Graph {
    const CudaDriver* driver = nullptr;
    CudaHandle handle = nullptr;
    Graph() = default;
    ~Graph() { reset(); }
    void reset() {
      if (handle != nullptr) driver->cuGraphExecDestroy(handle);
      handle = nullptr;
    }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
  };
  struct Work {  // one size of batch and one question
    std::unique_ptr<CudaKernel::Launch> launch;
    Graph graph;
    bool has_run = false;  // the library has chosen what to run
    std::uint64_t used = 0;
  };
  struct Kept {
    std::unique_ptr<Execution> execution;
    std::uint64_t used = 0;
  };

  GpuNetwork& owner_;
  const CudaDriver& driver_;
  Stream stream_;
  std::vector<CudaMemory> device_;
  std::map<std::string, CudaPointer> at_;
  std::optional<CudaMemory> staging_;        // pinned, which a copy engine and a graph can read
  std::map<std::string, CudaMemory> hosts_;  // pinned, of outputs that were asked for
  std::map<std::pair<std::int64_t, std::uint32_t>, Kept> executions_;
  std::map<Key, Work> works_;
  std::uint64_t uses_ = 0;

  CudaPointer at(const std::string& name) const {  // 0 where the network was built without it
    const auto found = at_.find(name);
    return found != at_.end() ? found->second : 0;
  }
  std::size_t room(const Tensor& tensor) const { return tensor.bytes * static_cast<std::size_t>(owner_.largest_); }
  void* host(const Tensor& tensor) {
    const auto found = hosts_.find(tensor.name);
    if (found != hosts_.end()) return found->second.as<void>();
    return hosts_.emplace(tensor.name, CudaMemory(driver_, CudaMemory::kPinned, room(tensor))).first->second.as<void>();
  }

  void stage(const std::uint8_t* images, std::size_t pictures) {
    std::memcpy(staging_->as<void>(), images, owner_.tensors_.front().bytes * pictures);
  }
  void copy_in(std::size_t pictures, CudaHandle stream) {
    driver_.check(
        driver_.cuMemcpyHtoDAsync(at("image"), staging_->as<void>(), owner_.tensors_.front().bytes * pictures, stream),
        "cuMemcpyHtoDAsync");
  }
  // Into the slot's own buffer, whose address graphs hold.
  void take_from_device(const std::uint8_t* images, std::size_t pictures, CudaHandle stream) {
    const auto from = reinterpret_cast<CudaPointer>(images);
    unsigned kind = 0;
    int ordinal = -1;
    if (driver_.cuPointerGetAttribute(&kind, kMemoryType, from) != 0 || kind == kHostMemory)
      fail(WGAP_FEATURE_ERROR, "images: expected a pointer to a GPU's memory, got %p, which is none",
           static_cast<const void*>(images));
    driver_.check(driver_.cuPointerGetAttribute(&ordinal, kDeviceOrdinal, from), "cuPointerGetAttribute");
    if (ordinal != owner_.ordinal_)
      fail(WGAP_FEATURE_ERROR, "images are on GPU %d, and this network runs on GPU %d", ordinal, owner_.ordinal_);
    driver_.check(driver_.cuMemcpyDtoDAsync(at("image"), from, owner_.tensors_.front().bytes * pictures, stream),
                  "cuMemcpyDtoDAsync");
  }
  // Outputs that the caller has: through pinned memory to where the network would have left them.
  void upload(wgap_outputs outputs, std::size_t pictures, CudaHandle stream) {
    for (const Tensor& tensor : owner_.tensors_)
      for (const OutputPlace& output : places_of(&outputs)) {
        if (output.bit != tensor.bit || *output.data == nullptr) continue;
        const std::size_t bytes = tensor.bytes * pictures;
        if (*output.bytes < bytes)
          fail(WGAP_FEATURE_ERROR, "%s: expected at least %zu bytes, got %llu", output.name, bytes,
               static_cast<unsigned long long>(*output.bytes));
        std::memcpy(host(tensor), *output.data, bytes);
        driver_.check(driver_.cuMemcpyHtoDAsync(at(tensor.name), host(tensor), bytes, stream), "cuMemcpyHtoDAsync");
      }
  }

  Work& work_for(const Key& key) {
    if (works_.count(key) == 0 && works_.size() >= kWorks) works_.erase(oldest(works_));
    Work& work = works_[key];
    work.used = ++uses_;
    return work;
  }
  Execution& execution(std::int64_t count, std::uint32_t wanted) {
    const std::pair key(count, wanted);
    auto found = executions_.find(key);
    if (found == executions_.end()) {
      auto made = owner_.execution(count, wanted, at_);
      if (executions_.size() >= kExecutions) {
        const auto goes = oldest(executions_);
        for (auto& [question, work] : works_)  // graphs stand on the state of what they captured
          if (question[0] == static_cast<std::uint64_t>(goes->first.first)) work.graph.reset(), work.has_run = false;
        executions_.erase(goes);
      }
      found = executions_.emplace(key, Kept{std::move(made), 0}).first;
    }
    found->second.used = ++uses_;
    return *found->second.execution;
  }

  // Queues the work, on its second use as a graph, and waits for it.
  void perform(Work* work, CudaHandle stream, const std::function<void(CudaHandle)>& enqueue) {
    if (work->graph.handle == nullptr && work->has_run && owner_.graphs_) capture(work, enqueue);
    if (work->graph.handle != nullptr)
      driver_.check(driver_.cuGraphLaunch(work->graph.handle, stream), "cuGraphLaunch");
    else
      enqueue(stream);
    driver_.check(driver_.cuStreamSynchronize(stream), "cuStreamSynchronize");
    work->has_run = true;
  }

  // Copies, network and kernel as one launch. Where that fails the network goes on without.
  void capture(Work* work, const std::function<void(CudaHandle)>& enqueue) {
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> held(one_at_a_time);
    CudaHandle graph = nullptr;
    bool whole = driver_.cuStreamBeginCapture(stream_.handle, 1) == 0;  // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    if (whole) {
      try {
        enqueue(stream_.handle);
      } catch (...) {
        whole = false;
      }
      whole = driver_.cuStreamEndCapture(stream_.handle, &graph) == 0 && whole;  // it must be ended whatever happened
    }
    work->graph.driver = &driver_;
    whole = whole && graph != nullptr && driver_.cuGraphInstantiate(&work->graph.handle, graph, 0) == 0;
    if (graph != nullptr) driver_.cuGraphDestroy(graph);
    if (!whole && ++owner_.failures_ >= kMostFailures) owner_.graphs_ = false;
  }
};

GpuNetwork::GpuNetwork(const wgap_network_request& request, const char* title, bool graphs)
    : driver_(CudaDriver::get()),
      ordinal_(driver_.gpu(request.device).ordinal),
      context_(driver_, ordinal_),
      title_(title),
      largest_(request.largest),
      most_slots_(request.slots > 0 ? request.slots : kSlots),
      graphs_(graphs) {
  const CudaContext::Use use(context_);
  kernel_ = std::make_unique<CudaKernel>(driver_, ordinal_, request);
}

void GpuNetwork::close() {
  slots_.clear();
  kernel_.reset();
}

void GpuNetwork::abandon() {
  for (std::unique_ptr<Slot>& slot : slots_) static_cast<void>(slot.release());
  static_cast<void>(kernel_.release());
}

GpuNetwork::~GpuNetwork() {
  if (!in_context([this] { close(); })) abandon();
}

void GpuNetwork::add(const wgap_tensor& tensor) {
  const bool is_image = tensor.type == WGAP_UINT8;
  Tensor made{tensor.name, is_image, 0, is_image ? sizeof(std::uint8_t) : sizeof(float),
              std::vector<std::int64_t>(tensor.extents, tensor.extents + tensor.rank)};
  for (std::int32_t i = 1; i < tensor.rank; ++i) made.bytes *= static_cast<std::size_t>(tensor.extents[i]);
  wgap_outputs none = WGAP_OUTPUTS_INIT;
  for (const OutputPlace& output : places_of(&none))
    if (made.name == output.name) made.bit = output.bit;
  tensors_.insert(is_image ? tensors_.begin() : tensors_.end(), std::move(made));
}

void GpuNetwork::require(std::int64_t count) const {
  if (count < 1 || count > largest_)
    fail(WGAP_BACKEND_ERROR, "%s: expected a batch of 1 to %lld, got %lld", title_.c_str(),
         static_cast<long long>(largest_), static_cast<long long>(count));
}

void GpuNetwork::run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted, wgap_outputs* outputs) {
  require(count);
  Slot* const slot = take();
  try {
    const CudaContext::Use use(context_);
    try {
      slot->run(images, count, wanted, outputs);
    } catch (...) {
      slot->wait(nullptr);
      throw;
    }
  } catch (...) {
    give_back(slot);
    throw;
  }
  outputs->lease = slot;
}

void GpuNetwork::release(wgap_outputs* outputs) {
  if (outputs->lease != nullptr) give_back(static_cast<Slot*>(outputs->lease));
  outputs->lease = nullptr;
}

void GpuNetwork::locate(const wgap_locate_request& request) {
  require(request.count);
  Slot* const slot = take();
  try {
    const CudaContext::Use use(context_);
    try {
      slot->locate(request);
    } catch (...) {
      slot->wait(&request);
      throw;
    }
  } catch (...) {
    give_back(slot);
    throw;
  }
  give_back(slot);
}

void GpuNetwork::fill(wgap_network* network, const char* name, const char* version, std::unique_ptr<GpuNetwork> made) {
  network->name = name;
  network->version = version;
  network->largest = static_cast<std::int32_t>(made->largest_);
  network->run = [](void* context, const std::uint8_t* images, std::int64_t count, std::uint32_t wanted,
                    wgap_outputs* outputs, wgap_error* failed) {
    return guarded(failed, [&] { static_cast<GpuNetwork*>(context)->run(images, count, wanted, outputs); });
  };
  network->release = [](void* context, wgap_outputs* outputs) { static_cast<GpuNetwork*>(context)->release(outputs); };
  network->locate = [](void* context, const wgap_locate_request* request, wgap_error* failed) {
    return guarded(failed, [&] { static_cast<GpuNetwork*>(context)->locate(*request); });
  };
  network->destroy = [](void* context) { delete static_cast<GpuNetwork*>(context); };
  network->context = made.release();
}

GpuNetwork::Slot* GpuNetwork::take() {
  std::unique_lock<std::mutex> held(lock_);
  free_.wait(held, [&] { return !idle_.empty() || made_ < most_slots_; });
  if (!idle_.empty()) {
    Slot* const slot = idle_.back();
    idle_.pop_back();
    return slot;
  }
  ++made_;
  held.unlock();
  try {
    const CudaContext::Use use(context_);
    auto slot = std::make_unique<Slot>(*this);
    held.lock();
    slots_.push_back(std::move(slot));
    return slots_.back().get();
  } catch (...) {
    if (!held.owns_lock()) held.lock();
    --made_;
    free_.notify_one();
    throw;
  }
}

void GpuNetwork::give_back(Slot* slot) {
  const std::lock_guard<std::mutex> held(lock_);
  idle_.push_back(slot);
  free_.notify_one();
}

// What the kernel reads under that rule.
Shape GpuNetwork::shape_for(const wgap_rule& rule) const {
  const auto extent = [this](const char* name, std::size_t axis) {
    const auto same = [&](const Tensor& tensor) { return tensor.name == name; };
    const auto found = std::find_if(tensors_.begin(), tensors_.end(), same);
    if (found == tensors_.end())
      fail(WGAP_BUNDLE_ERROR, "%s: the rule reads %s, which this network was built without", title_.c_str(), name);
    return static_cast<int>(found->extents[axis]);
  };
  Shape shape{0, 0, 0, extent("image", 1), extent("image", 2), extent("logits", 1)};
  if (rule.map != WGAP_MAP_NONE)
    shape.channels = extent("features", 1), shape.height = extent("features", 2), shape.width = extent("features", 3);
  if (on_scores(rule)) shape.score_height = extent("foreground", 2), shape.score_width = extent("foreground", 3);
  shape.colour = rule.kind == WGAP_RULE_FOREGROUND_COLOUR;
  return shape;
}

}  // namespace wgap::sdk
