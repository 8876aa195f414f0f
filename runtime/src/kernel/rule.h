// Rules: the one place that names them and judges them.
#pragma once

#include "wgap/kernel/problem.h"
#include "wgap/wgap.h"

namespace wgap {

// The rule as the kernel takes it.
wgap_status kernel_rule(const wgap_rule& given, Rule* rule, wgap_error* error);

}  // namespace wgap
