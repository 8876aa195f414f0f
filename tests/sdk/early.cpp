// Localizers that are closed after main, one opened before it and one within: BUNDLE=... [BACKEND=...] test_sdk_early
#include "fake.h"

namespace {

wgap::Result<wgap::Localizer> opened() {
  const char *const bundle = std::getenv("BUNDLE"), *const backend = std::getenv("BACKEND");
  wgap::Options options;
  if (backend != nullptr)
    options.backend = backend;
  else
    options.network = std::make_shared<FakeNetwork>(Sizes(bundle));
  return wgap::Localizer::open(bundle, options);
}
wgap::Result<wgap::Localizer> late = wgap::Error{};  // closed last, after whatever its opening has made static
const auto localizer = opened();

}  // namespace

int main() {
  const std::vector<std::uint8_t> rgb = pixels(7, 40, 50);
  late = opened();
  EXPECT(localizer->pixels({rgb.data(), 40, 50, 0})->json == late->pixels({rgb.data(), 40, 50, 0})->json);
  const std::string name = localizer->backend();
  std::printf("%s passed\n", name.substr(0, name.find(' ')).c_str());
}
