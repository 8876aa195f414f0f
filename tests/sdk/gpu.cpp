// A module of a GPU, on the emulated driver, against the same network with the kernel on the CPU: TensorRT's stand-in
// against an engine of one's own that computes the same, ONNX Runtime's two providers against one another.
#include <dlfcn.h>

#include <thread>

#include "cuda_driver.h"
#include "fake.h"

namespace {

unsigned long long count_of(const char* name) {
  static void* const cuda = dlopen("libcuda.so.1", RTLD_NOW);
  return reinterpret_cast<unsigned long long (*)()>(dlsym(cuda, name))();
}
bool emulated() { return dlsym(dlopen("libcuda.so.1", RTLD_NOW), "wgap_emulated_calls") != nullptr; }

using wgap::sdk::CudaDriver;

// Memory of a GPU, filled, and a stream.
class OnDevice {
 public:
  explicit OnDevice(const std::vector<std::uint8_t>& bytes, int gpu = 0)
      : context_(cuda_, gpu), use_(context_), memory_(cuda_, wgap::sdk::CudaMemory::kDevice, bytes.size()) {
    EXPECT(cuda_.cuMemcpyHtoD(memory_.address(), bytes.data(), bytes.size()) == 0);
    EXPECT(cuda_.cuStreamSynchronize(reinterpret_cast<void*>(1)) == 0);
    EXPECT(cuda_.cuStreamCreate(&stream, 1) == 0);
  }
  ~OnDevice() { cuda_.cuStreamDestroy(stream); }
  const void* data() const { return memory_.as<void>(); }
  void* stream = nullptr;

 private:
  const CudaDriver& cuda_ = CudaDriver::get();
  const wgap::sdk::CudaContext context_;
  const wgap::sdk::CudaContext::Use use_;
  const wgap::sdk::CudaMemory memory_;
};

// Pictures that lie on the device give what the same pixels give from the host, on the caller's stream and on the default.
void pictures_on_the_device(const char* bundle, const wgap::Localizer& localizer) {
  wgap_bundle_info info = *wgap::describe(bundle);
  const int height = info.input_height, width = info.input_width;
  std::vector<std::uint8_t> all;
  std::vector<wgap::Picture> batch, chosen;
  std::vector<std::int64_t> ids;
  for (unsigned n = 0; n < 9; ++n) {
    const auto one = pixels(100 + n, height, width);
    all.insert(all.end(), one.begin(), one.end());
  }
  for (int n = 0; n < 9; ++n) {
    batch.emplace_back(wgap::Pixels{&all[static_cast<std::size_t>(n * height * width) * 3], height, width, 0});
    ids.push_back(n % info.classes);
    chosen.push_back(batch.back());
    chosen.back().of_class(n % info.classes);
  }
  const OnDevice there(all);
  for (int round = 0; round < 4; ++round)
    for (void* const stream : {there.stream, static_cast<void*>(nullptr)}) {
      const auto expected = localizer.batch(batch, wgap::with_heatmaps),
                 got = localizer.device(there.data(), 9, stream, {}, wgap::with_heatmaps);
      EXPECT(got && got->size() == 9);
      for (std::size_t n = 0; n < 9; ++n) {
        EXPECT((*got)[n]->json == (*expected)[n]->json);
        EXPECT((*got)[n]->best().heatmap == (*expected)[n]->best().heatmap);
      }
      const auto a = localizer.batch(chosen), b = localizer.device(there.data(), 9, stream, ids);
      for (std::size_t n = 0; n < 9; ++n)
        EXPECT((*a)[n]->json == (*b)[n]->json && (*b)[n]->found.size() == 1 && (*b)[n]->best().class_id == ids[n]);
    }
  EXPECT(localizer.device(nullptr, 0)->empty());
  EXPECT(localizer.device(all.data(), 9).error().text.find("expected a pointer to a GPU's memory") !=
         std::string::npos);
  EXPECT(localizer.device(there.data(), 9, nullptr, {1}).error().status == WGAP_INVALID_ARGUMENT);
  ids[3] = info.classes;
  EXPECT(localizer.device(there.data(), 9, nullptr, ids).error().status == WGAP_DATA_ERROR);
  EXPECT(localizer.device(there.data(), -1).error().status == WGAP_INVALID_ARGUMENT);
  int gpus = 0;
  EXPECT(CudaDriver::get().cuDeviceGetCount(&gpus) == 0);
  if (gpus < 2) return;
  const OnDevice other(all, 1);
  const auto elsewhere = localizer.device(other.data(), 9);
  EXPECT(elsewhere.error().status == WGAP_FEATURE_ERROR);
  EXPECT(elsewhere.error().text == "images are on GPU 1, and this network runs on GPU 0");
}

}  // namespace

// test_sdk_gpu BUNDLE RULE MAX_BOXES BACKEND
int main(int, char** arguments) {
  const char* const bundle = arguments[1];
  wgap::Options options;
  options.rule = arguments[2];
  options.max_boxes = std::atoi(arguments[3]);
  options.top_k = 2, options.batch_size = 7;
  const std::string backend = arguments[4];
  if (backend == "tensorrt") options.network = std::make_shared<FakeNetwork>(Sizes(bundle));
  const auto expected = wgap::Localizer::open(bundle, options);
  EXPECT(expected->device(bundle, 1).error().status == WGAP_DATA_ERROR);
  options.network.reset();
  options.backend = backend;
  options.slots = 2;
  {
    const auto localizer = wgap::Localizer::open(bundle, options);
    EXPECT(localizer && localizer->backend().rfind(backend + " ", 0) == 0);
    std::vector<std::vector<std::uint8_t>> rgb;
    for (unsigned n = 0; n < 23; ++n) rgb.push_back(pixels(n, 40 + static_cast<int>(n), 50));
    const auto batch = [&](std::size_t count) {
      std::vector<wgap::Picture> made;
      for (std::size_t n = 0; n < count; ++n)
        made.emplace_back(wgap::Pixels{rgb[n].data(), 40 + static_cast<int>(n), 50, 0});
      return made;
    };
    // Sizes that the engine takes in parts, each twice and more: run, captured, launched as a graph; more sizes than a
    // slot keeps.
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t)
      threads.emplace_back([&, t] {
        for (int round = 0; round < 12; ++round) {
          const auto count = static_cast<std::size_t>(1 + (round * 5 + t) % 23);
          const auto a = expected->batch(batch(count)), b = localizer->batch(batch(count));
          EXPECT(a && b && a->size() == count && b->size() == count);
          for (std::size_t n = 0; n < count; ++n) EXPECT((*a)[n]->json == (*b)[n]->json);
        }
      });
    for (std::thread& thread : threads) thread.join();
    pictures_on_the_device(bundle, *localizer);
    char* report = nullptr;
    wgap_localizer_selftest(localizer->handle(), &report, nullptr);
    EXPECT(report != nullptr);
    std::puts(report);  // of its kernel: the network is another than the bundle's
    wgap_free(report);
  }
  {  // one slot is enough for it
    options.slots = 1;
    const auto localizer = wgap::Localizer::open(bundle, options);
    char* report = nullptr;
    wgap_localizer_selftest(localizer->handle(), &report, nullptr);
    EXPECT(report != nullptr);
    wgap_free(report);
  }
  // Nothing is left on the device, and batches that came again were graphs, with the kernel in them.
  if (emulated()) {
    EXPECT(count_of("wgap_emulated_graphs") == 0 && count_of("wgap_emulated_owners") == 0);
    EXPECT(count_of("wgap_emulated_pinned") == 0 && count_of("wgap_emulated_calls") > 500);
    EXPECT((count_of("wgap_emulated_launched") > 0) == (backend == "tensorrt"));
  }
  if (backend == "tensorrt") {
    void* const library = dlopen(std::getenv("WGAP_TENSORRT"), RTLD_NOW);
    EXPECT(library != nullptr && reinterpret_cast<int (*)()>(dlsym(library, "stand_in_alive"))() == 0);
  }
  std::puts("passed");
}
