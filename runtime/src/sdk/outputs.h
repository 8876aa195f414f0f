// Where each output of a network stands in wgap_outputs, and which of them a rule reads.
#pragma once

#include <array>
#include <cstdint>

#include "wgap/runtime.h"

namespace wgap::sdk {

struct OutputPlace {
  const char* name;
  std::uint32_t bit;
  const float** data;
  std::uint64_t* bytes;
};

inline std::array<OutputPlace, 3> places_of(wgap_outputs* outputs) {
  return {{{"logits", WGAP_LOGITS, &outputs->logits, &outputs->logits_bytes},
           {"features", WGAP_FEATURES, &outputs->features, &outputs->features_bytes},
           {"foreground", WGAP_FOREGROUND, &outputs->foreground, &outputs->foreground_bytes}}};
}

inline bool on_scores(const wgap_rule& rule) {
  return rule.kind == WGAP_RULE_FOREGROUND || rule.kind == WGAP_RULE_FOREGROUND_COLOUR;
}

// Bits of the outputs that the rule reads.
inline std::uint32_t read_by(const wgap_rule& rule) {
  std::uint32_t bits = WGAP_LOGITS;
  if (rule.map != WGAP_MAP_NONE) bits |= WGAP_FEATURES;
  if (on_scores(rule)) bits |= WGAP_FOREGROUND;
  return bits;
}

}  // namespace wgap::sdk
