// Files to read: regular ones, and nothing that would block or never end.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>

#include "failure.h"

namespace wgap::sdk {

class OpenFile {
 public:
  // Throws Failure with that status; `missing` is said of a file that is not there.
  OpenFile(const std::string& path, wgap_status status, const char* missing);
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  std::int64_t size() const { return about_.st_size; }
  // At most so many bytes; fewer at the file's end.
  std::size_t read(char* into, std::size_t most);
  std::string read(std::size_t most);

 private:
  const std::string path_;
  const wgap_status status_;
  int descriptor_ = -1;
  struct stat about_ = {};
};

bool is_folder(const std::string& path);
bool exists(const std::string& path);

// The folder that this code was loaded from: the library's or the program's.
std::string own_folder();

}  // namespace wgap::sdk
