#include "cpus.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace wgap::sdk {
namespace {

// Of the control group, rounded up; a large number without one.
long long quota() {
  for (const auto& [quota_file, period_file] :
       {std::pair("/sys/fs/cgroup/cpu.max", ""),  // version 2, version 1
        std::pair("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us")}) {
    std::ifstream first(quota_file), second(period_file);
    long long quota = 0, period = 0;
    if (first >> quota && (*period_file == 0 ? first >> period : second >> period) && quota > 0 && period > 0)
      return (quota + period - 1) / period;
  }
  return 1 << 20;
}

}  // namespace

int allowed_cpus() {
  cpu_set_t set;
  const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return static_cast<int>(std::max<long long>(1, std::min<long long>(count, quota())));
}

bool int8_sums_saturate() {
#if defined(__x86_64__)
  std::ifstream file("/proc/cpuinfo");
  for (std::string word; file >> word;)
    if (word == "avx512_vnni" || word == "avx_vnni") return false;
  return true;
#else
  return false;
#endif
}

}  // namespace wgap::sdk
