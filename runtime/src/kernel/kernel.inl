// One instruction set's kernel. The including file names WGAP_TARGET_NAMESPACE, WGAP_TARGET_SYMBOL, WGAP_TARGET_NAME
// and WGAP_TARGET_SUPPORTED, and is compiled with that set's flags. No standard library templates here: their instances
// would be shared with translation units that must run on older machines.
#include "resize.h"
#include "serial_block.h"
#include "targets.h"

namespace wgap {
namespace {

bool supported() { return WGAP_TARGET_SUPPORTED; }

std::size_t scratch_bytes(const Shape& shape) {
  Scratch scratch;
  return static_cast<std::size_t>(lay_out<SerialBlock>(shape, nullptr, &scratch));
}

void prepare(const Shape& shape, void* memory) {
  Scratch scratch;
  lay_out<SerialBlock>(shape, memory, &scratch);
  SerialBlock block;
  prepare_block(block, shape, scratch);
}

void localize(const Problem& problem, void* memory, Record* record) {
  Scratch scratch;
  lay_out<SerialBlock>(problem.shape, memory, &scratch);
  SerialBlock block;
  localize_block(block, problem, scratch, record);
}

#if defined(WGAP_PROFILE)
void profile(const Problem& problem, void* memory, Record* record, u64* ticks) {
  Scratch scratch;
  lay_out<SerialBlock>(problem.shape, memory, &scratch);
  ProfilingBlock block;
  localize_block(block, problem, scratch, record);
  for (int stage = 0; stage < kStages; ++stage) ticks[stage] = block.spent[stage];
}

// The least that any kernel must do; benchmarks compare with it.
u64 read_once(const void* memory, std::size_t bytes) {
  const u64* const words = static_cast<const u64*>(memory);
  constexpr std::size_t kChains = 64;  // independent sums, so that only the loads are waited for
  u64 sums[kChains] = {};
  const std::size_t count = bytes / sizeof(u64) / kChains * kChains;
  for (std::size_t i = 0; i < count; i += kChains)
    for (std::size_t j = 0; j < kChains; ++j) sums[j] += words[i + j];
  u64 sum = 0;
  for (const u64 s : sums) sum += s;
  return sum;
}
#endif

}  // namespace

extern const Target WGAP_TARGET_SYMBOL;
const Target WGAP_TARGET_SYMBOL = {WGAP_TARGET_NAME, supported,    scratch_bytes, prepare,
                                   localize,         resize_bytes, resize_image,
#if defined(WGAP_PROFILE)
                                   profile,          read_once
#endif
};

}  // namespace wgap
