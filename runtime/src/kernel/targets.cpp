#include "targets.h"

#include <cstdlib>
#include <cstring>

namespace wgap {

namespace {

#if defined(WGAP_X86)
const Target* const kTargets[] = {&kBaseline, &kAvx2, &kAvx512};
#else
const Target* const kTargets[] = {&kBaseline};
#endif
constexpr int kTargetCount = sizeof kTargets / sizeof kTargets[0];

}  // namespace

const char* const* supported_names() {
  struct Names {
    const char* list[kTargetCount + 1] = {};
    Names() {
      int n = 0;
      for (const Target* target : kTargets)
        if (target->supported()) list[n++] = target->name;
    }
  };
  static const Names names;
  return names.list;
}

const Target* target_named(const char* name) {
  for (const Target* target : kTargets)
    if (std::strcmp(target->name, name) == 0) return target->supported() ? target : nullptr;
  return nullptr;
}

const Target& best_target() {
  static const Target* const best = [] {
    const Target* found = &kBaseline;
    for (const Target* target : kTargets)
      if (target->supported()) found = target;
    return found;
  }();
  return *best;
}

const Target* default_target() {
  static const Target* const chosen = [] {
    const char* const name = std::getenv("WGAP_TARGET");
    return name != nullptr && *name != '\0' ? target_named(name) : &best_target();
  }();
  return chosen;
}

}  // namespace wgap
