// What TensorRT's module holds, and on which GPU: test_sdk_slots BUNDLE, on two emulated ones
#include <dlfcn.h>

#include "fake.h"

namespace {

template <class Function>
Function* emulated(const char* name) {
  static void* const cuda = dlopen("libcuda.so.1", RTLD_NOW);
  EXPECT(cuda != nullptr);
  return reinterpret_cast<Function*>(dlsym(cuda, name));
}
unsigned long long held(int ordinal) { return emulated<unsigned long long(int)>("wgap_emulated_held")(ordinal); }
unsigned long long pinned() { return emulated<unsigned long long()>("wgap_emulated_pinned")(); }

wgap::Result<wgap::Localizer> opened(const char* bundle, const char* device) {
  wgap::Options options;
  options.backend = "tensorrt", options.device = device;
  options.slots = 2;
  return wgap::Localizer::open(bundle, options);
}

std::string expected(const char* bundle, const wgap::Pixels& rgb) {
  wgap::Options options;
  options.network = std::make_shared<FakeNetwork>(Sizes(bundle));
  return wgap::Localizer::open(bundle, options)->pixels(rgb)->json;
}

// Of memory that grows until all the buffers of a slot fit: each of them is the first that does not.
void a_slot_that_cannot_be_made_leaves_nothing(const char* bundle, const wgap::Pixels& rgb) {
  const auto localizer = opened(bundle, "");
  const unsigned long long weights = held(0);
  EXPECT(localizer && weights > 0 && pinned() == 0);
  int failures = 0;
  for (unsigned long long room = weights;; room += 40) {  // less than the smallest buffer: logits of 4, of 3 classes
    setenv("WGAP_EMULATED_MEMORY", std::to_string(room).c_str(), 1);
    const auto result = localizer->pixels(rgb);
    if (result) break;
    EXPECT(result.error().status == WGAP_BACKEND_ERROR);
    EXPECT(result.error().text == "cuMemAlloc failed: out of memory");
    EXPECT(held(0) == weights && pinned() == 0);
    ++failures;
  }
  unsetenv("WGAP_EMULATED_MEMORY");
  EXPECT(failures > 1000 && held(0) > weights);
  EXPECT(localizer->pixels(rgb)->json == expected(bundle, rgb));
}

void the_second_gpu_is_the_second(const char* bundle, const wgap::Pixels& rgb) {
  for (const char* const name : {"1", "GPU-20212223-2425-2627-2829-2a2b2c2d2e2f"}) {
    EXPECT(held(0) == 0 && held(1) == 0);
    const auto second = opened(bundle, name);
    EXPECT(second && held(0) == 0 && held(1) > 0);
    EXPECT(second->pixels(rgb)->json == expected(bundle, rgb) && held(0) == 0);
    const auto first = opened(bundle, "0");
    const auto before = held(1);
    EXPECT(first->pixels(rgb)->json == expected(bundle, rgb) && held(0) > 0 && held(1) == before);
  }
}

}  // namespace

int main(int, char** arguments) {
  const std::vector<std::uint8_t> rgb = pixels(3, 40, 50);
  a_slot_that_cannot_be_made_leaves_nothing(arguments[1], {rgb.data(), 40, 50});
  EXPECT(held(0) == 0 && pinned() == 0);
  the_second_gpu_is_the_second(arguments[1], {rgb.data(), 40, 50});
  EXPECT(held(0) == 0 && held(1) == 0 && pinned() == 0);
  std::puts("passed");
}
