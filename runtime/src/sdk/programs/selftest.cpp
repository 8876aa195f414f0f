// wgap-selftest: `wgap selftest` without Python.
#include <cstdio>
#include <string>

#include "arguments.h"

namespace {

constexpr const char* kUsage =
    "Usage: wgap-selftest [OPTIONS] BUNDLE\n"
    "\n"
    "Run BUNDLE's golden cases here: the network's outputs, the kernel, and the whole way. Prints one JSON line, as\n"
    "`wgap selftest --json` does; exit code 1 if a stage differs beyond its limit.\n"
    "\n"
    "  --backend NAME, --precision NAME, --rule RULE, --map MAP, --threads N, --library FILE, --device GPU, --ungated\n"
    "                     as of wgap-localize\n"
    "  --version, --help\n";

}  // namespace

int main(int count, char** given) {
  wgap::programs::Arguments arguments(count, given, kUsage);
  const wgap::Options options = arguments.localizer();
  const std::vector<std::string> rest = arguments.rest(1);
  if (rest.size() > 1) arguments.refuse("expected one bundle");
  const auto localizer = wgap::Localizer::open(rest[0], options);
  if (!localizer) wgap::programs::end_with(1, wgap::programs::shown(localizer.error().text));
  const auto report = localizer->selftest();
  const std::string& line = report ? *report : report.error().json;
  if (line.empty()) wgap::programs::end_with(1, wgap::programs::shown(report.error().text));
  std::printf("%s\n", line.c_str());
  if (std::fflush(stdout) != 0) wgap::programs::end_with(1, "output: cannot be written");
  return report ? 0 : 1;
}
