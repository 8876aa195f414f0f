// Rules: the one place that names them and judges them.
#pragma once

#include "wgap/kernel/problem.h"
#include "wgap/wgap.h"

namespace wgap {

// Writes a sentence, printf's way, where `error` is not null; returns the status.
wgap_status fail(wgap_error* error, wgap_status status, const char* format, ...) __attribute__((format(printf, 3, 4)));

// "recombined", "positive", "signed"; null for another number.
const char* map_name(int map);

// The rule as the kernel takes it.
wgap_status kernel_rule(const wgap_rule& given, Rule* rule, wgap_error* error);

}  // namespace wgap
