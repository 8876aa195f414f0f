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

// As Python's json.dumps writes a text and a finite number, at the end of a line.
void add_text(std::string* line, const std::string& value);
void add_number(std::string* line, double value);

class Localizer {
 public:
  Localizer(const char* path, const wgap_localizer_options& options);

  const Bundle& bundle() const { return *bundle_; }
  std::shared_ptr<const Bundle> shared_bundle() const { return bundle_; }
  const wgap_rule& rule() const { return rule_; }
  const std::string& backend() const { return backend_; }
  std::vector<Result> run(const wgap_picture* pictures, std::int64_t count, bool heatmaps, wgap_timings* timings);
  std::vector<Result> run_device(const wgap_device_pictures& pictures, bool heatmaps, wgap_timings* timings);

  // The bundle's golden cases: the report that `wgap selftest --json` prints, and whether every check passed.
  std::string selftest(bool* passed);

 private:
  struct Slot;
  struct SlotDeleter {
    void operator()(Slot* slot) const;
  };
  struct ClassifierDeleter {
    void operator()(wgap_classifier* classifier) const { wgap_classifier_destroy(classifier); }
  };
  struct Asked {  // of the kernel
    wgap_rule rule;
    int top_k, max_boxes;
    bool heatmaps;
  };
  struct Prepared {  // a picture at the network's input size
    std::int64_t number;
    int height, width;  // of the original
    int class_id;       // to localize; -1: the top_k by logit
  };
  struct Batch {  // images at the network's input size, one after the other
    const std::uint8_t* images;
    bool on_device;
    void* stream;
  };

  std::shared_ptr<const Bundle> bundle_;
  const int top_k_, max_boxes_, batch_size_, threads_;
  wgap_rule rule_;
  int height_, width_;
  std::optional<Network> network_;
  std::string backend_, precision_;
  std::unique_ptr<wgap_classifier, ClassifierDeleter> classifier_;
  std::mutex idle_lock_;
  std::vector<std::unique_ptr<Slot, SlotDeleter>> idle_;

  std::unique_ptr<Slot, SlotDeleter> take_slot();
  void give_back(std::unique_ptr<Slot, SlotDeleter> slot);
  Prepared prepare(const wgap_picture& picture, std::int64_t number, unsigned char* to) const;
  void require_class(std::int64_t class_id) const;
  void locate(Slot* slot, const Batch& batch, bool heatmaps, std::vector<Result>* results, wgap_timings* timings) const;
  void make_room(Slot* slot, std::int64_t count, const Asked& asked) const;
  void locate_there(Slot* slot, const Batch& batch, std::int64_t count, const Asked& asked,
                    const wgap_outputs* outputs) const;
  void locate_outputs(Slot* slot, const wgap_outputs& outputs, const std::uint8_t* images, std::int64_t count,
                      const Asked& asked) const;
  Found found(const Prepared& prepared, const wgap_record* records, const float* map) const;
};

// What one call works with; kept for the next one.
struct Localizer::Slot {
  wgap_workspace* workspace = nullptr;
  std::vector<std::uint8_t> batch;
  std::vector<wgap_record> records;
  std::vector<float> heatmaps;
  std::vector<std::int64_t> class_ids;
  std::vector<Prepared> prepared;  // of this batch, those that could be

  ~Slot() { wgap_workspace_destroy(workspace); }
};

}  // namespace wgap::sdk
