// The module of TensorRT against an engine of one's own that computes the same: test_sdk_tensorrt BUNDLE
#include <dlfcn.h>

#include <thread>

#include "fake.h"

namespace {

unsigned long long count_of(const char* name) {
  static void* const cuda = dlopen("libcuda.so.1", RTLD_NOW);
  return reinterpret_cast<unsigned long long (*)()>(dlsym(cuda, name))();
}

// Memory of the emulated device, filled.
class OnDevice {
 public:
  explicit OnDevice(const std::vector<std::uint8_t>& bytes, int gpu = 0) {
    EXPECT(call<int(void**, int)>("cuDevicePrimaryCtxRetain")(&context_, gpu_ = gpu) == 0);
    EXPECT(call<int(void*)>("cuCtxPushCurrent")(context_) == 0);
    EXPECT(call<int(unsigned long long*, std::size_t)>("cuMemAlloc")(&at_, bytes.size()) == 0);
    EXPECT(call<int(unsigned long long, const void*, std::size_t)>("cuMemcpyHtoD")(at_, bytes.data(), bytes.size()) ==
           0);
    EXPECT(call<int(void**, unsigned)>("cuStreamCreate")(&stream, 1) == 0);
  }
  ~OnDevice() {
    call<int(void*)>("cuStreamDestroy")(stream);
    call<int(unsigned long long)>("cuMemFree")(at_);
    call<int(void**)>("cuCtxPopCurrent")(&context_);
    call<int(int)>("cuDevicePrimaryCtxRelease")(gpu_);
  }
  const void* data() const { return reinterpret_cast<const void*>(at_); }
  void* stream = nullptr;

 private:
  void* context_ = nullptr;
  unsigned long long at_ = 0;
  int gpu_ = 0;

  template <class Function>
  static Function* call(const char* name) {
    return reinterpret_cast<Function*>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), name));
  }
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
      const auto expected = localizer.batch(batch, true), got = localizer.device(there.data(), 9, stream, {}, true);
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
  const OnDevice other(all, 1);
  const auto elsewhere = localizer.device(other.data(), 9);
  EXPECT(elsewhere.error().status == WGAP_FEATURE_ERROR);
  EXPECT(elsewhere.error().text == "images are on GPU 1, and this network runs on GPU 0");
}

}  // namespace

// test_sdk_tensorrt BUNDLE RULE MAX_BOXES
int main(int, char** arguments) {
  const char* const bundle = arguments[1];
  wgap::Options options;
  options.rule = arguments[2];
  options.max_boxes = std::atoi(arguments[3]);
  options.top_k = 2, options.batch_size = 7;
  options.network = std::make_shared<FakeNetwork>(Sizes(bundle));
  const auto expected = wgap::Localizer::open(bundle, options);
  EXPECT(expected->device(bundle, 1).error().status == WGAP_DATA_ERROR);
  options.network.reset();
  options.backend = "tensorrt";
  options.slots = 2;
  {
    const auto localizer = wgap::Localizer::open(bundle, options);
    EXPECT(localizer && localizer->backend().rfind("tensorrt ", 0) == 0);
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
  // Nothing is left on the device.
  void* const library = dlopen(std::getenv("WGAP_TENSORRT"), RTLD_NOW);
  EXPECT(library != nullptr);
  EXPECT(count_of("wgap_emulated_graphs") == 0 && count_of("wgap_emulated_owners") == 0);
  EXPECT(count_of("wgap_emulated_bytes") == 0 && count_of("wgap_emulated_calls") > 500);
  EXPECT(count_of("wgap_emulated_launched") > 0);  // graphs, with the kernel in them
  EXPECT(reinterpret_cast<int (*)()>(dlsym(library, "stand_in_alive"))() == 0);
  std::puts("passed");
}
