// wgap.hpp over an engine of one's own: test_sdk_api BUNDLE
#include <clocale>
#include <cmath>
#include <cstring>

#include "fake.h"

namespace {

void results_say_what_they_hold(const char* bundle) {
  const auto missing = wgap::Localizer::open("no such folder");
  EXPECT(!missing && missing.error().status == WGAP_BUNDLE_ERROR);
  EXPECT(std::strcmp(missing.error().code(), "BundleError") == 0 && !missing.error().text.empty());
  EXPECT(missing.error().is(WGAP_BUNDLE_ERROR) && !missing.error().is(WGAP_GATE_ERROR));
  EXPECT((wgap::Error{WGAP_GATE_ERROR, "", {}}).is(WGAP_BUNDLE_ERROR));
  EXPECT(!(wgap::Error{WGAP_OK, "", {}}).is(WGAP_BUNDLE_ERROR));
#if defined(__cpp_exceptions)
  bool thrown = false;
  try {
    missing.value();
  } catch (const wgap::Exception& exception) {
    thrown = exception.error().status == WGAP_BUNDLE_ERROR && exception.what() == missing.error().text;
  }
  EXPECT(thrown);
#endif
  wgap::Options options;
  options.backend = "tvm";
  EXPECT(wgap::Localizer::open(bundle, options).error().status == WGAP_BACKEND_ERROR);
  options.network = std::make_shared<FakeNetwork>(Sizes(bundle));
  EXPECT(wgap::Localizer::open(bundle, options).error().status == WGAP_DATA_ERROR);
  options.backend.clear(), options.streams = 2;
  EXPECT(wgap::Localizer::open(bundle, options).error().text.find("hint and streams are of the bundle's own network") !=
         std::string::npos);
  EXPECT(options.network.use_count() == 1);  // nothing of it is kept
}

void every_way_in_gives_the_same(const char* bundle) {
  const Sizes sizes(bundle);
  const auto network = std::make_shared<FakeNetwork>(sizes, 2);
  wgap::Options options;
  options.network = network;
  options.top_k = 2, options.max_boxes = 3, options.batch_size = 5;
  {
    const auto localizer = wgap::Localizer::open(bundle, options);
    EXPECT(localizer && localizer->backend() == "fake" && localizer->classes() == sizes.classes);
    EXPECT(localizer->rule().kind == WGAP_RULE_ADAPTIVE && !localizer->class_name(0).empty());
    EXPECT(localizer->class_name(-1).empty() && localizer->class_name(sizes.classes).empty());
    const std::vector<std::uint8_t> rgb = pixels(7, 40, 50);
    const auto found = localizer->pixels({rgb.data(), 40, 50, 0});
    EXPECT(found && found->found.size() == 2);
    const wgap::Found& best = found->best();
    EXPECT(best.score > 0 && best.score < 1 && best.score >= found->found[1].score);
    EXPECT(!best.boxes.empty() && best.boxes.size() <= 3 && best.heatmap.empty());
    EXPECT(best.box().x0 >= 0 && best.box().x1 <= 50 && best.box().y0 < best.box().y1 && best.box().y1 <= 40);
    EXPECT(best.class_name == localizer->class_name(best.class_id));
    int counted = 0;
    for (const wgap::Found& one : localizer->pixels({rgb.data(), 40, 50, 0})) counted += one.score > 0;
    EXPECT(counted == 2);

    // Rows that are further apart, and upside down.
    std::vector<std::uint8_t> wide(40 * 170, 255), turned(40 * 150);
    for (std::size_t y = 0; y < 40; ++y) {
      std::memcpy(&wide[y * 170], &rgb[y * 150], 150);
      std::memcpy(&turned[(39 - y) * 150], &rgb[y * 150], 150);
    }
    EXPECT(localizer->pixels({wide.data(), 40, 50, 170})->json == found->json);

    // Sides that are swapped do not fit the memory, and the landscape that was meant does.
    EXPECT(localizer->pixels({rgb.data(), 40, 50, 150, rgb.size()})->json == found->json);
    const auto swapped = localizer->pixels({rgb.data(), 50, 40, 150, rgb.size()});
    EXPECT(swapped.error().status == WGAP_IMAGE_ERROR);
    EXPECT(swapped.error().text == "image 0: source: expected at least 7470 bytes, got 6000");
#if __cplusplus >= 202002L
    EXPECT(localizer->pixels({.data = rgb.data(), .height = 40, .width = 50})->json == found->json);
    EXPECT(localizer->pixels({rgb.data(), 40, 50, 0}, {.heatmaps = true})->best().heatmap_height > 0);
#endif

    static_assert(!std::is_convertible_v<bool, wgap::RunOptions>);  // a bare true says nothing
    const auto mapped = localizer->pixels({rgb.data(), 40, 50, 0}, wgap::with_heatmaps);
    EXPECT(mapped->best().heatmap_height * mapped->best().heatmap_width == sizes.pixels);
    float largest = 0;
    for (const float value : mapped->best().heatmap) largest = std::fmax(largest, value);
    EXPECT(static_cast<int>(mapped->best().heatmap.size()) == sizes.pixels && std::fabs(largest - 1) < 1e-6F);

    // A batch of seven in parts of five, of which the engine takes two; the fourth is no picture.
    std::vector<std::vector<std::uint8_t>> many;
    for (unsigned n = 0; n < 7; ++n) many.push_back(pixels(n, 20 + static_cast<int>(n), 30));
    std::vector<wgap::Picture> batch;
    for (int n = 0; n < 7; ++n)
      batch.emplace_back(wgap::Pixels{many[static_cast<std::size_t>(n)].data(), 20 + n, 30, 0});
    batch[3] = wgap::Picture("no such file.jpg");
    const auto results = localizer->batch(batch);
    EXPECT(results && results->size() == 7);
    EXPECT(results->timings.prepare_ms > 0 && results->timings.network_ms > 0 && results->timings.kernel_ms > 0);
    EXPECT((*results)[0]->timings.network_ms == results->timings.network_ms && found->timings.network_ms > 0);
    for (int n = 0; n < 7; ++n) {
      const auto& result = (*results)[static_cast<std::size_t>(n)];
      if (n == 3) {
        EXPECT(!result && result.error().status == WGAP_IMAGE_ERROR);
        EXPECT(result.error().json ==
               "{\"image\": \"no such file.jpg\", \"error\": \"no such file.jpg: no such file\", "
               "\"code\": \"ImageError\"}");
      } else {
        EXPECT(result->json == localizer->pixels({many[static_cast<std::size_t>(n)].data(), 20 + n, 30, 0})->json);
      }
    }
    EXPECT(localizer->batch({})->empty());
    const auto asked = localizer->one(wgap::Picture(wgap::Pixels{rgb.data(), 40, 50, 0}).of_class(1));
    EXPECT(asked->found.size() == 1 && asked->best().class_id == 1);
    EXPECT(localizer->one(wgap::Picture(wgap::Pixels{rgb.data(), 40, 50, 0}).of_class(sizes.classes)).error().status ==
           WGAP_DATA_ERROR);
    EXPECT(localizer->pixels({rgb.data(), 0, 50, 0}).error().status == WGAP_IMAGE_ERROR);
    EXPECT(localizer->pixels({rgb.data(), 40, 50, 149}).error().status == WGAP_IMAGE_ERROR);
    EXPECT(localizer->encoded("no image", 8).error().status == WGAP_IMAGE_ERROR);
    EXPECT(localizer->encoded(nullptr, 9).error().text == "image 0: expected an image, got an empty file (0 bytes)");
    EXPECT(localizer->pixels({nullptr, 40, 50, 0}).error().text.rfind("image 0: source: expected a pointer", 0) == 0);
    EXPECT(localizer->one(wgap::Picture(static_cast<const char*>(nullptr))).error().status == WGAP_IMAGE_ERROR);
    const wgap::Localization kept = *localizer->pixels({rgb.data(), 40, 50, 0});  // out of a result that is gone
    EXPECT(kept.json == found->json);
    EXPECT(wgap::describe(bundle)->classes == sizes.classes && wgap::describe("gone").error().is(WGAP_BUNDLE_ERROR));
    EXPECT(localizer->file("").error().status == WGAP_IMAGE_ERROR);
    EXPECT(localizer->file("/").error().status == WGAP_IMAGE_ERROR);

    network->fail = true;
    const auto failed = localizer->batch(batch);
    EXPECT(!failed && failed.error().status == WGAP_BACKEND_ERROR && failed.error().text == "it failed on purpose");
    network->fail = false;
    EXPECT(network->calls == network->released + 1);  // all but the one that failed
  }
  options.network.reset();
  EXPECT(network.use_count() == 1);  // closed with the localizer
}

#if defined(__cpp_exceptions)
void what_an_engine_throws_is_an_error(const char* bundle) {
  struct Throwing : FakeNetwork {
    using FakeNetwork::FakeNetwork;
    wgap::Result<wgap::Outputs> run(const std::uint8_t*, std::int64_t, std::uint32_t) override {
      if (++calls == 1) throw std::bad_alloc();
      throw 7;
    }
  };
  wgap::Options options;
  options.network = std::make_shared<Throwing>(Sizes(bundle));
  const auto localizer = wgap::Localizer::open(bundle, options);
  const std::vector<std::uint8_t> rgb = pixels(1, 8, 8);
  for (int n = 0; n < 2; ++n) EXPECT(localizer->pixels({rgb.data(), 8, 8, 0}).error().status == WGAP_BACKEND_ERROR);
}
#endif

void outputs_that_do_not_fit_are_refused(const char* bundle) {
  struct Short : FakeNetwork {
    using FakeNetwork::FakeNetwork;
    wgap::Result<wgap::Outputs> run(const std::uint8_t* images, std::int64_t count, std::uint32_t wanted) override {
      auto made = FakeNetwork::run(images, count, wanted);
      const std::vector<float> features(made->features.data(), made->features.data() + made->features.size());
      if (calls == 1) made->features = std::vector<float>(features.begin() + 1, features.end());
      if (calls == 2) made->logits = {};
      if (calls == 3) const_cast<float*>(made->features.data())[5] = std::nanf("");
      if (calls == 4) return wgap::Error{};
      if (calls == 5) made->features = features;                             // of its own
      if (calls == 6) made->logits = {nullptr, kept_.data(), kept_.size()};  // of nobody's
      return made;
    }
    const std::vector<float> kept_ = std::vector<float>(3, 1.0F);
  };
  const auto network = std::make_shared<Short>(Sizes(bundle));
  wgap::Options options;
  options.network = network;
  const auto localizer = wgap::Localizer::open(bundle, options);
  const std::vector<std::uint8_t> rgb = pixels(1, 8, 8);
  for (int n = 0; n < 3; ++n) EXPECT(localizer->pixels({rgb.data(), 8, 8, 0}).error().status == WGAP_FEATURE_ERROR);
  const auto silent = localizer->pixels({rgb.data(), 8, 8, 0}).error();
  EXPECT(silent.status == WGAP_BACKEND_ERROR && silent.text == "fake failed and did not say why");
  for (int n = 0; n < 2; ++n) EXPECT(localizer->pixels({rgb.data(), 8, 8, 0}));
  EXPECT(network->calls == 6 && network->released == 6);
}

void a_decoded_picture_owns_its_pixels() {
  constexpr std::uint8_t kPng[] = {
      // of 2 x 1: (255, 0, 0) and (10, 0, 255)
      137, 80,  78, 71, 13, 10,  26, 10,  0,   0,   0,   13, 73, 72, 68, 82, 0,  0,   0,   2,  0,   0,   0,   1,
      8,   2,   0,  0,  0,  123, 64, 232, 221, 0,   0,   0,  15, 73, 68, 65, 84, 120, 218, 99, 248, 207, 192, 192,
      197, 240, 31, 0,  7,  30,  2,  9,   230, 216, 137, 99, 0,  0,  0,  0,  73, 69,  78,  68, 174, 66,  96,  130};
  wgap::Image kept;
  {
    const auto image = wgap::decode(kPng, sizeof kPng);
    EXPECT(image && image->height == 1 && image->width == 2 && image->row_bytes == 6 && image->bytes == 6);
    kept = *image;
  }
  EXPECT(std::memcmp(kept.data, "\xff\0\0\x0a\0\xff", 6) == 0);
  const auto failed = wgap::decode(kPng, 40, "half.png");
  EXPECT(!failed && failed.error().is(WGAP_IMAGE_ERROR) && failed.error().text.rfind("half.png: ", 0) == 0);
  EXPECT(wgap::decode(nullptr, 0).error().text == "<bytes>: expected an image, got an empty file (0 bytes)");
}

void a_selftest_of_another_network_fails_with_its_report(const char* bundle) {
  wgap::Options options;
  options.network = std::make_shared<FakeNetwork>(Sizes(bundle));
  const auto report = wgap::Localizer::open(bundle, options)->selftest();
  EXPECT(!report && report.error().is(WGAP_CHECK_FAILED_ERROR) && !report.error().text.empty());
  EXPECT(report.error().json.find("\"ok\": false") != std::string::npos);
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 2) EXPECT(std::setlocale(LC_ALL, arguments[2]) != nullptr);  // whose decimal point may be a comma
  results_say_what_they_hold(arguments[1]);
  every_way_in_gives_the_same(arguments[1]);
  outputs_that_do_not_fit_are_refused(arguments[1]);
  a_decoded_picture_owns_its_pixels();
  a_selftest_of_another_network_fails_with_its_report(arguments[1]);
#if defined(__cpp_exceptions)
  what_an_engine_throws_is_an_error(arguments[1]);
#endif
  std::puts("passed");
}
