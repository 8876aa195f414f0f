// Where each output of a network stands in wgap_outputs.
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

}  // namespace wgap::sdk
