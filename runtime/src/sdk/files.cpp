#include "files.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace wgap::sdk {

OpenFile::OpenFile(const std::string& path, wgap_status status, const char* missing) : path_(path), status_(status) {
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (descriptor_ < 0 && errno == ENOENT) fail(status, "%s%s", path.c_str(), missing);
  if (descriptor_ < 0) fail(status, "%s: cannot be read (%s)", path.c_str(), std::strerror(errno));
  if (::fstat(descriptor_, &about_) != 0 || !S_ISREG(about_.st_mode)) {
    ::close(descriptor_);
    fail(status, "%s: expected a file with content, got a %s", path.c_str(),
         S_ISDIR(about_.st_mode) ? "folder" : "pipe, a socket or a device");
  }
}

OpenFile::~OpenFile() { ::close(descriptor_); }

std::size_t OpenFile::read(char* into, std::size_t most) {
  std::size_t done = 0;
  while (done < most) {
    const ssize_t got = ::read(descriptor_, into + done, most - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(status_, "%s: cannot be read (%s)", path_.c_str(), std::strerror(errno));
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

std::string OpenFile::read(std::size_t most) {
  std::string content(std::min<std::size_t>(most, static_cast<std::size_t>(size())), '\0');
  content.resize(read(content.data(), content.size()));
  return content;
}

bool is_folder(const std::string& path) {
  struct stat about = {};
  return ::stat(path.c_str(), &about) == 0 && S_ISDIR(about.st_mode);
}

bool exists(const std::string& path) {
  struct stat about = {};
  return ::stat(path.c_str(), &about) == 0;
}

std::string own_folder() {
  Dl_info about = {};
  if (dladdr(reinterpret_cast<const void*>(&own_folder), &about) == 0 || about.dli_fname == nullptr) return ".";
  const std::string file = about.dli_fname;
  const std::size_t slash = file.rfind('/');
  return slash == std::string::npos ? "." : file.substr(0, slash);
}

}  // namespace wgap::sdk
