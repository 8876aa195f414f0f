// A batch of made-up feature maps, and everything that a call of the C interface needs.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "expect.h"
#include "wgap/wgap.h"

struct Batch {
  std::vector<float> weight, logits, features, heatmaps, scores;
  std::vector<std::uint8_t> pictures;
  std::vector<double> edge_means;
  std::vector<wgap_record> records;
  wgap_classifier* classifier = nullptr;
  wgap_input input = WGAP_INPUT_INIT;
  wgap_options options = WGAP_OPTIONS_INIT;
  wgap_output output = WGAP_OUTPUT_INIT;
  wgap_error error = WGAP_ERROR_INIT;

  // Image i is of kind `kind`, or where that is negative of kind i % 5, see feature_maps.
  Batch(int images, int classes, int channels, int height, int width, int kind = -1) {
    Random random{11};
    for (int i = 0; i < images; ++i) {
      const std::vector<float> one = feature_maps(random, channels, height, width, kind < 0 ? i % 5 : kind);
      features.insert(features.end(), one.begin(), one.end());
    }
    logits = random_floats(random, static_cast<std::size_t>(images) * classes);
    weight = random_floats(random, static_cast<std::size_t>(classes) * channels);
    EXPECT(wgap_classifier_create(weight.data(), weight.size() * sizeof(float), classes, channels, &classifier,
                                  &error) == WGAP_OK);
    input.images = images, input.classes = classes, input.channels = channels;
    input.height = height, input.width = width;
    input.logits = logits.data(), input.logits_bytes = logits.size() * sizeof(float);
    input.features = features.data(), input.features_bytes = features.size() * sizeof(float);
    want(1, 224, 224);
  }
  ~Batch() { wgap_classifier_destroy(classifier); }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // Records for top_k classes on such maps, and what else is asked for.
  void want(int top_k, int map_height, int map_width, bool maps = false, bool means = false, int max_boxes = 1) {
    options.top_k = top_k, options.map_height = map_height, options.map_width = map_width;
    options.max_boxes = max_boxes;
    const std::size_t results = static_cast<std::size_t>(input.images) * top_k;
    records.assign(results * max_boxes, wgap_record{});
    output.records = records.data(), output.records_bytes = records.size() * sizeof(wgap_record);
    heatmaps.assign(maps ? results * map_height * map_width : 0, -1.0f);
    output.heatmaps = maps ? heatmaps.data() : nullptr, output.heatmaps_bytes = heatmaps.size() * sizeof(float);
    edge_means.assign(means ? results * (WGAP_LEVELS + 1) : 0, -1.0);
    output.edge_means = means ? edge_means.data() : nullptr;
    output.edge_means_bytes = edge_means.size() * sizeof(double);
  }
  // Scores of that size, a few of them 0 or far out, and pictures of the map's, with few colours.
  void see(int height, int width, int map_height, int map_width) {
    Random random{23};
    scores = random_floats(random, static_cast<std::size_t>(input.images) * height * width);
    for (std::size_t i = 0; i < scores.size(); i += 7) scores[i] = i % 2 != 0 ? 0.0f : 40.0f * scores[i];
    pictures.resize(static_cast<std::size_t>(input.images) * map_height * map_width * 3);
    for (std::uint8_t& byte : pictures) byte = static_cast<std::uint8_t>(40 + 100 * random.below(2));
    input.scores = scores.data(), input.scores_bytes = scores.size() * sizeof(float);
    input.scores_height = height, input.scores_width = width;
    input.pictures = pictures.data(), input.pictures_bytes = pictures.size();
  }
  wgap_status localize(wgap_workspace* workspace) {
    return wgap_localize(workspace, classifier, &input, &options, &output, &error);
  }
  // All that a call has written, as bytes.
  std::string written() const {
    std::string all(reinterpret_cast<const char*>(records.data()), records.size() * sizeof(wgap_record));
    all.append(reinterpret_cast<const char*>(heatmaps.data()), heatmaps.size() * sizeof(float));
    return all.append(reinterpret_cast<const char*>(edge_means.data()), edge_means.size() * sizeof(double));
  }
};

// Ends itself.
struct Workspace {
  wgap_workspace* handle = nullptr;
  explicit Workspace(int threads, const char* target = nullptr) {
    EXPECT(wgap_workspace_create(threads, target, &handle, nullptr) == WGAP_OK);
  }
  ~Workspace() { wgap_workspace_destroy(handle); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  operator wgap_workspace*() const { return handle; }
};
