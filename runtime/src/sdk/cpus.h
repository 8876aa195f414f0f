// The processors that this process may use, as the Python package's wgap.runtime.cpus tells them.
#pragma once

namespace wgap::sdk {

// What affinity and the control group's quota leave, at least 1.
int allowed_cpus();

// Whether ONNX Runtime's INT8 sums saturate here: on x86-64 without VNNI.
bool int8_sums_saturate();

}  // namespace wgap::sdk
