// Engines of a bundle: which there are, and whether one may be deserialised here, as the Python package's
// wgap.runtime.engine judges it.
#pragma once

#include <string>

#include "bundle.h"

namespace wgap::sdk {

// What is to run an engine.
struct Host {
  std::string flavor;              // "tensorrt" or "tensorrt_rtx"
  std::string version;             // of that library
  std::string compute_capability;  // of the GPU, such as "8.6"; empty where it is unknown
  std::string platform;            // such as "linux x86_64"
};

std::string this_platform();

// The engine of that flavor and precision with the fewest mismatches; then one that has its weights, then the one with
// the fewest outputs.
const File& engine_file(const Bundle& bundle, const Host& host, const std::string& precision, const wgap_rule& rule);

// Whether the manifest says that it fits; the plan itself is not read.
bool engine_fits(const Bundle& bundle, const File& engine, const Host& host, const wgap_rule& rule);

// The plan, the very bytes that were checked. batch: images per call, 0 leaves the profile out. Throws Failure with
// WGAP_ENGINE_MISMATCH_ERROR and a table of everything that differs.
std::string preflight(const Bundle& bundle, const File& engine, const Host& host, std::int64_t batch, bool ungated,
                      const wgap_rule& rule);

}  // namespace wgap::sdk
