// Every byte of an answer is the same whatever the caller's rounding mode and treatment of subnormal numbers, on every
// target and with helpers; and the caller's settings are as before.
#include <cfenv>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "batch.h"

namespace {

constexpr const char* kRules[] = {"adaptive", "fixed:0.35", "fixed:0.7"};
constexpr const char* kMaps[] = {"recombined", "positive", "signed"};

// The thread's settings as a number, without the flags of what has happened.
unsigned settings() {
#if defined(__x86_64__)
  return _mm_getcsr() & ~0x3fU;
#else
  return static_cast<unsigned>(std::fegetround());
#endif
}

// What the library writes under each rule, and the rules themselves. The workspace is made under the caller's settings,
// too: its threads inherit them.
std::string answers(const std::vector<Batch*>& batches, int threads, const char* target) {
  const Workspace workspace(threads, target);
  std::string all;
  for (Batch* const batch : batches)
    for (const char* const rule : kRules)
      for (const char* const map : kMaps) {
        EXPECT(wgap_rule_parse(rule, map, &batch->options.rule, nullptr) == WGAP_OK);
        all.append(reinterpret_cast<const char*>(&batch->options.rule), sizeof(wgap_rule));
        batch->want(3, 61, 83, true, true);
        EXPECT(batch->localize(workspace) == WGAP_OK);
        all += batch->written();
      }
  return all;
}

struct Setting {
  const char* name;
  void (*set)();
};

const Setting kSettings[] = {
    {"upward", [] { std::fesetround(FE_UPWARD); }},
    {"downward", [] { std::fesetround(FE_DOWNWARD); }},
    {"toward zero", [] { std::fesetround(FE_TOWARDZERO); }},
#if defined(__x86_64__)
    {"flushed subnormals", [] { _mm_setcsr(_mm_getcsr() | 0x8040); }},  // FTZ, DAZ
    {"flushed subnormals, upward", [] { _mm_setcsr(_mm_getcsr() | 0x8040 | _MM_ROUND_UP); }},
#endif
};

}  // namespace

int main() {
  // The second batch's maps are subnormal but for a corner, and so are their heat maps.
  Batch usual(6, 5, 24, 10, 10), small(6, 5, 24, 10, 10, 1);
  for (std::size_t i = 0; i < small.features.size(); ++i)
    if (i % 100 > 2) small.features[i] *= 0x1p-130f;
  const std::vector<Batch*> batches = {&usual, &small};
  const std::string expected = answers(batches, 1, "baseline");
  int subnormal = 0;
  for (const float u : small.heatmaps) subnormal += std::fpclassify(u) == FP_SUBNORMAL;
  EXPECT(subnormal > 1000);
  std::fenv_t before;
  std::fegetenv(&before);
  for (const char* const* target = wgap_targets(); *target != nullptr; ++target)
    for (const int threads : {1, 3}) {
      EXPECT(answers(batches, threads, *target) == expected);
      for (const Setting& setting : kSettings) {
        setting.set();
        const unsigned held = settings();
        const std::string found = answers(batches, threads, *target);
        const unsigned left = settings();
        std::fesetenv(&before);
        if (found != expected || left != held) {
          std::fprintf(stderr, "%s, %d threads, %s: %s\n", *target, threads, setting.name,
                       left != held ? "the caller's settings were changed" : "other bytes");
          return 1;
        }
      }
    }
  return 0;
}
