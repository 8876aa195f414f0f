// Feature maps to boxes with libwgap, as JSON lines.
//
//   boxes                                             a made-up object in made-up feature maps
//   boxes FEATURES LOGITS WEIGHT N C h w K [SIZE]     files of raw float32: [N][C][h][w], [N][K] and [K][C]
//
// FEATURES and LOGITS are what the exported network gives, WEIGHT the classifier in its bundle. Boxes are half-open, in
// pixels of a SIZE x SIZE map (224, the network's input).
#include <wgap/wgap.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

namespace {

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  std::exit(1);
}

void check(wgap_status status, const wgap_error& error) {
  if (status != WGAP_OK) fail(error.text);
}

std::vector<float> read_floats(const char* path, std::size_t count) {
  std::vector<float> values(count);
  std::ifstream file(path, std::ios::binary);
  const std::streamsize bytes = static_cast<std::streamsize>(count * sizeof(float));
  if (!file.read(reinterpret_cast<char*>(values.data()), bytes) || file.peek() != std::ifstream::traits_type::eof())
    fail(std::string(path) + ": expected exactly " + std::to_string(bytes) + " bytes of float32");
  return values;
}

struct Data {
  int images = 1, channels = 64, height = 14, width = 14, classes = 3, size = 224;
  std::vector<float> features, logits, weight;
};

// Every channel responds around one object, a little above and left of the middle.
Data made_up() {
  Data d;
  for (int c = 0; c < d.channels; ++c)
    for (int y = 0; y < d.height; ++y)
      for (int x = 0; x < d.width; ++x) {
        const float dy = static_cast<float>(y) - 5.0f - static_cast<float>(c % 3);
        const float dx = static_cast<float>(x) - 4.0f - static_cast<float>(c % 4);
        d.features.push_back(std::fmax(0.0f, 100.0f * std::exp(-(dx * dx + dy * dy) / 6.0f) - 5.0f));
      }
  d.logits = {0.5f, 3.0f, -1.0f};
  for (int i = 0; i < d.classes * d.channels; ++i) d.weight.push_back(0.01f * static_cast<float>(i % 7 - 3));
  return d;
}

Data from_files(int count, char** arguments) {
  Data d;
  int* const numbers[] = {&d.images, &d.channels, &d.height, &d.width, &d.classes, &d.size};
  for (int i = 4; i < count; ++i) *numbers[i - 4] = std::atoi(arguments[i]);
  for (const int* number : numbers)
    if (*number < 1) fail("every size must be at least 1");
  const std::size_t images = static_cast<std::size_t>(d.images);
  d.features = read_floats(arguments[1], images * d.channels * d.height * d.width);
  d.logits = read_floats(arguments[2], images * d.classes);
  d.weight = read_floats(arguments[3], static_cast<std::size_t>(d.classes) * d.channels);
  return d;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 1 && count != 9 && count != 10) fail("usage: boxes [FEATURES LOGITS WEIGHT N C h w K [SIZE]]");
  const Data data = count == 1 ? made_up() : from_files(count, arguments);

  wgap_error error = WGAP_ERROR_INIT;
  wgap_classifier* classifier = nullptr;
  check(wgap_classifier_create(data.weight.data(), data.weight.size() * sizeof(float), data.classes, data.channels,
                               &classifier, &error),
        error);
  const std::unique_ptr<wgap_classifier, decltype(&wgap_classifier_destroy)> own(classifier, wgap_classifier_destroy);
  wgap_workspace* workspace = nullptr;
  check(wgap_workspace_create(2, nullptr, &workspace, &error), error);
  const std::unique_ptr<wgap_workspace, decltype(&wgap_workspace_destroy)> also(workspace, wgap_workspace_destroy);

  wgap_input input = WGAP_INPUT_INIT;
  input.images = data.images, input.classes = data.classes, input.channels = data.channels;
  input.height = data.height, input.width = data.width;
  input.logits = data.logits.data(), input.logits_bytes = data.logits.size() * sizeof(float);
  input.features = data.features.data(), input.features_bytes = data.features.size() * sizeof(float);
  wgap_options options = WGAP_OPTIONS_INIT;
  options.map_height = options.map_width = data.size;
  std::vector<wgap_record> records(static_cast<std::size_t>(data.images));
  wgap_output output = WGAP_OUTPUT_INIT;
  output.records = records.data(), output.records_bytes = records.size() * sizeof(wgap_record);
  check(wgap_localize(workspace, classifier, &input, &options, &output, &error), error);

  for (std::size_t i = 0; i < records.size(); ++i) {
    const wgap_record& r = records[i];
    std::printf(
        "{\"image\": %zu, \"class_id\": %d, \"score\": %.6f, \"box\": [%d, %d, %d, %d], \"threshold\": %.2f, "
        "\"degenerate\": %s}\n",
        i, r.class_id, static_cast<double>(r.score), r.box[0], r.box[1], r.box[2], r.box[3], r.threshold,
        r.degenerate != 0 ? "true" : "false");
  }
  return 0;
}
