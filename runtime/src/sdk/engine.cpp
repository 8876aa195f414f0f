#include "engine.h"

#include <sys/utsname.h>

#include <algorithm>
#include <cctype>
#include <sstream>
#include <tuple>

#include "outputs.h"
#include "sha256.h"

namespace wgap::sdk {
namespace {

constexpr const char* kPortable = "portable";  // TensorRT-RTX's default: compiled on the GPU it is loaded on

struct Mismatch {
  std::string what, expected, found;
};

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, by);) parts.push_back(part);
  return parts;
}

std::string joined(const std::vector<std::string>& words, const char* by) {
  std::string made;
  for (const std::string& word : words) made += (made.empty() ? "" : by) + word;
  return made;
}

// "8.10" is after "8.6"; what is no number is left out.
std::vector<std::int64_t> numbers(const std::string& version) {
  std::vector<std::int64_t> made;
  for (const std::string& part : split(version, '.')) {
    const bool digits = !part.empty() && part.size() < 18 &&
                        std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
    if (digits) made.push_back(std::stoll(part));
  }
  return made;
}

template <class T>
bool contains(const std::vector<T>& all, const T& one) {
  return std::find(all.begin(), all.end(), one) != all.end();
}

// Whether an engine for "portable", "8.0+" or a list such as "8.6,8.9" runs on that compute capability.
bool fits(const std::string& architecture, const std::string& capability) {
  if (architecture == kPortable)
    return contains<std::string>({"8.0", "8.6", "8.9"}, capability) ||
           numbers(capability) >= std::vector<std::int64_t>{12, 0};
  if (!architecture.empty() && architecture.back() == '+')
    return numbers(capability) >= numbers(architecture.substr(0, architecture.size() - 1));
  return contains(split(architecture, ','), capability);
}

bool same_version(const Engine& made, const std::string& running) {
  if (made.version == running) return true;
  if (made.flavor != "tensorrt" || !made.version_compatible)
    return false;  // TensorRT-RTX promises nothing between releases
  const std::vector<std::int64_t> built = numbers(made.version), here = numbers(running);
  return !built.empty() && !here.empty() && built[0] == here[0] && built <= here;
}

std::vector<std::string> built_outputs(const Bundle& bundle, const Engine& made) {
  std::vector<std::string> names;
  for (const Tensor& tensor : bundle.manifest().outputs)
    if (made.outputs.empty() || contains(made.outputs, tensor.name)) names.push_back(tensor.name);
  return names;
}

std::vector<std::string> names_read_by(const wgap_rule& rule) {
  std::vector<std::string> names;
  wgap_outputs none = WGAP_OUTPUTS_INIT;
  for (const OutputPlace& output : places_of(&none))
    if ((output.bit & read_by(rule)) != 0) names.emplace_back(output.name);
  return names;
}

// Of the bundle's model of that precision, gated or not; empty where there is none or it is stale.
std::string model_sha256(const Bundle& bundle, const std::string& precision) {
  try {
    return bundle.model_file(precision, true, bundle.manifest().rule).sha256;
  } catch (const Failure&) {
    return "";
  }
}

// What the manifest says against the host; the plan itself is not read.
std::vector<Mismatch> mismatches(const Bundle& bundle, const File& file, const Host& host, std::int64_t batch,
                                 const wgap_rule& rule) {
  const Engine& made = *file.engine;
  std::vector<Mismatch> rows;
  if (made.flavor != host.flavor)
    rows.push_back({"flavor", host.flavor, made.flavor});
  else if (!same_version(made, host.version))
    rows.push_back({"version", host.version, made.version});
  if (!host.compute_capability.empty() && !fits(made.architecture, host.compute_capability))
    rows.push_back({"GPU architecture", host.compute_capability, made.architecture});
  if (made.platform != host.platform) rows.push_back({"platform", host.platform, made.platform});
  if (batch != 0 && (batch < made.least || batch > made.most))
    rows.push_back({"batch", std::to_string(batch), std::to_string(made.least) + " to " + std::to_string(made.most)});
  const std::vector<std::string> have = built_outputs(bundle, made), read = names_read_by(rule);
  if (!std::all_of(read.begin(), read.end(), [&](const std::string& name) { return contains(have, name); }))
    rows.push_back({"outputs, for the rule " + rule_text(rule), joined(read, ", "), joined(have, ", ")});
  if (const std::string current = model_sha256(bundle, file.precision); current != made.onnx_sha256)
    rows.push_back({file.precision + " model, sha256",
                    current.empty() ? "a model of that precision" : current.substr(0, 12) + "...",
                    made.onnx_sha256.substr(0, 12) + "..." + (current.empty() ? ", not in the bundle" : "")});
  return rows;
}

std::string command(const Bundle& bundle, const Host& host, const std::string& precision) {
  return "`wgap build " + bundle.root() + " --flavor " + host.flavor + " --precision " + precision + "`";
}

std::string table(const std::string& where, std::vector<Mismatch> rows, const std::string& build) {
  rows.insert(rows.begin(), {"what", "expected", "found"});
  std::size_t first = 0, second = 0;
  for (const Mismatch& row : rows)
    first = std::max(first, row.what.size()), second = std::max(second, row.expected.size());
  std::string made = where + " does not fit and was not loaded:\n";
  for (const Mismatch& row : rows)
    made += "  " + row.what + std::string(first - row.what.size() + 2, ' ') + row.expected +
            std::string(second - row.expected.size() + 2, ' ') + row.found + "\n";
  return made + "Build one that does, on this machine: " + build;
}

}  // namespace

std::string this_platform() {
  utsname about = {};
  uname(&about);
  return std::string("linux ") + about.machine;
}

const File& engine_file(const Bundle& bundle, const Host& host, const std::string& precision, const wgap_rule& rule) {
  const File* best = nullptr;
  std::tuple<std::size_t, bool, std::size_t> least;
  std::vector<std::string> have;
  for (const File& file : bundle.manifest().files) {
    if (file.role != "engine") continue;
    have.push_back(file.engine->flavor + " " + file.precision);
    if (file.engine->flavor != host.flavor || file.precision != precision) continue;
    const std::tuple unfit(mismatches(bundle, file, host, 0, rule).size(), file.engine->strip_weights,
                           built_outputs(bundle, *file.engine).size());
    if (best == nullptr || unfit < least) best = &file, least = unfit;
  }
  if (best == nullptr)
    fail(WGAP_ENGINE_ERROR, "%s holds no %s engine of precision %s; its engines: %s. Build one: %s",
         bundle.root().c_str(), host.flavor.c_str(), precision.c_str(),
         have.empty() ? "none" : joined(have, ", ").c_str(), command(bundle, host, precision).c_str());
  return *best;
}

bool engine_fits(const Bundle& bundle, const File& file, const Host& host, const wgap_rule& rule) {
  return mismatches(bundle, file, host, 0, rule).empty();
}

std::string preflight(const Bundle& bundle, const File& file, const Host& host, std::int64_t batch, bool ungated,
                      const wgap_rule& rule) {
  const std::string where = bundle.path(file), build = command(bundle, host, file.precision);
  if (!exists(where))
    fail(WGAP_ENGINE_ERROR, "%s is missing; copy the whole bundle or build it again: %s", where.c_str(), build.c_str());
  std::string plan = bundle.unverified(file);
  std::vector<Mismatch> rows;
  Sha256 sum;
  sum.add(plan.data(), plan.size());
  const std::string found = sum.hexadecimal();
  if (static_cast<std::int64_t>(plan.size()) != file.size)
    rows.push_back({"bytes", std::to_string(file.size), std::to_string(plan.size())});
  else if (found != file.sha256)
    rows.push_back({"sha256", file.sha256.substr(0, 12) + "...", found.substr(0, 12) + "..."});
  for (Mismatch& row : mismatches(bundle, file, host, batch, rule)) rows.push_back(std::move(row));
  if (!rows.empty()) throw Failure(WGAP_ENGINE_MISMATCH_ERROR, table(where, std::move(rows), build));
  bundle.model_file(file.precision, ungated, rule);
  return plan;
}

}  // namespace wgap::sdk
