// Warm workspaces for Python's calls, whichever thread they come from.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "wgap/wgap.h"

namespace wgap {

// A workspace for the length of one call; where there is none to be had, a status other than WGAP_OK and a text in `error`.
// Made and dropped with the interpreter lock held, which guards the idle ones, also against a fork in their midst.
class Lease {
 public:
  wgap_workspace* workspace = nullptr;
  wgap_status status = WGAP_OK;

  Lease(int threads, const std::string& target, wgap_error* error) : threads_(threads), target_(target) {
    for (std::size_t i = idle().size(); i-- > 0;) {
      if (idle()[i].threads != threads || idle()[i].target != target) continue;
      workspace = idle()[i].workspace;
      idle().erase(idle().begin() + static_cast<std::ptrdiff_t>(i));
      return;
    }
    status = wgap_workspace_create(threads, target.empty() ? nullptr : target.c_str(), &workspace, error);
  }
  ~Lease() {
    if (workspace == nullptr) return;
    if (idle().size() >= kMostIdle) {
      wgap_workspace_destroy(idle().front().workspace);
      idle().erase(idle().begin());
    }
    idle().push_back({workspace, threads_, std::move(target_)});
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

 private:
  struct Entry {
    wgap_workspace* workspace;
    int threads;
    std::string target;
  };
  static constexpr std::size_t kMostIdle = 16;
  static std::vector<Entry>& idle() {  // left alone at exit, when nobody can wait for threads
    static std::vector<Entry>& entries = *[] {
      auto* const made = new std::vector<Entry>;
      made->reserve(kMostIdle);  // giving back never allocates
      return made;
    }();
    return entries;
  }

  const int threads_;
  std::string target_;
};

}  // namespace wgap
