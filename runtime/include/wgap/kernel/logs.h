// The table that the colour step reads instead of computing logarithms, so that they are the same everywhere. Host only.
#pragma once

#include <cmath>

#include "wgap/kernel/problem.h"

namespace wgap {

// round(2^16 ln n) for n in [first, end), and 0 for n = 0: no entry up to 2^20 + 512 comes so near to a half that a
// logarithm of 52 bits could miss it.
inline void fill_logs(int* table, u64 first, u64 end) {
  for (u64 n = first; n < end; ++n)
    table[n] = n == 0 ? 0 : static_cast<int>(std::llrint(std::log(static_cast<double>(n)) * (1 << kScoreShift)));
}

}  // namespace wgap
