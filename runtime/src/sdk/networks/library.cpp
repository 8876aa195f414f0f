#include "library.h"

#include <glob.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

#include "../cpus.h"
#include "../files.h"

namespace wgap::sdk {
namespace {

std::vector<std::string> matches(const std::string& pattern) {
  glob_t found = {};
  std::vector<std::string> paths;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  return paths;
}

bool named(const char* value) { return value != nullptr && *value != 0; }

std::vector<std::string> places(const LibrarySearch& search, const char* option) {
  if (named(option)) return {option};
  if (const char* const variable = std::getenv(search.variable); named(variable)) return {variable};
  std::vector<std::string> found = matches(own_folder() + "/" + search.file + "*");
  for (const char* const name : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* const prefix = std::getenv(name); named(prefix))
      for (std::string& path : matches(std::string(prefix) + "/lib/python3*/site-packages/" + search.site_packages +
                                       "/" + search.file + "*"))
        found.push_back(std::move(path));
  found.emplace_back(search.file);
  return found;
}

}  // namespace

LoadedLibrary load_library(const LibrarySearch& search, const char* option) {
  std::string tried;
  for (const std::string& path : places(search, option)) {
    tried += (tried.empty() ? "" : "; ") + path;
    const bool is_file = path.find('/') != std::string::npos;
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr && !is_file) continue;
    if (handle == nullptr) fail(WGAP_MISSING_DEPENDENCY_ERROR, "%s could not be loaded: %s", search.title, dlerror());
    if (dlsym(handle, search.symbol) == nullptr)
      fail(WGAP_MISSING_DEPENDENCY_ERROR, "%s is no library for the backend %s: it has no %s", path.c_str(),
           search.backend, search.symbol);
    return {handle, path};
  }
  fail(WGAP_MISSING_DEPENDENCY_ERROR,
       "the backend %s needs %s, which was not found (looked for %s); install it, name the file in the option library "
       "or in "
       "%s, or activate the Python environment that has it",
       search.backend, search.title, tried.c_str(), search.variable);
}

int threads_for(const wgap_network_request& request) {
  if (request.threads > 0) return request.threads;
  const int allowed = allowed_cpus();
  return allowed < sysconf(_SC_NPROCESSORS_ONLN) ? allowed : 0;
}

}  // namespace wgap::sdk
