#include "failure.h"

#include <cstdarg>
#include <cstdio>

namespace wgap::sdk {
namespace {

std::string formatted(const char* format, std::va_list arguments) {
  std::va_list again;
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, again);
  va_end(again);
  std::string made(length > 0 ? static_cast<std::size_t>(length) : 0, '\0');
  std::vsnprintf(made.data(), made.size() + 1, format, arguments);
  return made;
}

}  // namespace

std::string text(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::string made = formatted(format, arguments);
  va_end(arguments);
  return made;
}

void fail(wgap_status status, const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::string made = formatted(format, arguments);
  va_end(arguments);
  throw Failure(status, std::move(made));
}

std::string in_quotes(const std::string& value) {
  constexpr std::size_t kMost = 60;
  std::string made = "'";
  for (const unsigned char c : value.substr(0, kMost))
    if (c == '\\' || c == '\'')
      made += {'\\', static_cast<char>(c)};
    else if (c >= 0x20 && c < 0x7f)
      made += static_cast<char>(c);
    else
      made += text("\\x%02x", c);
  return made + (value.size() > kMost ? "..." : "") + "'";
}

}  // namespace wgap::sdk
