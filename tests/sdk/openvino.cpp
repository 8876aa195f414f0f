// What OpenVINO's module keeps compiled, and that threads which push out each other's keep their boxes:
// test_sdk_openvino BUNDLE COUNTED
#include <dlfcn.h>

#include <thread>

#include "fake.h"

int main(int, char** arguments) {
  constexpr int kSizes = 9, kThreads = 4;
  void* const library = dlopen(arguments[2], RTLD_NOW | RTLD_LOCAL);
  EXPECT(library != nullptr);
  const auto made = reinterpret_cast<int (*)()>(dlsym(library, "counted_made"));
  const auto alive = reinterpret_cast<int (*)()>(dlsym(library, "counted_alive"));
  wgap::Options options;
  options.backend = "openvino", options.library = arguments[2];
  options.batch_size = kSizes, options.threads = 1;
  {
    const auto localizer = wgap::Localizer::open(arguments[1], options);
    EXPECT(localizer && made() == 1);  // for one picture
    std::vector<std::vector<std::uint8_t>> rgb;
    for (unsigned n = 0; n < kSizes; ++n) rgb.push_back(pixels(n, 40, 50 + static_cast<int>(n)));
    const auto lines = [&](int count) {
      std::vector<wgap::Picture> pictures;
      for (int n = 0; n < count; ++n)
        pictures.emplace_back(wgap::Pixels{rgb[static_cast<std::size_t>(n)].data(), 40, 50 + n, 0});
      std::string made_lines;
      for (const auto& result : localizer->batch(pictures)) made_lines += result->json;
      return made_lines;
    };
    std::vector<std::string> expected(1);
    for (int count = 1; count <= kSizes; ++count) expected.push_back(lines(count));
    EXPECT(made() == kSizes && alive() == 4);
    for (int count = kSizes; count > kSizes - 4; --count)
      EXPECT(lines(count) == expected[static_cast<std::size_t>(count)]);
    EXPECT(made() == kSizes);  // the last four were there
    EXPECT(lines(1) == expected[1] && lines(kSizes - 3) == expected[kSizes - 3]);
    EXPECT(made() == kSizes + 1 && alive() == 4);  // in the place of the one longest unused, the largest
    EXPECT(lines(kSizes) == expected[kSizes] && made() == kSizes + 2);

    std::atomic<int> most{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t)
      threads.emplace_back([&, t] {
        for (int round = 0; round < 30; ++round) {
          const int count = 1 + (round * (t + 1) + t) % kSizes;
          EXPECT(lines(count) == expected[static_cast<std::size_t>(count)]);
          for (int now = alive(), before = most; now > before && !most.compare_exchange_weak(before, now);) {
          }
        }
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT(made() > kSizes + 20);                  // they did push out each other's
    EXPECT(most <= 4 + kThreads && alive() == 4);  // beside those that are kept, those that are running
  }
  EXPECT(alive() == 0);
  std::puts("passed");
}
