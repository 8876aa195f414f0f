// A bundle's golden cases, as the Python package's wgap.runtime.selftest runs them.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <utility>

#include "json.h"
#include "localizer.h"
#include "outputs.h"
#include "safetensors.h"

namespace wgap::sdk {
namespace {

constexpr double kMapTolerance = 1e-6;
constexpr int kBoxTolerance = 1;       // map pixels, end to end: the kernel gets none
constexpr double kLowerOverlap = 0.5;  // IoU of one image's boxes at lower precision
constexpr double kExactFeatures = 1e-4;

// Largest difference of features and logits, relative to their largest magnitude.
double feature_tolerance(const std::string& precision) {
  return precision == "fp16" ? 1e-2 : precision == "bf16" ? 8e-2 : precision == "int8" ? 0.25 : kExactFeatures;
}

class Report {
 public:
  bool passed = true;

  void add(std::size_t number, const std::string& stage, double measured, double limit, const std::string& note = "") {
    const bool ok = measured <= limit;  // NaN is not
    passed = passed && ok;
    checks_ += text("%s{\"case\": %zu, \"stage\": ", checks_.empty() ? "" : ", ", number);
    add_text(&checks_, stage);
    // Whole numbers stand without a point where Python has them so: limits of 0 and 1, and what was counted.
    const bool counted = measured == std::floor(measured) && stage != "kernel threshold" && limit == std::floor(limit);
    checks_ += ", \"measured\": ";
    if (!std::isfinite(measured))
      checks_ += std::isnan(measured) ? "NaN" : "Infinity";
    else if (counted)
      checks_ += text("%.0f", measured);
    else
      add_number(&checks_, measured);
    checks_ += ", \"limit\": ";
    if (limit == std::floor(limit))
      checks_ += text("%.0f", limit);
    else
      add_number(&checks_, limit);
    checks_ += ", \"note\": ";
    add_text(&checks_, note);
    checks_ += ok ? ", \"ok\": true}" : ", \"ok\": false}";
  }
  void add_same(std::size_t number, const std::string& stage, double got, double expected) {
    std::string note = "expected ";
    const auto shown = [&](double value) {
      if (stage == "kernel degenerate")
        note += value != 0 ? "True" : "False";
      else if (stage == "kernel threshold")
        add_number(&note, value);
      else
        note += text("%.0f", value);
    };
    shown(expected);
    note += ", got ";
    shown(got);
    add(number, stage, std::abs(got - expected), 0, got == expected ? "" : note);
  }
  void add_box(std::size_t number, const std::string& stage, const std::int32_t* got,
               const std::vector<std::int32_t>& expected, int limit) {
    std::int64_t worst = 0;
    for (std::size_t i = 0; i < 4; ++i)
      worst = std::max<std::int64_t>(worst, std::abs(std::int64_t{got[i]} - expected[i]));
    const auto shown = [](const std::int32_t* box) { return text("[%d, %d, %d, %d]", box[0], box[1], box[2], box[3]); };
    add(number, stage, static_cast<double>(worst), limit,
        worst == 0 ? "" : "expected " + shown(expected.data()) + ", got " + shown(got));
  }
  void warn(const std::string& warning) {
    if (!warnings_.empty()) warnings_ += ", ";
    add_text(&warnings_, warning);
  }
  std::string json(const std::string& bundle, const wgap_network& network) const {
    std::string made = "{\"bundle\": ";
    add_text(&made, bundle);
    made += std::string(", \"ok\": ") + (passed ? "true" : "false") + ", \"checks\": [" + checks_ + "], \"backend\": ";
    add_text(&made, network.name != nullptr ? network.name : "");
    made += ", \"backend_version\": ";
    add_text(&made, network.version != nullptr ? network.version : "");
    return made + ", \"warnings\": [" + warnings_ + "]}";
  }

 private:
  std::string checks_, warnings_;
};

double overlap(const std::int32_t* a, const std::vector<std::int32_t>& b) {
  const double width = std::min(a[2], b[2]) - std::max(a[0], b[0]),
               height = std::min(a[3], b[3]) - std::max(a[1], b[1]);
  const double shared = std::max(0.0, width) * std::max(0.0, height);
  const auto area = [](const std::int32_t* box) { return (box[2] - box[0]) * static_cast<double>(box[3] - box[1]); };
  return shared / (area(a) + area(b.data()) - shared);
}

double worst_difference(const float* a, const float* b, std::size_t count) {
  double worst = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    worst = std::isnan(difference) ? difference : std::max(worst, difference);
    if (std::isnan(worst)) break;
  }
  return worst;
}

// Of that output; without a name where it is none that a rule reads.
OutputPlace place_of(wgap_outputs* in, const std::string& name) {
  for (const OutputPlace& place : places_of(in))
    if (name == place.name) return place;
  return {};
}

}  // namespace

std::string Localizer::selftest(bool* passed) {
  struct Case {
    Safetensors tensors;
    wgap_rule rule;
  };
  const Manifest& manifest = bundle_->manifest();
  std::vector<Case> cases;
  for (const File& file : manifest.files) {
    if (file.role != "golden") continue;
    Safetensors tensors(bundle_->content(file), bundle_->path(file));
    const auto rule = tensors.metadata().find("rule");
    wgap_rule made = WGAP_RULE_INIT;  // wgap 0.1 knew no other
    try {
      if (rule != tensors.metadata().end() && !rule->second.empty()) made = rule_of(read_json(rule->second));
    } catch (const Failure& failure) {
      fail(WGAP_BUNDLE_ERROR, "%s is not a golden case (%s); export the bundle again", bundle_->path(file).c_str(),
           failure.what());
    }
    cases.push_back({std::move(tensors), made});
  }
  if (cases.empty())
    fail(WGAP_BUNDLE_ERROR, "%s holds no golden cases to test against; export it again", bundle_->root().c_str());
  Report report;
  const auto own = [this](const Case& one) { return equal(one.rule, rule_); };
  const bool any = std::any_of(cases.begin(), cases.end(), own);
  if (any) {
    cases.erase(std::remove_if(cases.begin(), cases.end(), [&](const Case& one) { return !own(one); }), cases.end());
  } else {
    for (std::size_t i = 0; i < cases.size(); ++i) {
      const auto same = [&](const Case& one) { return equal(one.rule, cases[i].rule); };
      if (std::find_if(cases.begin(), cases.end(), same) != cases.begin() + static_cast<std::ptrdiff_t>(i)) continue;
      report.warn("nothing was tested under the rule " + rule_text(rule_) + " on the " + map_text(rule_) +
                  " map: golden cases were made under " + rule_text(cases[i].rule) + " on the " +
                  map_text(cases[i].rule) + " map; export the bundle again under the rule that it shall have");
    }
  }
  auto slot = take_slot();
  const std::size_t cells = static_cast<std::size_t>(height_) * width_;
  const double tolerance = feature_tolerance(precision_);
  for (std::size_t number = 0; number < cases.size(); ++number) {
    const auto& [golden, rule] = cases[number];
    struct Output {
      const char* name;
      std::vector<float> expected;
    };
    wgap_outputs given = WGAP_OUTPUTS_INIT;
    std::vector<Output> outputs;
    for (const Tensor& tensor : manifest.outputs) {
      const OutputPlace place = place_of(&given, tensor.name);
      if (place.name == nullptr) continue;
      if ((place.bit & read_by(rule)) != 0 || golden.find(tensor.name) != nullptr)
        outputs.push_back(
            {tensor.name.c_str(), golden.floats(tensor.name.c_str(), {tensor.shape.begin() + 1, tensor.shape.end()})});
    }
    const bool has_image = golden.find("image") != nullptr;
    const auto image = has_image ? golden.read<std::uint8_t>("image", "U8", {height_, width_, 3})
                                 : std::vector<std::uint8_t>(cells * 3);
    const auto box = golden.read<std::int32_t>("box", "I32", {4});
    const std::int32_t class_id = golden.read<std::int32_t>("class_id", "I32", {1})[0];
    const std::int32_t level = golden.read<std::int32_t>("level", "I32", {1})[0];
    const double threshold = golden.read<double>("threshold", "F64", {1})[0];
    const bool degenerate = golden.read<std::uint8_t>("degenerate", "U8", {1})[0] != 0;
    const std::vector<float> map = golden.floats("map", {height_, width_});

    for (const Output& output : outputs) {
      const OutputPlace place = place_of(&given, output.name);
      *place.data = output.expected.data(), *place.bytes = output.expected.size() * sizeof(float);
    }
    slot->class_ids.clear();
    const bool there = network_->get().locate != nullptr;  // the kernel is the network's own
    const Batch batch{image.data(), false, nullptr};
    if (there)
      locate_there(slot.get(), batch, 1, {rule, 1, 1, true}, &given);
    else
      locate_outputs(slot.get(), given, image.data(), 1, {rule, 1, 1, true});
    const wgap_record record = slot->records[0];
    if (record.status != WGAP_OK)
      fail(WGAP_FEATURE_ERROR, "golden case %zu: %s", number,
           wgap_status_string(static_cast<wgap_status>(record.status)));
    report.add_same(number, "kernel class", record.class_id, class_id);
    report.add_same(number, "kernel level", record.level, level);
    report.add_same(number, "kernel threshold", record.threshold, threshold);
    report.add_same(number, "kernel degenerate", record.degenerate != 0, degenerate);
    report.add_box(number, "kernel box", record.box, box, 0);
    report.add(number, "kernel map", worst_difference(slot->heatmaps.data(), map.data(), cells), kMapTolerance);
    if (!has_image) continue;

    std::uint32_t bits = WGAP_LOGITS | static_cast<std::uint32_t>(WGAP_FEATURES);
    if (manifest.tensor("foreground") != nullptr) bits |= WGAP_FOREGROUND;
    const bool lower = tolerance > kExactFeatures;
    std::optional<Network::Pass> pass(std::in_place, *network_, image.data(), 1, bits);
    wgap_outputs got = pass->outputs();
    for (const Output& output : outputs) {
      const OutputPlace place = place_of(&got, output.name);
      const bool is_read = output.name != std::string("features") || rule.map != WGAP_MAP_NONE;
      if (*place.data == nullptr && !is_read) continue;  // an engine may lack it
      if (*place.data == nullptr || *place.bytes < output.expected.size() * sizeof(float))
        fail(WGAP_FEATURE_ERROR, "golden case %zu: the network gave no whole %s", number, output.name);
      float largest = 0;
      for (const float value : output.expected) largest = std::max(largest, std::abs(value));
      report.add(number, output.name,
                 worst_difference(*place.data, output.expected.data(), output.expected.size()) /
                     std::max(static_cast<double>(largest), 1e-30),
                 tolerance);
    }
    if (lower) slot->class_ids.assign(1, class_id);
    if (there) {
      pass.reset();  // it holds one of the network's slots, of which there may be no other
      locate_there(slot.get(), batch, 1, {rule, 1, 1, false}, nullptr);
    } else {
      locate_outputs(slot.get(), got, image.data(), 1, {rule, 1, 1, false});
    }
    const wgap_record& end = slot->records[0];
    if (end.status != WGAP_OK)
      fail(WGAP_FEATURE_ERROR, "golden case %zu: %s", number, wgap_status_string(static_cast<wgap_status>(end.status)));
    if (lower) {
      report.add(number, "end to end box, 1 - IoU", 1 - overlap(end.box, box), 1 - kLowerOverlap);
    } else {
      report.add_same(number, "end to end level", end.level, level);
      report.add_box(number, "end to end box", end.box, box, kBoxTolerance);
    }
  }
  give_back(std::move(slot));
  *passed = report.passed;
  return report.json(bundle_->root(), network_->get());
}

}  // namespace wgap::sdk
