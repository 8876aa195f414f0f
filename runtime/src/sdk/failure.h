// What goes wrong inside the runtime, as an exception that every C function turns into a status and a sentence.
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "wgap/wgap.h"

namespace wgap::sdk {

class Failure : public std::exception {
 public:
  Failure(wgap_status status, std::string text) : status_(status), text_(std::move(text)) {}
  wgap_status status() const { return status_; }
  const std::string& text() const { return text_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  wgap_status status_;
  std::string text_;
};

// A sentence, printf's way.
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Throws.
[[noreturn]] void fail(wgap_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// A text as Python's reprlib.repr would show it: quoted, what is not printable ASCII escaped, at most 60 bytes of it.
std::string in_quotes(const std::string& value);

}  // namespace wgap::sdk
