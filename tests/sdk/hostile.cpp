// The C interface under callers that know nothing: test_sdk_hostile BUNDLE JPEG [CALLS]
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

#include "fake.h"

namespace {

std::mt19937_64 chance(1);

std::uint64_t below(std::uint64_t n) { return chance() % n; }
bool rarely() { return below(8) == 0; }

std::int32_t number() {
  constexpr std::int32_t kOdd[] = {0, 1, 2, 3, -1, 7, 64, 65, 4096, 4097, 1 << 20, INT32_MAX, INT32_MIN};
  return rarely() ? static_cast<std::int32_t>(chance()) : kOdd[below(std::size(kOdd))];
}
std::uint32_t size_of(std::size_t real) {
  const std::uint32_t odd[] = {
      0, 1, 4, 7, 8, static_cast<std::uint32_t>(real) - 8, static_cast<std::uint32_t>(real) + 8, UINT32_MAX};
  return below(3) > 0 ? static_cast<std::uint32_t>(real) : odd[below(std::size(odd))];
}
const char* word() {
  static const char* const kWords[] = {
      nullptr,     "",           "onnxruntime", "fp32",       "int8",           "adaptive",
      "fixed:0.3", "foreground", "signed",      "recombined", "none",           "../..",
      "%s%n",      "\xff\xfe",   "a\nb",        "/dev/zero",  "/proc/self/mem", "fixed:1e999"};
  return kWords[below(std::size(kWords))];
}

}  // namespace

int main(int count, char** arguments) {
  const int calls = count > 3 ? std::atoi(arguments[3]) : 100000;
  const char* const bundle = arguments[1];
  std::ifstream file(arguments[2], std::ios::binary);
  std::string jpeg{std::istreambuf_iterator<char>(file), {}};
  EXPECT(jpeg.size() > 100);
  FakeNetwork fake{Sizes(bundle)};
  wgap_network network = WGAP_NETWORK_INIT;
  network.context = &fake;
  network.run = [](void* context, const std::uint8_t* images, std::int64_t n, std::uint32_t wanted,
                   wgap_outputs* outputs, wgap_error*) {
    auto* const real = static_cast<FakeNetwork*>(context);
    if (rarely()) return static_cast<wgap_status>(number() % 20 + 300);
    auto* const made = new wgap::Outputs(*real->run(images, n, wanted));
    outputs->logits = made->logits.data(), outputs->logits_bytes = made->logits.size() * sizeof(float);
    outputs->features = made->features.data(), outputs->features_bytes = made->features.size() * sizeof(float);
    return outputs->lease = made, WGAP_OK;
  };
  network.release = [](void*, wgap_outputs* outputs) { delete static_cast<wgap::Outputs*>(outputs->lease); };
  wgap_localizer* localizer = nullptr;
  wgap_localizer_options usual = WGAP_LOCALIZER_OPTIONS_INIT;
  usual.network = &network;
  EXPECT(wgap_localizer_open(bundle, &usual, &localizer, nullptr) == WGAP_OK);
  std::vector<std::uint8_t> rgb = pixels(3, 64, 64);
  int fine = 0;
  for (int call = 0; call < calls; ++call) {
    wgap_error error = WGAP_ERROR_INIT;
    error.struct_size = size_of(sizeof error);
    if (error.struct_size > sizeof error && error.struct_size < UINT32_MAX) error.struct_size = sizeof error + 8;
    wgap_error* const told = rarely() ? nullptr : &error;
    wgap_status status = WGAP_OK;
    switch (below(call % 50 == 0 ? 8 : 6)) {
      case 0: {
        wgap_results* results = nullptr;
        wgap_image image = WGAP_IMAGE_INIT;
        image.struct_size = size_of(sizeof image);
        image.height = rarely() ? number() : static_cast<int>(1 + below(64));
        image.width = rarely() ? number() : static_cast<int>(1 + below(64));
        image.channels = rarely() ? number() : 3;
        image.data = rarely() ? nullptr : rgb.data();
        image.row_bytes = rarely() ? number() : image.width * std::int64_t{3};
        image.bytes = rarely() ? below(rgb.size()) : rgb.size();
        wgap_picture picture = WGAP_PICTURE_INIT;
        picture.struct_size = size_of(sizeof picture);
        picture.class_id = rarely() ? number() : -1;
        picture.pixels = rarely() ? nullptr : &image;
        picture.path = rarely() ? word() : nullptr;
        if (picture.path == nullptr && rarely())
          picture.encoded = jpeg.data(), picture.encoded_bytes = below(jpeg.size() + 1);
        wgap_run_options options = WGAP_RUN_OPTIONS_INIT;
        options.struct_size = size_of(sizeof options);
        options.heatmaps = number();
        status = wgap_localizer_run(rarely() ? nullptr : localizer, rarely() ? nullptr : &picture, rarely() ? -1 : 1,
                                    rarely() ? nullptr : &options, rarely() ? nullptr : &results, told);
        for (const std::int64_t at : {std::int64_t{0}, std::int64_t{1}, std::int64_t{-1}, INT64_MAX}) {
          EXPECT(wgap_results_message(results, at) != nullptr && wgap_results_json(results, at) != nullptr);
          const wgap_found* const found = wgap_results_found(results, at, 0);
          EXPECT((found != nullptr) == (wgap_results_status(results, at) == WGAP_OK));
          if (found != nullptr) EXPECT(found->box_count > 0 && found->boxes[0].x0 <= found->boxes[0].x1);
          EXPECT(wgap_results_found(results, at, number() % 2 - 5) == nullptr);
        }
        wgap_timings timings = WGAP_TIMINGS_INIT;
        timings.struct_size = size_of(sizeof timings);
        wgap_results_timings(results, rarely() ? nullptr : &timings, nullptr);
        wgap_results_destroy(results);
        break;
      }
      case 1: {
        std::string damaged = jpeg;
        for (std::uint64_t n = below(4); n > 0; --n) damaged[below(damaged.size())] = static_cast<char>(chance());
        wgap_image image = WGAP_IMAGE_INIT;
        image.struct_size = size_of(sizeof image);
        status = wgap_decode(rarely() ? nullptr : damaged.data(), rarely() ? below(damaged.size()) : damaged.size(),
                             word(), rarely() ? nullptr : &image, told);
        if (status == WGAP_OK) EXPECT(image.height > 0 && image.data[image.bytes - 1] < 256);
        if (status == WGAP_OK) wgap_pixels_free(&image);
        break;
      }
      case 2: {
        wgap_bundle_info info = WGAP_BUNDLE_INFO_INIT;
        info.struct_size = size_of(sizeof info);
        status = wgap_bundle_describe(rarely() ? nullptr : wgap_localizer_bundle(localizer), rarely() ? nullptr : &info,
                                      told);
        if (rarely()) {
          wgap_engine_host host = WGAP_ENGINE_HOST_INIT;
          host.struct_size = size_of(sizeof host);
          host.batch = number();
          host.flavor = word(), host.version = word(), host.compute_capability = word(), host.platform = word();
          void* plan = nullptr;
          std::uint64_t bytes = 0;
          status = wgap_bundle_engine(wgap_localizer_bundle(localizer), rarely() ? nullptr : &host, word(), nullptr,
                                      number(), rarely() ? nullptr : &plan, rarely() ? nullptr : &bytes, nullptr, told);
          EXPECT(status != WGAP_OK && plan == nullptr);
        }
        if (rarely()) {
          char* report = nullptr;
          status = wgap_localizer_selftest(rarely() ? nullptr : localizer, rarely() ? nullptr : &report, told);
          EXPECT(report == nullptr || report[0] == '{');
          wgap_free(report);
        }
        break;
      }
      case 3: {
        const std::int32_t id = number();
        const char* const name = wgap_bundle_class_name(rarely() ? nullptr : wgap_localizer_bundle(localizer), id);
        EXPECT(name == nullptr || id >= 0);
        break;
      }
      case 4: {
        wgap_rule rule = WGAP_RULE_INIT;
        rule.struct_size = size_of(sizeof rule);
        status = wgap_localizer_rule(rarely() ? nullptr : localizer, rarely() ? nullptr : &rule, told);
        break;
      }
      case 5: {
        wgap_bundle* opened = nullptr;
        status = wgap_bundle_open(word(), number(), rarely() ? nullptr : &opened, told);
        wgap_bundle_close(opened);
        break;
      }
      default: {
        wgap_localizer_options options = usual;
        options.struct_size = size_of(sizeof options);
        if (rarely()) options.top_k = number();
        if (rarely()) options.max_boxes = number();
        if (rarely()) options.batch_size = number();
        if (rarely()) options.threads = number() % 3000;
        if (rarely()) options.slots = number();
        if (rarely()) options.device = word();
        if (rarely()) options.rule = word();
        if (rarely()) options.map = word();
        if (rarely()) options.precision = word();
        wgap_network broken = network;
        if (rarely()) broken.run = nullptr;
        if (rarely()) broken.largest = number();
        if (rarely()) broken.struct_size = size_of(sizeof broken);
        options.network = &broken;
        wgap_localizer* opened = nullptr;
        status = wgap_localizer_open(rarely() ? word() : bundle, rarely() ? nullptr : &options,
                                     rarely() ? nullptr : &opened, told);
        EXPECT((opened == nullptr) || status == WGAP_OK);
        wgap_localizer_close(opened);
      }
    }
    fine += status == WGAP_OK;
    EXPECT(std::strlen(wgap_status_string(status)) > 0);
    if (status != WGAP_OK && told != nullptr && error.struct_size == sizeof error && status < 300)
      EXPECT(error.text[0] != 0 || status == 0);
  }
  wgap_localizer_close(localizer);

  // A network with a kernel of its own behind it, which writes nothing or nonsense.
  network.locate = [](void*, const wgap_locate_request* asked, wgap_error*) {
    const std::int64_t rows = asked->count * (asked->class_ids != nullptr ? 1 : asked->top_k) * asked->max_boxes;
    for (std::int64_t i = 0; i < rows && !rarely(); ++i) {
      asked->records[i].boxes = rarely() ? number() : 1;
      asked->records[i].class_id = rarely() ? number() : 0;
      asked->records[i].status = rarely() ? number() % 20 : 0;
    }
    return WGAP_OK;
  };
  usual.top_k = 2, usual.max_boxes = 3;
  EXPECT(wgap_localizer_open(bundle, &usual, &localizer, nullptr) == WGAP_OK);
  int located = 0, refused = 0;
  for (int call = 0; call < 2000; ++call) {
    wgap_image image = WGAP_IMAGE_INIT;
    image.height = image.width = 64, image.channels = 3, image.data = rgb.data(), image.row_bytes = 192;
    image.bytes = rgb.size();
    wgap_picture picture = WGAP_PICTURE_INIT;
    picture.pixels = &image;
    wgap_results* results = nullptr;
    if (wgap_localizer_run(localizer, &picture, 1, nullptr, &results, nullptr) != WGAP_OK) {
      ++refused;
      continue;
    }
    EXPECT(std::strlen(wgap_results_json(results, 0)) > 10);
    located += wgap_results_status(results, 0) == WGAP_OK;
    wgap_results_destroy(results);
  }
  EXPECT(located > 100 && refused > 100);
  wgap_localizer_close(localizer);
  std::printf("%d calls, %d of them fine\n", calls, fine);
  EXPECT(fine > calls / 10 && fine < calls);
  std::puts("passed");
}
