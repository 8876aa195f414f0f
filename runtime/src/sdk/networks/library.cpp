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

// A folder's name in a pattern, as it is.
std::string escaped(const std::string& folder) {
  std::string made;
  for (const char c : folder) {
    if (c == '*' || c == '?' || c == '[' || c == '\\') made += '\\';
    made += c;
  }
  return made;
}

bool named(const char* value) { return value != nullptr && *value != 0; }

// Where the library may be, best first. One that somebody named is the only one. searched: the same in words.
std::vector<std::string> places(const LibrarySearch& search, const char* option, std::string* searched) {
  for (const char* const name : {option, static_cast<const char*>(std::getenv(search.variable))})
    if (named(name)) return *searched = name, std::vector<std::string>{name};
  const std::string beside = own_folder() + "/" + search.file + "*";
  std::vector<std::string> found = matches(escaped(own_folder()) + "/" + search.file + "*");
  *searched = beside;
#ifdef WGAP_SITE_PACKAGES  // the module came with a wheel
  const std::string packages = WGAP_SITE_PACKAGES "/" + std::string(search.site_packages) + "/" + search.file + "*";
  for (std::string& path : matches(escaped(own_folder()) + packages)) found.push_back(std::move(path));
  *searched += "; " + own_folder() + packages;
#endif
  for (const char* const name : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    const std::string below =
        "/lib/python3*/site-packages/" + std::string(search.site_packages) + "/" + search.file + "*";
    const char* const prefix = std::getenv(name);
    if (named(prefix))
      for (std::string& path : matches(escaped(prefix) + below)) found.push_back(std::move(path));
    *searched += named(prefix) ? "; " + (prefix + below) : text("; %s is not set", name);
  }
  *searched += text("; %s on the system's library path", search.file);
  found.emplace_back(search.file);
  return found;
}

}  // namespace

LoadedLibrary load_library(const LibrarySearch& search, const char* option) {
  std::string searched;
  for (const std::string& path : places(search, option, &searched)) {
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
       search.backend, search.title, searched.c_str(), search.variable);
}

int threads_for(const wgap_network_request& request) {
  if (request.threads > 0) return request.threads;
  const int allowed = allowed_cpus();
  return allowed < sysconf(_SC_NPROCESSORS_ONLN) ? allowed : 0;
}

}  // namespace wgap::sdk
