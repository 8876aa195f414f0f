// An engine's library, found at run time, and what every module does the same.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <exception>
#include <functional>
#include <string>

#include "../failure.h"
#include "wgap/runtime.h"

namespace wgap::sdk {

struct LibrarySearch {
  const char* backend;        // what messages call it
  const char* title;          // of the product
  const char* variable;       // of the environment, that names the file
  const char* file;           // beginning of the file's name
  const char* site_packages;  // the folder within a Python environment's packages
  const char* symbol;         // one that the library must have
};

struct LoadedLibrary {
  void* handle;
  std::string path;

  template <class Function>
  Function* symbol(const char* name) const {
    return reinterpret_cast<Function*>(dlsym(handle, name));
  }
};

// The first that is there, best place first: the option; the variable; beside the module; the packages beside the wheel
// that it came with; an activated Python environment; the loader's path. One that somebody named is the only one. It stays loaded.
LoadedLibrary load_library(const LibrarySearch& search, const char* option);

// The CPU threads to ask a library for: what was asked, else what the process may use where that is not every core; 0
// leaves the choice to the library.
int threads_for(const wgap_network_request& request);

// The whole of a module's function behind the C boundary.
template <class Work>
wgap_status guarded(wgap_error* error, Work work) {
  const auto tell = [&](wgap_status status, const char* sentence) {
    std::snprintf(error->text, sizeof error->text, "%s", sentence);
    return error->status = status, status;
  };
  try {
    work();
    return WGAP_OK;
  } catch (const Failure& failure) {
    return tell(failure.status(), failure.what());
  } catch (const std::exception& other) {
    return tell(WGAP_OUT_OF_MEMORY, other.what());
  }
}

// A module's wgap_network_open.
template <class Work>
wgap_status opened(const wgap_network_request* request, wgap_error* error, Work work) {
  return guarded(error, [&] {
    if (request->struct_size != sizeof *request)
      fail(WGAP_BACKEND_ERROR,
           "the module and libwgap_runtime are of different versions of wgap; install both from one");
    work();
  });
}

}  // namespace wgap::sdk
