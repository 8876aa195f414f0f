#include "bundle.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>

#include "outputs.h"
#include "safetensors.h"
#include "sha256.h"

namespace wgap::sdk {
namespace {

constexpr std::size_t kLongestManifest = 64 << 20;
constexpr int kReadings = 5;  // of a bundle that is being written, before giving up
constexpr const char* kMissing = " is missing; copy the whole bundle or export it again";

// A bundle that another process writes while it is read.
struct Changed : Failure {
  using Failure::Failure;
};

// Refuses a path of the bundle that a link leads out of it.
void require_inside(const std::string& root, const std::string& path) {
  std::error_code failed;
  const auto base = std::filesystem::weakly_canonical(root, failed);
  const auto real = std::filesystem::weakly_canonical(root + "/" + path, failed);
  if (failed) return;  // a loop of links: it will not open
  if (const auto [end, _] = std::mismatch(base.begin(), base.end(), real.begin(), real.end()); end != base.end())
    fail(
        WGAP_BUNDLE_ERROR,
        "%s/%s leads out of the bundle, to %s; nothing outside is read, written or removed. Put the file or the folder "
        "itself in the link's place",
        root.c_str(), path.c_str(), real.c_str());
}

Manifest read(const std::string& root) {
  const std::string where = root + "/" + kManifest;
  if (!is_folder(root))
    fail(WGAP_BUNDLE_ERROR, "%s is not a folder; expected a bundle made by `wgap export`", root.c_str());
  if (!exists(where)) fail(WGAP_MANIFEST_ERROR, "%s not found; expected a bundle made by `wgap export`", where.c_str());
  require_inside(root, kManifest);
  OpenFile file(where, WGAP_BUNDLE_ERROR, kMissing);
  if (file.size() > static_cast<std::int64_t>(kLongestManifest))
    fail(WGAP_MANIFEST_ERROR, "%s has more than %zu MiB; is it a manifest?", where.c_str(), kLongestManifest >> 20);
  return read_manifest(file.read(kLongestManifest), where);
}

const char* or_none(const std::string& text) { return text.empty() ? "none" : text.c_str(); }

}  // namespace

Bundle::Bundle(std::string root, bool verified) : root_(std::move(root)), manifest_(read(root_)) {
  for (int reading = 1; verified; ++reading) {
    try {
      verify();
      return;
    } catch (const Changed&) {
      if (reading == kReadings) throw;
    }
    manifest_ = read(root_);
  }
}

void Bundle::verify() const {
  for (const File& file : manifest_.files) each_block(file, [](const char*, std::size_t) {});
}

void Bundle::refuse(wgap_status status, const std::string& why) const {
  bool changed = false;
  try {
    changed = read(root_).content != manifest_.content;
  } catch (const Failure&) {  // the file's error says more
  }
  if (changed)
    throw Changed(WGAP_BUNDLE_ERROR, root_ + " was changed by another process while it was read; run it again");
  throw Failure(status, why);
}

template <class Take>
void Bundle::each_block(const File& entry, Take take) const {
  require_inside(root_, entry.path);
  const std::string where = path(entry);
  if (!exists(where))
    refuse(WGAP_BUNDLE_ERROR, where + " is listed in wgap.json but missing; copy the whole bundle or export it again");
  OpenFile file(where, WGAP_BUNDLE_ERROR, kMissing);
  if (file.size() != entry.size)
    refuse(WGAP_HASH_MISMATCH_ERROR,
           where + text(" has %lld bytes, wgap.json says %lld: it was cut short or replaced; copy "
                        "the bundle again or export it again",
                        static_cast<long long>(file.size()), static_cast<long long>(entry.size)));
  Sha256 sum;
  std::vector<char> block(1 << 18);  // of the size of a cache
  for (std::int64_t left = entry.size; left > 0;) {
    const auto most = static_cast<std::size_t>(std::min<std::int64_t>(left, static_cast<std::int64_t>(block.size())));
    const std::size_t got = file.read(block.data(), most);
    if (got == 0) break;
    sum.add(block.data(), got);
    take(block.data(), got);
    left -= static_cast<std::int64_t>(got);
  }
  if (const std::string found = sum.hexadecimal(); found != entry.sha256)
    refuse(WGAP_HASH_MISMATCH_ERROR, where + " has sha256 " + found.substr(0, 12) + "..., wgap.json says " +
                                         entry.sha256.substr(0, 12) +
                                         "...: it was changed after export; copy the bundle again or export it again");
}

std::string Bundle::content(const File& entry) const {
  std::string whole;
  whole.reserve(static_cast<std::size_t>(std::min<std::int64_t>(entry.size, 1LL << 32)));
  each_block(entry, [&](const char* data, std::size_t bytes) { whole.append(data, bytes); });
  if (entry.role == "onnx" || entry.role == "rejected") require_self_contained(whole, path(entry));
  return whole;
}

std::string Bundle::unverified(const File& entry) const {
  require_inside(root_, entry.path);
  OpenFile file(path(entry), WGAP_BUNDLE_ERROR, kMissing);
  return file.read(static_cast<std::size_t>(file.size()));
}

const File& Bundle::file(const char* role, const char* precision) const {
  std::string have;
  for (const File& entry : manifest_.files) {
    if (entry.role == role && (*precision == 0 || entry.precision == precision)) return entry;
    have += (have.empty() ? "" : ", ") + entry.role + (entry.precision.empty() ? "" : " ") + entry.precision;
  }
  fail(WGAP_BUNDLE_ERROR, "%s holds no %s%s%s; it has: %s", root_.c_str(), role, *precision == 0 ? "" : " ", precision,
       have.c_str());
}

std::string Bundle::gate_command(const std::string& precision, const wgap_rule& rule,
                                 const std::string& backend) const {
  const std::string on = has_own_verdict(backend) ? " --backend " + backend : "";
  return "`wgap gate " + root_ + " --precision " + precision + on + " --rule " + rule_text(rule) + " --map " +
         map_text(rule) + " --images DIR`";
}

const File& Bundle::model_file(const std::string& precision, bool ungated, const wgap_rule& rule,
                               const std::string& backend) const {
  const File* found = nullptr;
  std::set<std::string> have;
  for (const char* const role : {"onnx", "rejected"})
    for (const File& entry : manifest_.files) {
      if (entry.role != role) continue;
      have.insert(entry.precision);
      if (found == nullptr && entry.precision == precision) found = &entry;
    }
  if (found == nullptr) {
    std::string names;
    for (const std::string& name : have) names += (names.empty() ? "" : ", ") + name;
    const std::string how =
        "; make it with `wgap calibrate " + root_ + " --precision " + precision + " --images DIR --gate DIR`";
    fail(WGAP_BUNDLE_ERROR, "%s holds no %s model; it has: %s%s", root_.c_str(), precision.c_str(), or_none(names),
         precision == "fp32" ? "" : how.c_str());
  }
  if (precision == "fp32") return *found;
  const std::string where = path(*found), float32 = file("onnx", "fp32").sha256;
  if (found->made_from && *found->made_from != float32)
    fail(WGAP_GATE_ERROR,
         "%s is stale: it was made from another float32 model than the bundle's, which `wgap foreground` or an export "
         "has "
         "replaced since; make it again with `wgap calibrate`",
         where.c_str());
  if (ungated) return *found;
  const std::string again = "run " + gate_command(precision, rule, backend);
  constexpr const char* kOr = ", or pass ungated (--ungated) to run it all the same";
  if (found->verdict(backend) == nullptr)
    fail(WGAP_GATE_ERROR, "%s: what %s costs in boxes was never measured%s%s; %s%s", where.c_str(), precision.c_str(),
         has_own_verdict(backend) ? " on " : "", has_own_verdict(backend) ? backend.c_str() : "", again.c_str(), kOr);
  const Gate& gate = *found->verdict(backend);
  if (gate.candidate_sha256 != found->sha256 || gate.float32_sha256 != float32)
    fail(WGAP_GATE_ERROR, "%s: its gate ran on other files than the bundle's; %s", where.c_str(), again.c_str());
  if (!equal(gate.rule, rule))
    fail(WGAP_GATE_ERROR,
         "%s: its gate compared boxes under the rule %s on the %s map, and it would now run under %s on the %s map; "
         "%s%s",
         where.c_str(), rule_text(gate.rule).c_str(), map_text(gate.rule), rule_text(rule).c_str(), map_text(rule),
         again.c_str(), kOr);
  if (!gate.passed || found->role == "rejected") {
    std::string reasons;
    for (const std::string& reason : gate.reasons) reasons += (reasons.empty() ? "" : "; ") + reason;
    fail(WGAP_GATE_ERROR, "%s: the gate refused this %s file: %s. Calibrate it anew%s", where.c_str(),
         precision.c_str(), reasons.empty() ? "it was rejected" : reasons.c_str(), kOr);
  }
  return *found;
}

void Bundle::require_rule(const wgap_rule& rule) const {
  if (on_scores(rule) && manifest_.tensor("foreground") == nullptr)
    fail(WGAP_BUNDLE_ERROR,
         "the rule %s reads the output foreground, which this bundle has not; add it with `wgap foreground BUNDLE "
         "--images "
         "DATA`, or take the rule adaptive or fixed:ETA",
         rule_text(rule).c_str());
  const bool whole =
      rule.kind == WGAP_RULE_ADAPTIVE || rule.map == WGAP_MAP_RECOMBINED || rule.map == WGAP_MAP_POSITIVE;
  for (const File& file : manifest_.files)
    if (whole && file.features_min.value_or(0.0) < 0.0)
      fail(WGAP_BUNDLE_ERROR,
           "the rule %s on the %s map needs features of 0 or more, this network's go down to %.3g; take the rule "
           "fixed:ETA on the signed map, or foreground after `wgap foreground`",
           rule_text(rule).c_str(), map_text(rule), *file.features_min);
}

std::vector<float> Bundle::classifier() const {
  const File& entry = file("classifier", "");
  const Safetensors tensors(content(entry), path(entry));
  const auto classes = static_cast<std::int64_t>(manifest_.classes.size());
  std::vector<float> weight = tensors.floats("weight", {classes, manifest_.output("features").shape[1]});
  for (const float value : tensors.floats("bias", {classes}))  // the kernel judges the weights
    if (!std::isfinite(value))
      fail(WGAP_BUNDLE_ERROR, "%s: expected finite numbers in bias, got %g; export the bundle again",
           path(entry).c_str(), static_cast<double>(value));
  return weight;
}

// -- ONNX by its wire format, as far as it takes to know that a file is all there is to it --

namespace {

struct Wire {
  const unsigned char *at, *end;

  std::uint64_t number() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (at >= end) throw Failure(WGAP_BUNDLE_ERROR, "cut short");
      const unsigned char byte = *at++;
      if (shift < 64) value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw Failure(WGAP_BUNDLE_ERROR, "a number without end");
  }
};

enum Message { kModel, kTrainingInfo, kFunction, kGraph, kNode, kAttribute, kSparse, kTensorProto, kNothing };

// In which fields of a message a tensor may lie (onnx.proto).
Message within(Message message, std::uint64_t number) {
  switch (message) {
    case kModel: return number == 7 ? kGraph : number == 20 ? kTrainingInfo : number == 25 ? kFunction : kNothing;
    case kTrainingInfo: return number == 1 || number == 2 ? kGraph : kNothing;
    case kFunction: return number == 7 ? kNode : number == 11 ? kAttribute : kNothing;
    case kGraph: return number == 1 ? kNode : number == 5 ? kTensorProto : number == 15 ? kSparse : kNothing;
    case kNode: return number == 5 ? kAttribute : kNothing;
    case kAttribute:
      return number == 5 || number == 10    ? kTensorProto
             : number == 6 || number == 11  ? kGraph
             : number == 22 || number == 23 ? kSparse
                                            : kNothing;
    case kSparse: return number == 1 || number == 2 ? kTensorProto : kNothing;
    default: return kNothing;
  }
}

void walk(Message message, Wire wire, const std::string& where, int depth) {
  if (depth > 64) throw Failure(WGAP_BUNDLE_ERROR, "graphs lie too deep within each other");
  std::string name;
  bool elsewhere = false;
  while (wire.at < wire.end) {
    const std::uint64_t key = wire.number(), number = key >> 3;
    const int kind = static_cast<int>(key & 7);
    std::uint64_t value = 0, size = 0;
    if (kind == 0)
      value = wire.number();
    else if (kind == 1 || kind == 5)
      size = kind == 1 ? 8 : 4;
    else if (kind == 2)
      size = wire.number();
    else
      throw Failure(WGAP_BUNDLE_ERROR, text("wire type %d", kind));
    if (size > static_cast<std::uint64_t>(wire.end - wire.at)) throw Failure(WGAP_BUNDLE_ERROR, "cut short");
    const Wire inner{wire.at, wire.at + size};
    wire.at += size;
    if (message == kTensorProto) {
      elsewhere |= number == 13 || (number == 14 && !(kind == 0 && value == 0));  // external_data, data_location
      if (number == 8 && kind == 2) name.assign(inner.at, inner.end);
    } else if (const Message next = within(message, number); kind == 2 && next != kNothing) {
      walk(next, inner, where, depth + 1);
    }
  }
  if (elsewhere)
    throw Failure(WGAP_BUNDLE_ERROR,
                  where + ": the values of the tensor " + in_quotes(name) +
                      " lie in another file, which no hash covers; save the model with its values inside (onnx.save "
                      "without save_as_external_data) and export it again");
}

}  // namespace

void require_self_contained(const std::string& content, const std::string& where) {
  const auto* const bytes = reinterpret_cast<const unsigned char*>(content.data());
  try {
    walk(kModel, {bytes, bytes + content.size()}, where, 0);
  } catch (const Failure& failure) {
    if (failure.text().rfind(where, 0) == 0) throw;
    fail(WGAP_BUNDLE_ERROR, "%s is not an ONNX file (%s); copy the bundle again or export it again", where.c_str(),
         failure.text().c_str());
  }
}

}  // namespace wgap::sdk
