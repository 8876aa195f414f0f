// Pictures in, boxes out: decoding, resizing, the network, and the kernel behind it.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"
#include "image.h"
#include "network.h"
#include "wgap/runtime.h"

namespace wgap::sdk {

struct Found {
  wgap_found told;  // its pointers lead into the rest
  std::vector<wgap_box> boxes;
  std::vector<float> heatmap;
};

struct Result {
  std::optional<std::string> image;  // its path
  wgap_status status = WGAP_OK;
  std::string message;
  std::vector<Found> found;  // best class first
};

// The line that `wgap localize --json` prints.
std::string json_line(const Result& result);

class Localizer {
 public:
  Localizer(const char* path, const wgap_localizer_options& options);

  const Bundle& bundle() const { return *bundle_; }
  std::shared_ptr<const Bundle> shared_bundle() const { return bundle_; }
  const wgap_rule& rule() const { return rule_; }
  const std::string& backend() const { return backend_; }
  std::vector<Result> run(const wgap_picture* pictures, std::int64_t count, bool heatmaps);

 private:
  struct Slot;  // what one call works with; kept for the next one
  struct SlotDeleter {
    void operator()(Slot* slot) const;
  };
  struct ClassifierDeleter {
    void operator()(wgap_classifier* classifier) const { wgap_classifier_destroy(classifier); }
  };
  struct Prepared {  // a picture at the network's input size
    std::int64_t number;
    int height, width;  // of the original
  };

  std::shared_ptr<const Bundle> bundle_;
  const int top_k_, max_boxes_, batch_size_, threads_;
  wgap_rule rule_;
  int height_, width_;
  std::optional<Network> network_;
  std::string backend_;
  std::unique_ptr<wgap_classifier, ClassifierDeleter> classifier_;
  std::mutex idle_lock_;
  std::vector<std::unique_ptr<Slot, SlotDeleter>> idle_;

  std::unique_ptr<Slot, SlotDeleter> take_slot();
  Prepared prepare(const wgap_picture& picture, std::int64_t number, unsigned char* to) const;
  void locate(Slot* slot, const wgap_picture* pictures, bool heatmaps, std::vector<Result>* results) const;
  Found found(const Prepared& prepared, const wgap_record* records, const float* map) const;
};

}  // namespace wgap::sdk
