// The libraries that decode. Files have been walked to their end by then.
#pragma once

#include <string>
#include <string_view>

#include "image.h"

namespace wgap::sdk {

// Orientation of a TIFF structure, as EXIF metadata is; 1 where it has none or cannot be read.
int exif_orientation(std::string_view exif);

Pixels decode_jpeg(std::string_view encoded, const std::string& name, int* orientation);
Pixels decode_png(std::string_view encoded, const std::string& name, int* orientation);

}  // namespace wgap::sdk
