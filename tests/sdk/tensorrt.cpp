// The module of TensorRT against an engine of one's own that computes the same: test_sdk_tensorrt BUNDLE
#include <dlfcn.h>

#include <thread>

#include "fake.h"

int main(int, char** arguments) {
  const char* const bundle = arguments[1];
  wgap::Options options;
  options.top_k = 2, options.batch_size = 7;
  options.network = std::make_shared<FakeNetwork>(Sizes(bundle));
  const auto expected = wgap::Localizer::open(bundle, options);
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
    char* report = nullptr;
    wgap_localizer_selftest(localizer->handle(), &report, nullptr);  // another network: what it says is no matter
    EXPECT(report != nullptr);
    wgap_free(report);
  }
  // Nothing is left on the device.
  void* const cuda = dlopen("libcuda.so.1", RTLD_NOW);
  void* const library = dlopen(std::getenv("WGAP_TENSORRT"), RTLD_NOW);
  EXPECT(cuda != nullptr && library != nullptr);
  EXPECT(reinterpret_cast<unsigned long long (*)()>(dlsym(cuda, "wgap_emulated_graphs"))() == 0);
  EXPECT(reinterpret_cast<unsigned long long (*)()>(dlsym(cuda, "wgap_emulated_owners"))() == 0);
  EXPECT(reinterpret_cast<unsigned long long (*)()>(dlsym(cuda, "wgap_emulated_calls"))() > 500);
  EXPECT(reinterpret_cast<int (*)()>(dlsym(library, "stand_in_alive"))() == 0);
  std::puts("passed");
}
