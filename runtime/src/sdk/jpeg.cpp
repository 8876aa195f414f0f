#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>
// After <cstdio>, which it needs.
#include <jpeglib.h>

#include "codecs.h"

namespace wgap::sdk {
namespace {

// Everything that lives on both sides of a longjmp: its address is the library's, so nothing of it stays in a register.
struct Decoder {
  jpeg_decompress_struct info = {};
  jpeg_error_mgr errors = {};
  std::jmp_buf failed;
  char message[JMSG_LENGTH_MAX] = {};
  Pixels pixels;
  std::vector<unsigned char> inks;  // of one row

  ~Decoder() { jpeg_destroy_decompress(&info); }
};

void on_error(j_common_ptr info) {
  auto* const decoder = static_cast<Decoder*>(info->client_data);
  info->err->format_message(info, decoder->message);
  std::longjmp(decoder->failed, 1);
}

// Four inks, inverted as Adobe writes them, to RGB: OpenCV's formula.
void from_inks(const unsigned char* inks, unsigned char* to, int width) {
  for (int x = 0; x < width; ++x, inks += 4, to += 3)
    for (int c = 0; c < 3; ++c) to[c] = static_cast<unsigned char>(inks[3] - ((255 - inks[c]) * inks[3] >> 8));
}

// Of the first EXIF segment, as OpenCV takes it.
int orientation_of(const jpeg_decompress_struct& info) {
  for (const jpeg_marker_struct* marker = info.marker_list; marker != nullptr; marker = marker->next)
    if (marker->marker == JPEG_APP0 + 1 && marker->data_length > 6 && std::memcmp(marker->data, "Exif\0", 6) == 0)
      return exif_orientation({reinterpret_cast<const char*>(marker->data) + 6, marker->data_length - 6});
  return 1;
}

}  // namespace

Pixels decode_jpeg(std::string_view encoded, const std::string& name, int* orientation) {
  Decoder decoder;
  jpeg_decompress_struct& info = decoder.info;
  info.err = jpeg_std_error(&decoder.errors);
  info.client_data = &decoder;
  decoder.errors.error_exit = on_error;
  decoder.errors.emit_message = [](j_common_ptr, int) {};
  if (setjmp(decoder.failed) != 0)
    fail(WGAP_IMAGE_ERROR, "%s: the JPEG decoder refused it (%s); is the file corrupt?", name.c_str(), decoder.message);
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(encoded.data()),
               static_cast<unsigned long>(encoded.size()));
  jpeg_save_markers(&info, JPEG_APP0 + 1, 0xffff);
  jpeg_read_header(&info, TRUE);
  *orientation = orientation_of(info);
  const bool four = info.num_components == 4;
  info.out_color_space = four ? JCS_CMYK : JCS_RGB;
  info.dct_method = JDCT_ISLOW;
  info.do_fancy_upsampling = TRUE;
  jpeg_start_decompress(&info);
  decoder.pixels = Pixels(static_cast<int>(info.output_height), static_cast<int>(info.output_width));
  if (four) decoder.inks.resize(static_cast<std::size_t>(decoder.pixels.width) * 4);
  while (info.output_scanline < info.output_height) {
    unsigned char* const to = decoder.pixels.row(static_cast<int>(info.output_scanline));
    unsigned char* row = four ? decoder.inks.data() : to;
    jpeg_read_scanlines(&info, &row, 1);
    if (four) from_inks(decoder.inks.data(), to, decoder.pixels.width);
  }
  jpeg_finish_decompress(&info);
  return std::move(decoder.pixels);
}

}  // namespace wgap::sdk
