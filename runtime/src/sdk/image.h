// Pictures in: JPEG and PNG to the bytes that the Python package's wgap.images gives for them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "failure.h"

namespace wgap::sdk {

// 8-bit RGB rows without gaps.
struct Pixels {
  int height = 0;
  int width = 0;
  struct Free {
    void operator()(unsigned char* data) const { std::free(data); }
  };
  std::unique_ptr<unsigned char, Free> data;  // from malloc

  Pixels() = default;
  Pixels(int rows, int columns);  // throws std::bad_alloc
  std::size_t row_bytes() const { return static_cast<std::size_t>(width) * 3; }
  unsigned char* row(int y) const { return data.get() + y * row_bytes(); }
};

// Throws Failure with WGAP_IMAGE_ERROR.
std::string read_image_file(const std::string& path);
Pixels decode(std::string_view encoded, const std::string& name);

}  // namespace wgap::sdk
