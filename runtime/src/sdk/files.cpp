#include "files.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
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
  // A program that this is linked into is known to dladdr by its argv[0], which may be a name without a folder: what lies
  // in the current folder must not be taken for its own.
  Dl_info about = {};
  link_map* object = nullptr;
  const bool found = dladdr1(reinterpret_cast<const void*>(&own_folder), &about, reinterpret_cast<void**>(&object),
                             RTLD_DL_LINKMAP) != 0;
  const bool library = found && object != nullptr && object->l_name != nullptr && object->l_name[0] != 0;
  char path[PATH_MAX] = {};
  if (::realpath(library ? object->l_name : "/proc/self/exe", path) == nullptr) return "/";
  const std::string file = path;
  return file.substr(0, file.rfind('/'));
}

}  // namespace wgap::sdk
