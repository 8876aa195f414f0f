// The C interface refuses what it cannot do, by name, and serves the largest and oddest shapes it promises.
#include <limits>

#include "batch.h"

namespace {

struct Fixture : Batch {
  wgap_workspace* workspace = nullptr;

  Fixture(int classes, int channels, int height, int width, const char* target = nullptr)
      : Batch(1, classes, channels, height, width) {
    EXPECT(wgap_workspace_create(1, target, &workspace, &error) == WGAP_OK);
  }
  ~Fixture() { wgap_workspace_destroy(workspace); }
  wgap_status localize() { return Batch::localize(workspace); }
};

// With one thing changed, a call answers this status and a sentence that says this.
template <class Change>
void refused(wgap_status status, const char* said, Change change) {
  Fixture f(3, 4, 5, 6);
  change(f);
  const wgap_status answered = f.localize();
  if (answered == status && f.error.status == status && std::strstr(f.error.text, said) != nullptr) return;
  std::fprintf(stderr, "expected status %d, '%s'; got status %d, '%s'\n", status, said, answered, f.error.text);
  std::exit(1);
}

void refusals() {
  EXPECT(Fixture(3, 4, 5, 6).localize() == WGAP_OK);
  refused(WGAP_SHAPE_MISMATCH, "at least one row and column, got 4 x 0 x 6", [](Fixture& f) { f.input.height = 0; });
  refused(WGAP_SHAPE_MISMATCH, "got 4 x 5 x -6", [](Fixture& f) { f.input.width = -6; });
  refused(WGAP_SHAPE_MISMATCH, "expected 4 channels for this classifier, got 5 x 5 x 6",
          [](Fixture& f) { f.input.channels = 5; });
  refused(WGAP_SHAPE_MISMATCH, "expected 3 classes for this classifier, got 2",
          [](Fixture& f) { f.input.classes = 2; });
  refused(WGAP_SHAPE_MISMATCH, "expected 3 classes for this classifier, got 4",
          [](Fixture& f) { f.input.classes = 4; });
  refused(WGAP_INVALID_ARGUMENT, "0 or more images and reserved 0, got -1", [](Fixture& f) { f.input.images = -1; });
  refused(WGAP_INVALID_ARGUMENT, "reserved 0, got 1 and 7", [](Fixture& f) { f.input.reserved = 7; });
  refused(WGAP_INVALID_ARGUMENT, "got (5, 0)", [](Fixture& f) { f.options.map_height = 5, f.options.map_width = 0; });
  refused(WGAP_TOO_LARGE, "at most 2^20 pixels, got (1025, 1024)",
          [](Fixture& f) { f.options.map_height = 1025, f.options.map_width = 1024; });
  refused(WGAP_TOO_LARGE, "got (2147483647, 2147483647)",
          [](Fixture& f) { f.options.map_height = f.options.map_width = 0x7fffffff; });
  refused(WGAP_TOO_LARGE, "got 2147483647 x 2147483647 for a map 224 wide",
          [](Fixture& f) { f.input.height = f.input.width = 0x7fffffff; });
  refused(WGAP_TOO_LARGE, "got 1048576 x 1 for a map 224 wide",
          [](Fixture& f) { f.input.height = 1 << 20, f.input.width = 1; });
  refused(WGAP_TOO_LARGE, "logits: 4611686018427387903 times 3 elements",
          [](Fixture& f) { f.input.images = std::numeric_limits<std::int64_t>::max() / 2; });
  refused(WGAP_CLASS_OUT_OF_RANGE, "top_k: expected 1..3, got 4", [](Fixture& f) { f.options.top_k = 4; });
  refused(WGAP_CLASS_OUT_OF_RANGE, "got 0", [](Fixture& f) { f.options.top_k = 0; });
  static const std::int64_t outside[2] = {3, -1};
  for (int i = 0; i < 2; ++i)
    refused(WGAP_CLASS_OUT_OF_RANGE, i == 0 ? "classes[0] is 3, expected 0..2" : "classes[0] is -1, expected 0..2",
            [i](Fixture& f) { f.input.class_ids = outside + i, f.input.class_ids_bytes = 8; });
  refused(WGAP_UNKNOWN_RULE, "got number 3", [](Fixture& f) { f.options.rule.map = 3; });
  refused(WGAP_UNKNOWN_RULE, "got kind number 4", [](Fixture& f) { f.options.rule.kind = 4; });
  refused(WGAP_INVALID_ARGUMENT, "max_boxes: expected 1..64, and reserved 0, got 0 and 0",
          [](Fixture& f) { f.options.max_boxes = 0; });
  refused(WGAP_INVALID_ARGUMENT, "got 65 and 0", [](Fixture& f) { f.options.max_boxes = 65; });
  refused(WGAP_BUFFER_TOO_SMALL, "records: expected at least", [](Fixture& f) { f.options.max_boxes = 2; });
  // What the foreground rules read.
  const auto coloured = [](Fixture& f) {
    f.see(9, 8, f.options.map_height, f.options.map_width);
    f.options.rule.kind = WGAP_RULE_FOREGROUND_COLOUR, f.options.rule.map = WGAP_MAP_NONE;
  };
  refused(WGAP_UNKNOWN_RULE, "'positive', 'signed' or 'none', got number 4", [&](Fixture& f) {
    coloured(f);
    f.options.rule.map = 4;
  });
  refused(WGAP_SHAPE_MISMATCH, "at most the map's 224 x 224, got 0 x 8", [&](Fixture& f) {
    coloured(f);
    f.input.scores_height = 0;
  });
  refused(WGAP_SHAPE_MISMATCH, "got 9 x 225", [&](Fixture& f) {
    coloured(f);
    f.input.scores_width = 225;
  });
  refused(WGAP_INVALID_ARGUMENT, "scores: expected a pointer", [&](Fixture& f) {
    coloured(f);
    f.input.scores = nullptr;
  });
  refused(WGAP_BUFFER_TOO_SMALL, "scores: expected at least", [&](Fixture& f) {
    coloured(f);
    --f.input.scores_bytes;
  });
  refused(WGAP_INVALID_ARGUMENT, "pictures: expected a pointer", [&](Fixture& f) {
    coloured(f);
    f.input.pictures = nullptr;
  });
  refused(WGAP_BUFFER_TOO_SMALL, "pictures: expected at least", [&](Fixture& f) {
    coloured(f);
    --f.input.pictures_bytes;
  });
  for (const float bad : {-INFINITY, INFINITY, static_cast<float>(NAN)})
    refused(WGAP_SCORES_NOT_FINITE, "image 0 of the batch: scores hold NaN or infinity", [&](Fixture& f) {
      coloured(f);
      f.scores[5] = bad;
    });
  Fixture bare(3, 4, 5, 6);  // features are not looked at
  coloured(bare);
  bare.input.channels = bare.input.height = bare.input.width = 0;
  bare.input.features = nullptr, bare.input.features_bytes = 0;
  EXPECT(bare.localize() == WGAP_OK);
  bare.options.rule.kind = WGAP_RULE_FOREGROUND, bare.input.pictures = nullptr, bare.input.pictures_bytes = 0;
  EXPECT(bare.localize() == WGAP_OK);
  bare.options.rule.map = WGAP_MAP_SIGNED;
  EXPECT(bare.localize() == WGAP_SHAPE_MISMATCH);
  refused(WGAP_INVALID_ARGUMENT, "wgap_rule: expected reserved 0, got 1",
          [](Fixture& f) { f.options.rule.reserved = 1; });
  for (const double eta : {0.9995, -0.1, static_cast<double>(NAN)})
    refused(WGAP_UNKNOWN_RULE,
            eta > 0   ? "ETA 0.9995"
            : eta < 0 ? "ETA -0.1"
                      : "nan",
            [eta](Fixture& f) { f.options.rule.kind = WGAP_RULE_FIXED, f.options.rule.parameters[0] = eta; });
  refused(WGAP_UNKNOWN_RULE, "parameters[5] is 0.5", [](Fixture& f) { f.options.rule.parameters[5] = 0.5; });
  for (const float bad : {-INFINITY, NAN, 3e38f})
    refused(WGAP_FEATURES_NOT_FINITE, "image 0 of the batch: features", [bad](Fixture& f) { f.features[7] = bad; });
  refused(WGAP_LOGITS_NOT_FINITE, "image 0 of the batch: logits", [](Fixture& f) { f.logits[2] = NAN; });
  Fixture empty(3, 4, 5, 6);  // nothing to do: nothing is looked at
  empty.input.images = 0, empty.input.logits = empty.input.features = nullptr, empty.output.records = nullptr;
  EXPECT(empty.localize() == WGAP_OK);

  const float bad[6] = {1.0f, 1.0f, 1.0f, 1.0f, NAN, 1.0f};
  wgap_error error = WGAP_ERROR_INIT;
  const auto says = [&](const char* text) { return std::strstr(error.text, text) != nullptr; };
  wgap_classifier* classifier = nullptr;
  EXPECT(wgap_classifier_create(bad, sizeof bad, 2, 3, &classifier, &error) == WGAP_WEIGHTS_NOT_FINITE);
  EXPECT(classifier == nullptr && says("class 1, channel 1"));
  EXPECT(wgap_classifier_create(bad, sizeof bad, 0, 3, &classifier, &error) == WGAP_SHAPE_MISMATCH && says("0 x 3"));
  EXPECT(wgap_classifier_create(bad, sizeof bad, 2, -3, &classifier, &error) == WGAP_SHAPE_MISMATCH && says("2 x -3"));
  EXPECT(wgap_classifier_create(bad, ~0ULL, 0x7fffffff, 0x7fffffff, &classifier, &error) == WGAP_TOO_LARGE &&
         says("2147483647 times 2147483647"));
  wgap_workspace* workspace = nullptr;
  EXPECT(wgap_workspace_create(0, nullptr, &workspace, &error) == WGAP_INVALID_ARGUMENT && says("1..1024, got 0"));
  EXPECT(wgap_workspace_create(1025, nullptr, &workspace, &error) == WGAP_INVALID_ARGUMENT && says("got 1025"));
  EXPECT(wgap_workspace_create(1, "mmx", &workspace, &error) == WGAP_UNSUPPORTED_TARGET && says("'mmx'"));
  EXPECT(workspace == nullptr);
  for (int status = WGAP_OK; status <= WGAP_UNKNOWN_RULE; ++status)
    EXPECT(std::strcmp(wgap_status_string(static_cast<wgap_status>(status)), "unknown status") != 0);
  EXPECT(std::strcmp(wgap_status_string(static_cast<wgap_status>(99)), "unknown status") == 0);
}

// Shapes at the edge of what is promised; every target agrees on them.
void extremes() {
  const int shapes[][6] = {// classes, channels, h, w, H, W
                           {2, 3, 1, 1, 1, 1},        {2, 3, 4, 5, 1, 1 << 20}, {2, 3, 4, 5, 1 << 20, 1},
                           {2, 3, 4, 5, 13, 80001},   {2, 3, 1, 9, 1024, 1024}, {1, 2, 40, 50, 3, 2},
                           {50000, 2, 3, 3, 64, 128}, {2, 1030, 2, 7, 65, 63}};
  for (const auto& s : shapes) {
    wgap_record expected{};
    for (const char* const* target = wgap_targets(); *target != nullptr; ++target) {
      Fixture fixture(s[0], s[1], s[2], s[3], *target);
      fixture.want(1, s[4], s[5]);
      EXPECT(fixture.localize() == WGAP_OK);
      EXPECT(std::string(wgap_workspace_target(fixture.workspace)) == *target);
      const wgap_record& r = fixture.records[0];
      EXPECT(0 <= r.box[0] && r.box[0] < r.box[2] && r.box[2] <= s[5]);
      EXPECT(0 <= r.box[1] && r.box[1] < r.box[3] && r.box[3] <= s[4]);
      if (target == wgap_targets()) expected = r;
      EXPECT(std::memcmp(&expected, &r, sizeof r) == 0);
    }
  }
}

wgap_image image_of(std::vector<std::uint8_t>& pixels, int height, int width, int channels) {
  wgap_image image = WGAP_IMAGE_INIT;
  image.height = height, image.width = width, image.channels = channels;
  image.row_bytes = static_cast<std::int64_t>(width) * channels;
  image.data = pixels.data(), image.bytes = pixels.size();
  return image;
}

void resizes() {
  std::vector<std::uint8_t> source(7 * 5 * 4), out(300 * 200 * 4), turned(out.size());
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::uint8_t>(37 * i);
  for (int channels = 1; channels <= 4; ++channels) {
    // Same size: the same bytes. One pixel: that pixel everywhere.
    const wgap_image from = image_of(source, 7, 5, channels), same = image_of(out, 7, 5, channels);
    EXPECT(wgap_resize(&from, &same, nullptr) == WGAP_OK);
    EXPECT(std::memcmp(source.data(), out.data(), static_cast<std::size_t>(7 * 5 * channels)) == 0);
    const wgap_image pixel = image_of(source, 1, 1, channels), large = image_of(out, 300, 200, channels);
    EXPECT(wgap_resize(&pixel, &large, nullptr) == WGAP_OK);
    for (int i = 0; i < 300 * 200 * channels; ++i) EXPECT(out[i] == source[i % channels]);
    // Rows that run upwards, in either image: the same picture.
    EXPECT(wgap_resize(&from, &large, nullptr) == WGAP_OK);
    wgap_image upwards = image_of(turned, 300, 200, channels), upside = from;
    upwards.row_bytes = -upwards.row_bytes, upwards.data -= 299 * upwards.row_bytes;
    EXPECT(wgap_resize(&from, &upwards, nullptr) == WGAP_OK);
    const std::size_t row = static_cast<std::size_t>(200 * channels);
    for (std::size_t y = 0; y < 300; ++y)
      EXPECT(std::memcmp(out.data() + y * row, turned.data() + (299 - y) * row, row) == 0);
    std::vector<std::uint8_t> flipped(source.size());
    for (int y = 0; y < 7; ++y)
      std::memcpy(flipped.data() + (6 - y) * 5 * channels, source.data() + y * 5 * channels,
                  static_cast<std::size_t>(5 * channels));
    upside.row_bytes = -upside.row_bytes, upside.data = flipped.data() + 6 * 5 * channels;
    const wgap_image again = image_of(turned, 300, 200, channels);
    EXPECT(wgap_resize(&upside, &again, nullptr) == WGAP_OK);
    EXPECT(std::memcmp(out.data(), turned.data(), 300 * row) == 0);
  }
  const auto answers = [&](wgap_status status, const char* said, wgap_image from, wgap_image to) {
    wgap_error error = WGAP_ERROR_INIT;
    EXPECT(wgap_resize(&from, &to, &error) == status && wgap_resize(&from, &to, nullptr) == status);
    EXPECT(error.status == status && std::strstr(error.text, said) != nullptr);
  };
  const wgap_image good = image_of(source, 7, 5, 3), to = image_of(out, 3, 3, 3);
  answers(WGAP_INVALID_ARGUMENT, "1 to 4 channels, got 7x5 of 5", image_of(source, 7, 5, 5), to);
  answers(WGAP_INVALID_ARGUMENT, "source: expected at least 1x1 pixels of 1 to 4 channels, got 7x0",
          image_of(source, 7, 0, 3), to);
  answers(WGAP_INVALID_ARGUMENT, "destination: expected at least 1x1 pixels of 1 to 4 channels, got -3x3", good,
          image_of(out, -3, 3, 3));
  answers(WGAP_SHAPE_MISMATCH, "expected 3 channels as the source has, got 2", good, image_of(out, 3, 3, 2));
  for (const std::int64_t stride : {14LL, -14LL, 0LL, std::numeric_limits<long long>::min()}) {
    wgap_image narrow = good;
    narrow.row_bytes = stride;
    const std::string said = "source: expected a row stride of at least 15 bytes, got " + std::to_string(stride);
    answers(WGAP_INVALID_ARGUMENT, said.c_str(), narrow, to);
  }
  wgap_image huge = good;
  huge.row_bytes = std::numeric_limits<std::int64_t>::max() / 2;
  answers(WGAP_TOO_LARGE, "7 rows of 4611686018427387903 bytes", huge, to);
  huge = good, huge.width = 0x7fffffff, huge.row_bytes = 1LL << 40;
  answers(WGAP_TOO_LARGE, "a row of 6442450941 bytes", huge, to);
}

}  // namespace

int main() {
  refusals();
  extremes();
  resizes();
  return 0;
}
