// A localizer that is opened before main and closed after it: BUNDLE=... test_sdk_early
#include "fake.h"

namespace {

wgap::Result<wgap::Localizer> opened() {
  const char* const bundle = std::getenv("BUNDLE");
  wgap::Options options;
  options.network = std::make_shared<FakeNetwork>(Sizes(bundle));
  return wgap::Localizer::open(bundle, options);
}
const auto localizer = opened();

}  // namespace

int main() {
  const std::vector<std::uint8_t> rgb = pixels(7, 40, 50);
  EXPECT(localizer->pixels({rgb.data(), 40, 50, 0}));
  std::puts("passed");
}
