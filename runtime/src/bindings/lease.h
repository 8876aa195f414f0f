// Warm workspaces for Python's calls, whichever thread they come from.
#pragma once

#include <pthread.h>

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "wgap/wgap.h"

namespace wgap {

// Warm workspaces, one per call in flight, by thread count and target. A forked child starts afresh: threads do not
// survive a fork, and a lock may have been held.
class Workspaces {
 public:
  struct Entry {
    wgap_workspace* workspace;
    int threads;
    std::string target;
  };

  Workspaces() { idle_.reserve(kMostIdle + 1); }  // giving back never allocates

  static Workspaces& instance() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { current() = new Workspaces; });
    (void)registered;
    return *current();
  }

  // One that is idle, or none.
  Entry take(int threads, const std::string& target) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::size_t i = idle_.size(); i-- > 0;) {
      if (idle_[i].threads != threads || idle_[i].target != target) continue;
      Entry entry = std::move(idle_[i]);
      idle_.erase(idle_.begin() + static_cast<std::ptrdiff_t>(i));
      return entry;
    }
    return {nullptr, threads, target};
  }

  void give_back(Entry entry) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.size() >= kMostIdle) {
      wgap_workspace_destroy(idle_.front().workspace);
      idle_.erase(idle_.begin());
    }
    idle_.push_back(std::move(entry));
  }

 private:
  static constexpr std::size_t kMostIdle = 16;
  static Workspaces*& current() {
    static Workspaces* workspaces = new Workspaces;
    return workspaces;
  }
  std::mutex mutex_;
  std::vector<Entry> idle_;
};

// A workspace for the length of one call; where there is none to be had, a status other than WGAP_OK and a text in `error`.
struct Lease {
  Workspaces& pool = Workspaces::instance();
  Workspaces::Entry entry;
  wgap_status status = WGAP_OK;
  Lease(int threads, const std::string& target, wgap_error* error) : entry(pool.take(threads, target)) {
    if (entry.workspace == nullptr)
      status = wgap_workspace_create(threads, target.empty() ? nullptr : target.c_str(), &entry.workspace, error);
  }
  ~Lease() {
    if (entry.workspace != nullptr) pool.give_back(std::move(entry));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
};

}  // namespace wgap
