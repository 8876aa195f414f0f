// An engine of your own in place of ONNX Runtime: own_engine BUNDLE IMAGE
//
// This one computes its outputs itself: an object is what is brighter than the picture's mean, and its class is always
// the first. Yours would ask an inference server or an accelerator instead. The bundle still brings the classes, the
// rule and the classifier's weights.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <utility>
#include <vector>
#include <wgap/wgap.hpp>

namespace {

class Brightness : public wgap::Network {
 public:
  explicit Brightness(const wgap_bundle_info& info) : info_(info) {}

  const char* name() const override { return "brightness"; }

  // Called by as many threads as call the localizer, so nothing of this object changes. On failure, return an error:
  // wgap::Error{WGAP_BACKEND_ERROR, "the server does not answer"}.
  wgap::Result<wgap::Outputs> run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted) override {
    std::vector<float> logits, features, foreground;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint8_t* const image = images + i * info_.input_height * info_.input_width * 3;
      for (int k = 0; k < info_.classes; ++k) logits.push_back(k == 0 ? 1.0F : 0.0F);
      if (wanted & WGAP_FEATURES) {  // [channels][feature_height][feature_width], not negative
        std::vector<float> map = brighter(image, info_.feature_height, info_.feature_width);
        for (float& value : map) value = std::max(value, 0.0F);
        for (int c = 0; c < info_.channels; ++c) features.insert(features.end(), map.begin(), map.end());
      }
      if (wanted & WGAP_FOREGROUND) {  // [foreground_height][foreground_width], above 0 on the object
        const std::vector<float> scores = brighter(image, info_.foreground_height, info_.foreground_width);
        foreground.insert(foreground.end(), scores.begin(), scores.end());
      }
    }
    return wgap::Outputs{std::move(logits), std::move(features), std::move(foreground)};
  }

 private:
  const wgap_bundle_info info_;

  // How much brighter each of rows x columns cells is than the whole picture.
  std::vector<float> brighter(const std::uint8_t* image, int rows, int columns) const {
    std::vector<float> sums(static_cast<std::size_t>(rows * columns)), counts(sums.size());
    float sum = 0;
    for (int y = 0; y < info_.input_height; ++y)
      for (int x = 0; x < info_.input_width; ++x, image += 3) {
        const auto cell =
            static_cast<std::size_t>(y * rows / info_.input_height * columns + x * columns / info_.input_width);
        const float value = static_cast<float>(image[0] + image[1] + image[2]) / (3 * 255);
        sums[cell] += value, counts[cell] += 1, sum += value;
      }
    const float mean = sum / static_cast<float>(info_.input_height * info_.input_width);
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] = sums[i] / counts[i] - mean;
    return sums;
  }
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: own_engine BUNDLE IMAGE\n");
    return 2;
  }
  const auto info = wgap::describe(arguments[1]);  // an engine has to know the sizes before there is a localizer
  if (!info) {
    std::fprintf(stderr, "error: %s\n", info.error().text.c_str());
    return 1;
  }
  wgap::Options options;
  options.network = std::make_shared<Brightness>(*info);
  const auto localizer = wgap::Localizer::open(arguments[1], options);
  if (!localizer) {
    std::fprintf(stderr, "error: %s\n", localizer.error().text.c_str());
    return 1;
  }
  const auto result = localizer->file(arguments[2]);
  if (!result) {
    std::fprintf(stderr, "error: %s\n", result.error().text.c_str());
    return 1;
  }
  const wgap::Found& found = result->best();
  std::printf("%s: %s at %g %g %g %g\n", localizer->backend().c_str(), found.class_name.c_str(), found.box().x0,
              found.box().y0, found.box().x1, found.box().y1);
  return 0;
}
