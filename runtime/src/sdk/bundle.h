// A bundle's folder: opened, compared with its hashes, and read, as the Python package's wgap.bundle does.
#pragma once

#include <string>
#include <vector>

#include "files.h"
#include "manifest.h"

namespace wgap::sdk {

class Bundle {
 public:
  // verify: compare every listed file with its size and sha256.
  Bundle(std::string root, bool verify);

  const std::string& root() const { return root_; }
  const Manifest& manifest() const { return manifest_; }
  std::string path(const File& file) const { return root_ + "/" + file.path; }

  // The bytes of a listed file, the very ones whose size and sha256 were compared; of a graph, with all its values.
  std::string content(const File& file) const;

  // The bytes of a listed file as they are, for a caller that compares them.
  std::string unverified(const File& file) const;

  // The network's file of that precision, if the backend's gate says that it may be used under that rule.
  const File& model_file(const std::string& precision, bool ungated, const wgap_rule& rule,
                         const std::string& backend = "onnxruntime") const;

  // What judges the file of that precision under that rule on that backend, for a message.
  std::string gate_command(const std::string& precision, const wgap_rule& rule, const std::string& backend) const;

  // float32 [classes][channels].
  std::vector<float> classifier() const;

  // Throws where the rule reads an output that the bundle has not, or needs features of 0 or more and there are others.
  void require_rule(const wgap_rule& rule) const;

 private:
  std::string root_;
  Manifest manifest_;

  template <class Take>
  void each_block(const File& file, Take take) const;
  void verify() const;
  [[noreturn]] void refuse(wgap_status status, const std::string& why) const;
  const File& file(const char* role, const char* precision) const;
};

// Refuses an ONNX file some of whose values lie in another file.
void require_self_contained(const std::string& content, const std::string& where);

}  // namespace wgap::sdk
