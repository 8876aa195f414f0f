#include <png.h>

#include <csetjmp>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "codecs.h"

namespace wgap::sdk {
namespace {

// Everything that lives on both sides of a longjmp: its address is the library's, so nothing of it stays in a register.
struct Decoder {
  std::string_view left;  // to be read
  std::string message = {};
  png_structp png = nullptr;
  png_infop info = nullptr;
  Pixels pixels = {};
  std::vector<png_bytep> rows = {};

  ~Decoder() { png_destroy_read_struct(&png, &info, nullptr); }
};

void read_bytes(png_structp png, png_bytep to, png_size_t bytes) {
  auto* const decoder = static_cast<Decoder*>(png_get_io_ptr(png));
  if (bytes > decoder->left.size()) png_error(png, "cut short");
  std::memcpy(to, decoder->left.data(), bytes);
  decoder->left.remove_prefix(bytes);
}

void on_error(png_structp png, png_const_charp message) {
  static_cast<Decoder*>(png_get_error_ptr(png))->message = message;
  png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

}  // namespace

Pixels decode_png(std::string_view encoded, const std::string& name, int* orientation) {
  Decoder decoder{encoded};
  decoder.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &decoder, on_error, on_warning);
  if (decoder.png != nullptr) decoder.info = png_create_info_struct(decoder.png);
  if (decoder.info == nullptr) throw std::bad_alloc();
  png_structp const png = decoder.png;
  png_infop const info = decoder.info;
  if (setjmp(png_jmpbuf(png)) != 0)
    fail(WGAP_IMAGE_ERROR, "%s: the PNG decoder refused it (%s); is the file corrupt?", name.c_str(),
         decoder.message.c_str());
  png_set_read_fn(png, &decoder, read_bytes);
  png_set_user_limits(png, 0x7fffffff, 0x7fffffff);  // the header's check is ours
  png_read_info(png, info);
  // Eight bits of red, green and blue: the high byte, without alpha, grey in all three.
  png_set_expand(png);
  png_set_strip_16(png);
  png_set_strip_alpha(png);
  png_set_gray_to_rgb(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  Pixels& pixels = decoder.pixels;
  pixels = Pixels(static_cast<int>(png_get_image_height(png, info)), static_cast<int>(png_get_image_width(png, info)));
  if (png_get_rowbytes(png, info) != pixels.row_bytes()) png_error(png, "unexpected channels");
  for (int y = 0; y < pixels.height; ++y) decoder.rows.push_back(pixels.row(y));
  png_read_image(png, decoder.rows.data());
  png_read_end(png, info);
  png_bytep exif = nullptr;
  png_uint_32 exif_bytes = 0;
  if (png_get_eXIf_1(png, info, &exif_bytes, &exif) != 0)
    *orientation = exif_orientation({reinterpret_cast<const char*>(exif), exif_bytes});
  return std::move(pixels);
}

}  // namespace wgap::sdk
