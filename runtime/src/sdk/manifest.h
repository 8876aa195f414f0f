// wgap.json, typed: what the runtime needs of it. Every field is judged as the Python package's wgap.manifest does.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "wgap/wgap.h"

namespace wgap::sdk {

inline constexpr const char* kManifest = "wgap.json";

struct Tensor {
  std::string name, dtype, layout;
  std::vector<std::int64_t> shape;  // the first is the batch: -1
};

struct Gate {
  bool passed;
  std::vector<std::string> reasons;
  wgap_rule rule;
  std::string candidate_sha256, float32_sha256;
  std::string int8_sums;  // "exact", "saturating", or "" where it is not recorded
};

struct Engine {
  std::string flavor, version, architecture, platform, onnx_sha256;
  std::int64_t least, usual, most;   // of its profile: images
  std::vector<std::string> outputs;  // those that it kept; none: all
  bool version_compatible, strip_weights;
};

struct File {
  std::string path, role, precision, sha256;
  std::int64_t size;
  std::optional<Gate> gate;
  std::optional<Engine> engine = {};
  std::optional<std::string> made_from;  // of a lower-precision file: sha256 of the float32 one
  std::map<std::string, Gate> gates = {};
  std::optional<double> features_min = {};  // of an imported graph: measured; below 0, few rules have a meaning

  // The verdict that a backend goes by, its own where it rounds otherwise than ONNX Runtime; null where there is none.
  const Gate* verdict(const std::string& backend) const;
};

// Whether a verdict of ONNX Runtime says nothing about that backend.
bool has_own_verdict(const std::string& backend);

struct Manifest {
  int schema;
  std::vector<std::string> classes;
  std::vector<Tensor> inputs, outputs;
  wgap_rule rule;
  std::vector<File> files;
  std::string content;  // as it stands on disk

  const Tensor* tensor(std::string_view name) const;  // null where there is none
  const Tensor& output(std::string_view name) const { return *tensor(name); }
};

// Throws Failure with WGAP_MANIFEST_ERROR. where: what messages call it.
Manifest read_manifest(std::string text, const std::string& where);

// A rule from its text. Throws Failure with WGAP_RULE_ERROR.
wgap_rule rule_of(const char* text, const char* map);

// Judges a rule that a caller has made. Throws Failure with WGAP_RULE_ERROR.
void require_rule(const wgap_rule& rule);

bool equal(const wgap_rule& a, const wgap_rule& b);
std::string rule_text(const wgap_rule& rule);
const char* map_text(const wgap_rule& rule);

}  // namespace wgap::sdk
