// What both modules of ONNX Runtime do the same: the library, found at run time, and a session over a bundle's file. Its
// header alone is needed to build them.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "library.h"

namespace wgap::sdk {

constexpr int kOrtApi = 20;  // of ONNX Runtime 1.20: every function that is called here is there

struct OrtLibrary {
  const OrtApi* api = nullptr;
  std::string version;
  OrtEnv* environment = nullptr;

  // Its environment, one for the life of the process: it outlives every session.
  static OrtLibrary load(const char* backend, const char* option);
};

class OnnxSession {
 public:
  // configure: what else the session's options shall say.
  OnnxSession(const wgap_network_request& request, const char* backend,
              const std::function<void(const OnnxSession&, OrtSessionOptions*)>& configure);
  ~OnnxSession() { api.ReleaseSession(session_); }
  OnnxSession(const OnnxSession&) = delete;
  OnnxSession& operator=(const OnnxSession&) = delete;

 private:
  const OrtLibrary library_;

 public:
  const OrtApi& api;
  OrtSession* get() const { return session_; }
  const char* version() const { return library_.version.c_str(); }
  void check(OrtStatus* status) const;
  void check_run(OrtStatus* status, std::int64_t count) const;  // of a forward pass

 private:
  OrtSession* session_ = nullptr;

  std::string said(OrtStatus* status) const;
  void compare(const wgap_tensor& promised, const char* path) const;
};

}  // namespace wgap::sdk
