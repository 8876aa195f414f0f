// Command lines of the programs: options that stand for a value or for themselves, as in the Python command.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "wgap/wgap.hpp"

namespace wgap::programs {

[[noreturn]] inline void end_with(int code, const std::string& text) {
  std::fprintf(stderr, "error: %s\n", text.c_str());
  std::exit(code);
}

// Text of a file or a class for a terminal: control characters escaped.
inline std::string shown(const std::string& value) {
  std::string made;
  for (const unsigned char c : value) {
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, c < 0x20 || c == 0x7f ? "\\x%02x" : "%c", c);
    made += escaped;
  }
  return made;
}

class Arguments {
 public:
  Arguments(int count, char** given, const char* usage) : usage_(usage) {
    for (int i = 1; i < count; ++i) left_.emplace_back(given[i]);
    if (flag("--help")) std::printf("%s", usage), std::exit(0);
    if (flag("--version")) std::printf("wgap %s\n", wgap_version()), std::exit(0);
  }

  bool flag(const char* name) {
    for (std::size_t i = 0; i < options_end(); ++i)
      if (left_[i] == name) return left_.erase(left_.begin() + static_cast<std::ptrdiff_t>(i)), true;
    return false;
  }
  // The last one counts. A value that was given is not empty.
  std::string text(const char* name) {
    const std::string with = std::string(name) + "=";
    std::string value;
    for (std::size_t i = 0; i < options_end();) {
      const bool joined = left_[i].rfind(with, 0) == 0;
      if (left_[i] != name && !joined) {
        ++i;
        continue;
      }
      if (!joined && i + 1 >= left_.size()) refuse(std::string(name) + " needs a value");
      value = joined ? left_[i].substr(with.size()) : left_[i + 1];
      if (value.empty()) refuse(std::string(name) + " needs a value");
      const auto first = left_.begin() + static_cast<std::ptrdiff_t>(i);
      left_.erase(first, first + (joined ? 1 : 2));
    }
    return value;
  }
  template <class T = int>
  T number(const char* name, T usual, T least = std::numeric_limits<T>::min()) {
    const std::string given = text(name);
    if (given.empty()) return usual;
    char* end = nullptr;
    errno = 0;
    const long value = std::strtol(given.c_str(), &end, 10);
    if (*end != 0 || errno != 0 || value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max())
      refuse(std::string(name) + ": '" + given + "' is no whole number");
    if (value < least)
      end_with(1, std::string(name).substr(2) + " must be at least " + std::to_string(least) + ", got " + given);
    return static_cast<T>(value);
  }
  // The options that every program that opens a localizer has.
  Options localizer() {
    Options options;
    options.backend = text("--backend");
    options.precision = text("--precision");
    options.rule = text("--rule");
    options.map = text("--map");
    options.library = text("--library");
    options.device = text("--device");
    options.hint = text("--hint");
    options.streams = number("--streams", 0, 1);
    options.slots = number("--slots", 0, 1);
    options.memory_limit = number<std::int64_t>("--memory-limit", 0, 1);
    options.threads = number("--threads", 0, 1);
    options.top_k = number("--top-k", 1);
    options.max_boxes = number("--max-boxes", 1);
    options.batch_size = number("--batch-size", 1);
    options.ungated = flag("--ungated");
    return options;
  }
  // What is left, which must be no options.
  std::vector<std::string> rest(std::size_t least) {
    const std::size_t end = options_end();
    for (std::size_t i = 0; i < end; ++i)
      if (left_[i].size() > 1 && left_[i][0] == '-') refuse("no such option: " + left_[i]);
    if (end < left_.size()) left_.erase(left_.begin() + static_cast<std::ptrdiff_t>(end));
    if (left_.size() < least) refuse("too few arguments");
    return left_;
  }
  [[noreturn]] void refuse(const std::string& why) const {
    std::fprintf(stderr, "%s\n", usage_);
    end_with(2, shown(why));
  }

 private:
  const char* const usage_;
  std::vector<std::string> left_;

  std::size_t options_end() const {  // at "--"
    std::size_t i = 0;
    while (i < left_.size() && left_[i] != "--") ++i;
    return i;
  }
};

}  // namespace wgap::programs
