#include "localizer.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>

#include "outputs.h"

namespace wgap::sdk {
namespace {

void in_range(const char* name, int value, int low, int high) {
  if (value < low || value > high)
    fail(WGAP_DATA_ERROR, "%s must be a whole number in %d..%d, got %d", name, low, high, value);
}

// The rule that is asked for: the bundle's own in what is left out.
wgap_rule chosen_rule(const wgap_rule& own, const char* rule, const char* map) {
  wgap_rule asked = rule_of(rule != nullptr ? rule : rule_text(own).c_str(), map);
  if (map == nullptr && on_scores(asked) == on_scores(own)) asked.map = own.map;
  return asked;
}

std::string label_of(const char* path, std::int64_t number) {
  return path != nullptr ? path : text("image %lld", static_cast<long long>(number));
}

class Stopwatch {
 public:
  // The time since it was made, or since the last time, in milliseconds.
  void add_to(double* sum) {
    const auto now = std::chrono::steady_clock::now();
    *sum += std::chrono::duration<double, std::milli>(now - since_).count();
    since_ = now;
  }

 private:
  std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
};

wgap_status class_of(wgap_status kernel) {
  switch (kernel) {
    case WGAP_OUT_OF_MEMORY:
    case WGAP_BUSY:
    case WGAP_UNSUPPORTED_TARGET: return kernel;
    case WGAP_CLASS_OUT_OF_RANGE: return WGAP_DATA_ERROR;
    default: return WGAP_FEATURE_ERROR;
  }
}

}  // namespace

void Localizer::SlotDeleter::operator()(Slot* slot) const { delete slot; }

Localizer::Localizer(const char* path, const wgap_localizer_options& options)
    : bundle_(std::make_shared<Bundle>(path, options.trusted == 0)),
      top_k_(options.top_k),
      max_boxes_(options.max_boxes),
      batch_size_(options.batch_size),
      threads_(options.threads) {
  const Manifest& manifest = bundle_->manifest();
  const auto classes = static_cast<int>(manifest.classes.size());
  rule_ = chosen_rule(manifest.rule, options.rule, options.map);
  bundle_->require_rule(rule_);
  in_range("top_k", options.top_k, 1, classes);
  in_range("max_boxes", options.max_boxes, 1, WGAP_MOST_BOXES);
  in_range("batch_size", options.batch_size, 1, 4096);
  if (options.threads != 0) in_range("threads", options.threads, 1, WGAP_MOST_THREADS);
  if (options.slots != 0) in_range("slots", options.slots, 1, 1024);
  if (options.memory_limit < 0)
    fail(WGAP_DATA_ERROR, "memory_limit must be 0 or more bytes, got %lld",
         static_cast<long long>(options.memory_limit));
  if (options.streams != 0) in_range("streams", options.streams, 1, 1024);
  height_ = static_cast<int>(manifest.tensor("image")->shape[1]);
  width_ = static_cast<int>(manifest.tensor("image")->shape[2]);
  const std::vector<float> weight = bundle_->classifier();
  if (options.network != nullptr) {
    if (options.backend != nullptr || options.precision != nullptr || options.library != nullptr ||
        options.ungated != 0 || options.device != nullptr || options.slots != 0 || options.memory_limit != 0 ||
        options.hint != nullptr || options.streams != 0)
      fail(
          WGAP_DATA_ERROR,
          "backend, precision, library, ungated, device, slots, memory_limit, hint and streams are of the bundle's own "
          "network; leave them out with a network of your own");
  } else {
    const auto given = [](const char* text, const char* usual) { return std::string(text != nullptr ? text : usual); };
    network_.emplace(open_network(*bundle_, rule_, weight,
                                  {given(options.backend, "onnxruntime"), given(options.precision, "fp32"),
                                   options.library, options.device, options.threads, options.slots, options.batch_size,
                                   options.memory_limit, options.ungated != 0, options.hint, options.streams}));
  }
  wgap_error error = WGAP_ERROR_INIT;
  wgap_classifier* classifier = nullptr;
  const wgap_status status =
      wgap_classifier_create(weight.data(), weight.size() * sizeof(float), classes,
                             static_cast<std::int32_t>(manifest.output("features").shape[1]), &classifier, &error);
  if (status != WGAP_OK) throw Failure(class_of(status), error.text);
  classifier_.reset(classifier);
  if (options.network != nullptr) network_.emplace(*options.network);  // last: whoever fails leaves it to its owner
  backend_ = network_->told();
  precision_ = options.precision != nullptr ? options.precision : "fp32";
}

std::unique_ptr<Localizer::Slot, Localizer::SlotDeleter> Localizer::take_slot() {
  {
    const std::lock_guard<std::mutex> lock(idle_lock_);
    if (!idle_.empty()) {
      auto slot = std::move(idle_.back());
      idle_.pop_back();
      return slot;
    }
  }
  std::unique_ptr<Slot, SlotDeleter> slot(new Slot);
  wgap_error error = WGAP_ERROR_INIT;
  const wgap_status status = wgap_workspace_create(std::max(1, threads_), nullptr, &slot->workspace, &error);
  if (status != WGAP_OK) throw Failure(status, error.text);
  return slot;
}

void Localizer::give_back(std::unique_ptr<Slot, SlotDeleter> slot) {
  const std::lock_guard<std::mutex> lock(idle_lock_);
  idle_.push_back(std::move(slot));
}

// Decodes and resizes one picture; the only work before the network. Throws Failure with WGAP_IMAGE_ERROR.
Localizer::Prepared Localizer::prepare(const wgap_picture& picture, std::int64_t number, unsigned char* to) const {
  const std::string label = label_of(picture.path, number);
  wgap_image source = WGAP_IMAGE_INIT, target = WGAP_IMAGE_INIT;
  Pixels decoded;
  if (picture.path != nullptr)
    decoded = decode(read_image_file(picture.path), label);
  else if (picture.encoded != nullptr)
    decoded =
        decode({static_cast<const char*>(picture.encoded), static_cast<std::size_t>(picture.encoded_bytes)}, label);
  else if (picture.pixels == nullptr)
    fail(WGAP_IMAGE_ERROR, "%s: expected a path, the bytes of an image file, or pixels; got none of them",
         label.c_str());
  if (decoded.data) {
    source.height = decoded.height, source.width = decoded.width, source.channels = 3;
    source.data = decoded.data.get();
    source.row_bytes = static_cast<std::int64_t>(decoded.row_bytes());
    source.bytes = decoded.row_bytes() * static_cast<std::size_t>(decoded.height);
  } else {
    source = *picture.pixels;
    if (source.channels != 3)
      fail(WGAP_IMAGE_ERROR, "%s: expected RGB pixels of 3 channels, got %d", label.c_str(), source.channels);
  }
  target.height = height_, target.width = width_, target.channels = 3, target.data = to;
  target.row_bytes = static_cast<std::int64_t>(width_) * 3;
  target.bytes = static_cast<std::uint64_t>(target.row_bytes) * static_cast<std::uint64_t>(height_);
  wgap_error error = WGAP_ERROR_INIT;
  const wgap_status status = wgap_resize(&source, &target, &error);  // the bytes themselves where the sizes agree
  if (status == WGAP_OUT_OF_MEMORY || status == WGAP_UNSUPPORTED_TARGET) throw Failure(status, error.text);
  if (status != WGAP_OK) fail(WGAP_IMAGE_ERROR, "%s: %s", label.c_str(), error.text);
  return {number, source.height, source.width, picture.class_id};
}

// The network and the kernel on the pictures of one batch that could be prepared, which lie one after the other.
void Localizer::locate(Slot* slot, const Batch& batch, bool heatmaps, std::vector<Result>* results,
                       wgap_timings* timings) const {
  const auto total = static_cast<std::int64_t>(slot->prepared.size());
  const std::int64_t most = network_->get().largest > 0 ? network_->get().largest : total;
  const Asked asked{rule_, top_k_, max_boxes_, heatmaps};
  const bool chosen = slot->prepared[0].class_id >= 0;
  const std::int64_t classes = chosen ? 1 : top_k_;
  const std::size_t cells = static_cast<std::size_t>(height_) * width_;
  for (std::int64_t start = 0; start < total; start += most) {
    const std::int64_t count = std::min(most, total - start);
    const Prepared* const prepared = slot->prepared.data() + start;
    const Batch part{batch.images + static_cast<std::size_t>(start) * cells * 3, batch.on_device, batch.stream};
    slot->class_ids.clear();
    for (std::int64_t i = 0; i < count && chosen; ++i) slot->class_ids.push_back(prepared[i].class_id);
    Stopwatch watch;
    if (network_->get().locate != nullptr) {
      locate_there(slot, part, count, asked, nullptr);
      watch.add_to(&timings->network_ms);
    } else {
      const Network::Pass pass(*network_, part.images, count, read_by(rule_));
      watch.add_to(&timings->network_ms);
      locate_outputs(slot, pass.outputs(), part.images, count, asked);
      watch.add_to(&timings->kernel_ms);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      Result& result = (*results)[static_cast<std::size_t>(prepared[i].number)];
      for (std::int64_t rank = 0; rank < classes && result.status == WGAP_OK; ++rank) {
        const std::int64_t row = i * classes + rank;
        const wgap_record* const records = slot->records.data() + row * max_boxes_;
        if (records->status == WGAP_OK) {
          const float* const map = heatmaps ? slot->heatmaps.data() + static_cast<std::size_t>(row) * cells : nullptr;
          result.found.push_back(found(prepared[i], records, map));
          continue;
        }
        result.status = WGAP_FEATURE_ERROR;
        result.message = label_of(result.image ? result.image->c_str() : nullptr, prepared[i].number) + ": " +
                         wgap_status_string(static_cast<wgap_status>(records->status)) +
                         "; check the model and its input";
        result.found.clear();
      }
    }
  }
}

// Records and heat maps of a batch, for the slot's class ids if it has any.
void Localizer::make_room(Slot* slot, std::int64_t count, const Asked& asked) const {
  const auto rows = static_cast<std::size_t>(count * (slot->class_ids.empty() ? asked.top_k : 1));
  slot->records.resize(rows * static_cast<std::size_t>(asked.max_boxes));
  slot->heatmaps.resize(asked.heatmaps ? rows * static_cast<std::size_t>(height_) * width_ : 0);
}

// The network and its own kernel; outputs: in place of running the network.
void Localizer::locate_there(Slot* slot, const Batch& batch, std::int64_t count, const Asked& asked,
                             const wgap_outputs* outputs) const {
  make_room(slot, count, asked);
  std::fill(slot->records.begin(), slot->records.end(), wgap_record{});
  network_->locate({sizeof(wgap_locate_request), batch.on_device, batch.images, count, batch.stream, &asked.rule,
                    slot->class_ids.empty() ? nullptr : slot->class_ids.data(), asked.top_k, asked.max_boxes, outputs,
                    slot->records.data(), asked.heatmaps ? slot->heatmaps.data() : nullptr});
  const auto classes = static_cast<std::int32_t>(bundle_->manifest().classes.size());
  for (std::size_t row = 0; row < slot->records.size(); row += static_cast<std::size_t>(asked.max_boxes)) {
    const wgap_record& record = slot->records[row];
    if (record.status == WGAP_OK &&
        (record.boxes < 1 || record.boxes > asked.max_boxes || record.class_id < 0 || record.class_id >= classes))
      fail(WGAP_FEATURE_ERROR, "%s gave a record of class %d with %d boxes; expected 0..%d and 1..%d",
           network_->told().c_str(), record.class_id, record.boxes, classes - 1, asked.max_boxes);
  }
}

// The kernel on a batch's outputs, for the slot's class ids if it has any. Records whose outputs are not finite say so.
void Localizer::locate_outputs(Slot* slot, const wgap_outputs& outputs, const std::uint8_t* images, std::int64_t count,
                               const Asked& asked) const {
  const Manifest& manifest = bundle_->manifest();
  const std::size_t cells = static_cast<std::size_t>(height_) * width_;
  wgap_input input = WGAP_INPUT_INIT;
  input.images = count;
  input.classes = static_cast<std::int32_t>(manifest.classes.size());
  input.logits = outputs.logits, input.logits_bytes = outputs.logits_bytes;
  if (asked.rule.map != WGAP_MAP_NONE) {
    const std::vector<std::int64_t>& shape = manifest.output("features").shape;
    input.channels = static_cast<std::int32_t>(shape[1]);
    input.height = static_cast<std::int32_t>(shape[2]), input.width = static_cast<std::int32_t>(shape[3]);
    input.features = outputs.features, input.features_bytes = outputs.features_bytes;
  }
  if (on_scores(asked.rule)) {
    const std::vector<std::int64_t>& shape = manifest.output("foreground").shape;
    input.scores_height = static_cast<std::int32_t>(shape[2]), input.scores_width = static_cast<std::int32_t>(shape[3]);
    input.scores = outputs.foreground, input.scores_bytes = outputs.foreground_bytes;
  }
  if (asked.rule.kind == WGAP_RULE_FOREGROUND_COLOUR)
    input.pictures = images, input.pictures_bytes = static_cast<std::uint64_t>(count) * cells * 3;
  if (!slot->class_ids.empty())
    input.class_ids = slot->class_ids.data(), input.class_ids_bytes = slot->class_ids.size() * sizeof(std::int64_t);
  wgap_options options = WGAP_OPTIONS_INIT;
  options.map_height = height_, options.map_width = width_, options.top_k = asked.top_k;
  options.rule = asked.rule, options.max_boxes = asked.max_boxes;
  make_room(slot, count, asked);
  wgap_output output = WGAP_OUTPUT_INIT;
  output.records = slot->records.data(), output.records_bytes = slot->records.size() * sizeof(wgap_record);
  if (asked.heatmaps)
    output.heatmaps = slot->heatmaps.data(), output.heatmaps_bytes = slot->heatmaps.size() * sizeof(float);
  wgap_error error = WGAP_ERROR_INIT;
  const wgap_status status = wgap_localize(slot->workspace, classifier_.get(), &input, &options, &output, &error);
  const bool of_one =
      status == WGAP_FEATURES_NOT_FINITE || status == WGAP_LOGITS_NOT_FINITE || status == WGAP_SCORES_NOT_FINITE;
  if (status != WGAP_OK && !of_one) throw Failure(class_of(status), error.text);
}

Found Localizer::found(const Prepared& prepared, const wgap_record* records, const float* map) const {
  Found made{};
  for (int n = 0; n < records->boxes; ++n) {
    const std::int32_t* const box = records[n].box;
    const double height = prepared.height, width = prepared.width;  // multiplied first: whole results come out whole
    made.boxes.push_back(
        {box[0] * width / width_, box[1] * height / height_, box[2] * width / width_, box[3] * height / height_});
  }
  if (map != nullptr) made.heatmap.assign(map, map + static_cast<std::size_t>(height_) * width_);
  made.told = {sizeof(wgap_found),
               records->class_id,
               bundle_->manifest().classes[records->class_id].c_str(),
               records->score,
               records->level,
               records->threshold,
               records->degenerate,
               records->boxes,
               made.boxes.data(),
               nullptr,
               0,
               0};
  if (map != nullptr)
    made.told.heatmap = made.heatmap.data(), made.told.heatmap_height = height_, made.told.heatmap_width = width_;
  return made;
}

void Localizer::require_class(std::int64_t class_id) const {
  const auto classes = static_cast<std::int64_t>(bundle_->manifest().classes.size());
  if (class_id < 0 || class_id >= classes)
    fail(WGAP_DATA_ERROR, "no class %lld; expected an id of 0..%lld, or -1 for the best",
         static_cast<long long>(class_id), static_cast<long long>(classes - 1));
}

std::vector<Result> Localizer::run_device(const wgap_device_pictures& pictures, bool heatmaps, wgap_timings* timings) {
  if (network_->get().locate == nullptr)
    fail(WGAP_DATA_ERROR, "pictures on a GPU need a backend that is there too; %s takes those in host memory",
         network_->told().c_str());
  std::vector<Result> results(static_cast<std::size_t>(pictures.count));
  if (results.empty()) return results;
  auto slot = take_slot();
  slot->prepared.clear();
  for (std::int64_t i = 0; i < pictures.count; ++i) {
    if (pictures.class_ids != nullptr) require_class(pictures.class_ids[i]);
    const int class_id = pictures.class_ids != nullptr ? static_cast<int>(pictures.class_ids[i]) : -1;
    slot->prepared.push_back({i, height_, width_, class_id});
  }
  locate(slot.get(), {static_cast<const std::uint8_t*>(pictures.images), true, pictures.stream}, heatmaps, &results,
         timings);
  give_back(std::move(slot));
  return results;
}

std::vector<Result> Localizer::run(const wgap_picture* pictures, std::int64_t count, bool heatmaps,
                                   wgap_timings* timings) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (pictures[i].class_id != -1) require_class(pictures[i].class_id);
    if ((pictures[i].class_id < 0) != (pictures[0].class_id < 0))
      fail(WGAP_DATA_ERROR, "expected a class for every picture of a call, or -1 for every one");
  }
  std::vector<Result> results(static_cast<std::size_t>(count));
  auto slot = take_slot();
  Stopwatch watch;
  const std::size_t picture_bytes = static_cast<std::size_t>(height_) * width_ * 3;
  const auto most = static_cast<std::size_t>(std::min<std::int64_t>(count, batch_size_));
  if (slot->batch.size() < most * picture_bytes) slot->batch.resize(most * picture_bytes);
  for (std::int64_t first = 0; first < count; first += batch_size_) {
    slot->prepared.clear();
    for (std::int64_t i = first; i < std::min<std::int64_t>(count, first + batch_size_); ++i) {
      Result& result = results[static_cast<std::size_t>(i)];
      if (pictures[i].path != nullptr) result.image = pictures[i].path;
      try {
        slot->prepared.push_back(prepare(pictures[i], i, slot->batch.data() + slot->prepared.size() * picture_bytes));
      } catch (const Failure& failure) {
        if (failure.status() != WGAP_IMAGE_ERROR) throw;
        result.status = failure.status(), result.message = failure.text();
      } catch (const std::bad_alloc&) {
        throw;
      } catch (const std::exception& error) {  // whatever a picture makes happen is that picture's
        result.status = WGAP_IMAGE_ERROR;
        result.message = label_of(pictures[i].path, i) + ": cannot be taken as an image (" + error.what() + ")";
      }
    }
    watch.add_to(&timings->prepare_ms);
    if (!slot->prepared.empty()) locate(slot.get(), {slot->batch.data(), false, nullptr}, heatmaps, &results, timings);
    watch = Stopwatch();
  }
  give_back(std::move(slot));
  return results;
}

// -- JSON lines, as Python's json.dumps writes them --

void add_text(std::string* line, const std::string& value) {
  *line += '"';
  for (std::size_t i = 0; i < value.size();) {
    const auto first = static_cast<unsigned char>(value[i]);
    std::uint32_t point = first;
    std::size_t length = first < 0x80                    ? 1
                         : first >= 0xc2 && first < 0xe0 ? 2
                         : first >= 0xe0 && first < 0xf0 ? 3
                         : first >= 0xf0 && first < 0xf5 ? 4
                                                         : 0;
    bool whole = length > 0 && i + length <= value.size();
    if (whole && length > 1) {
      point = first & (0x7f >> length);
      for (std::size_t k = 1; k < length; ++k) {
        const auto next = static_cast<unsigned char>(value[i + k]);
        whole = whole && (next & 0xc0) == 0x80;
        point = point << 6 | (next & 0x3f);
      }
      whole = whole &&
              point >= (length == 2   ? 0x80U
                        : length == 3 ? 0x800U
                                      : 0x10000U) &&
              point < 0x110000 && (point < 0xd800 || point > 0xdfff);
    }
    if (!whole) length = 1, point = 0xdc00 + first;  // a byte of a path that is no text, as Python escapes it
    i += length;
    if (point == '"' || point == '\\')
      *line += {'\\', static_cast<char>(point)};
    else if (point == '\n' || point == '\r' || point == '\t' || point == '\b' || point == '\f')
      *line += {'\\', "btn?fr"[point - '\b']};
    else if (point >= 0x20 && point < 0x7f)
      *line += static_cast<char>(point);
    else if (point < 0x10000)
      *line += text("\\u%04x", point);
    else
      *line += text("\\u%04x\\u%04x", 0xd800 + ((point - 0x10000) >> 10), 0xdc00 + ((point - 0x10000) & 0x3ff));
  }
  *line += '"';
}

// Python's repr of a finite float: the shortest digits that read back as the same number.
void add_number(std::string* line, double value) {
  char digits[32];
  const bool small = value != 0 && (value < 0 ? -value : value) < 1e-4, large = (value < 0 ? -value : value) >= 1e16;
  const auto form = small || large ? std::chars_format::scientific : std::chars_format::fixed;
  const auto end = std::to_chars(digits, digits + sizeof digits, value, form).ptr;
  *line += std::string(digits, end);
  if (form == std::chars_format::fixed && std::find(digits, end, '.') == end) *line += ".0";
}

namespace {

void add_found(std::string* line, const Found& found) {
  const auto add_box = [&](const wgap_box& box) {
    *line += '[';
    for (const double edge : {box.x0, box.y0, box.x1, box.y1}) {
      if (line->back() != '[') *line += ", ";
      add_number(line, edge);
    }
    *line += ']';
  };
  *line += text("\"class_id\": %d, \"class_name\": ", found.told.class_id);
  add_text(line, found.told.class_name);
  *line += ", \"score\": ";
  add_number(line, static_cast<double>(found.told.score));
  *line += ", \"box\": ";
  add_box(found.boxes[0]);
  *line += ", \"boxes\": [";
  for (std::size_t i = 0; i < found.boxes.size(); ++i) {
    if (i > 0) *line += ", ";
    add_box(found.boxes[i]);
  }
  *line += "], \"threshold\": ";
  add_number(line, found.told.threshold);
  *line += found.told.degenerate != 0 ? ", \"degenerate\": true" : ", \"degenerate\": false";
}

}  // namespace

std::string json_line(const Result& result) {
  std::string line = "{\"image\": ";
  if (result.image)
    add_text(&line, *result.image);
  else
    line += "null";
  line += ", ";
  if (result.status != WGAP_OK) {
    line += "\"error\": ";
    add_text(&line, result.message);
    return line + ", \"code\": \"" + wgap_status_string(result.status) + "\"}";
  }
  add_found(&line, result.found[0]);
  if (result.found.size() > 1) {
    line += ", \"others\": [";
    for (std::size_t i = 1; i < result.found.size(); ++i) {
      line += i > 1 ? ", {" : "{";
      add_found(&line, result.found[i]);
      line += '}';
    }
    line += ']';
  }
  return line + "}";
}

}  // namespace wgap::sdk
