#include "image.h"

#include <zlib.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <new>

#include "codecs.h"
#include "files.h"

namespace wgap::sdk {
namespace {

constexpr std::uint64_t kMaxBytes = 1ULL << 31;
constexpr std::uint64_t kMaxPixels = 1ULL << 28;
constexpr std::uint64_t kWidest = 1000000;  // of a side, the decoders' own limit
constexpr int kMaxScans = 100;
constexpr std::uint64_t kDensePixels = 1ULL << 24, kDensest = 10000;  // more than both is made to exhaust memory

struct CutShort {
  std::string why;
};

struct Header {
  bool png;
  std::uint64_t width, height;  // as they are stored
};

class Bytes {
 public:
  explicit Bytes(std::string_view data) : data_(data) {}
  std::size_t size() const { return data_.size(); }
  unsigned at(std::size_t place) const {
    if (place >= data_.size()) throw CutShort{"its header ends early"};
    return static_cast<unsigned char>(data_[place]);
  }
  std::uint32_t number(std::size_t place, int bytes, bool big = true) const {
    std::uint32_t value = 0;
    for (int i = 0; i < bytes; ++i) value = value << 8 | at(place + (big ? i : bytes - 1 - i));
    return value;
  }
  // Of that byte, at or after a place; the size where there is none.
  std::size_t find(unsigned char byte, std::size_t place) const {
    return std::min(data_.find(static_cast<char>(byte), place), data_.size());
  }
  std::string_view part(std::size_t place, std::size_t most) const {
    return place > data_.size() ? std::string_view() : data_.substr(place, most);
  }

 private:
  std::string_view data_;
};

// Walks the segments to the end-of-image marker; what follows it is ignored.
Header jpeg_header(const Bytes& data, const std::string& name) {
  Header header{false, 0, 0};
  int scans = 0;
  std::size_t position = 2;
  for (;;) {
    // Neither a stuffed byte, nor fill, nor a restart.
    const auto is_marker = [](unsigned c) { return c != 0 && c != 0xff && (c < 0xd0 || c > 0xd7); };
    position = data.find(0xff, position);
    while (position + 1 < data.size() && !is_marker(data.at(position + 1))) position = data.find(0xff, position + 1);
    if (position + 1 >= data.size()) throw CutShort{"a JPEG without an end-of-image marker"};
    const unsigned marker = data.at(position + 1);
    position += 2;
    if (marker == 0xd9) break;
    if (marker == 0x01 || marker == 0xd8) continue;  // markers without a segment
    const std::uint32_t length = data.number(position, 2);
    const bool frame = marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
    if (frame && header.width == 0) {
      header.height = data.number(position + 3, 2);
      header.width = data.number(position + 5, 2);
    }
    scans += marker == 0xda;
    if (scans > kMaxScans)
      fail(WGAP_IMAGE_ERROR, "%s: a JPEG of more than %d scans, made to take long; it is not decoded", name.c_str(),
           kMaxScans);
    position += length;
  }
  if (header.width == 0 || header.height == 0 || scans == 0) throw CutShort{"a JPEG without a picture in it"};
  return header;
}

// Walks the chunks and their checksums to IEND.
Header png_header(const Bytes& data) {
  Header header{true, 0, 0};
  for (std::size_t position = 8;;) {
    if (position + 12 > data.size()) throw CutShort{"a PNG without its IEND chunk"};
    const std::uint64_t length = data.number(position, 4);
    const std::string_view kind = data.part(position + 4, 4);
    if (position + 12 + length > data.size())
      throw CutShort{"PNG chunk " + in_quotes(std::string(kind)) +
                     text(" of %llu bytes runs past the end of the file", static_cast<unsigned long long>(length))};
    const std::string_view body = data.part(position + 4, 4 + length);
    const auto sum = crc32_z(0, reinterpret_cast<const Bytef*>(body.data()), body.size());
    if (sum != data.number(position + 8 + length, 4))
      throw CutShort{"PNG chunk " + in_quotes(std::string(kind)) + " does not match its checksum"};
    if (kind == "IHDR") header.width = data.number(position + 8, 4), header.height = data.number(position + 12, 4);
    if (kind == "IEND") return header;
    position += 12 + length;
  }
}

// The name of a kind that the Python package takes and this library does not.
const char* other_kind(std::string_view start) {
  if (start.substr(0, 2) == "BM") return "BMP";
  if (start.substr(0, 4) == "RIFF" && start.size() == 12 && start.substr(8) == "WEBP") return "WebP";
  if (start.substr(0, 4) == std::string_view("II*\0", 4) || start.substr(0, 4) == std::string_view("MM\0*", 4))
    return "TIFF";
  return nullptr;
}

Header checked_header(std::string_view encoded, const std::string& name) {
  const std::string_view start = encoded.substr(0, 12);
  Header header{};
  try {
    if (start.substr(0, 2) == "\xff\xd8")
      header = jpeg_header(Bytes(encoded), name);
    else if (start.substr(0, 8) == "\x89PNG\r\n\x1a\n")
      header = png_header(Bytes(encoded));
    else if (start.size() >= 8 && start.substr(4, 4) == "ftyp")
      fail(WGAP_IMAGE_ERROR, "%s: HEIC, AVIF and other pictures of that family are not taken; save it as a JPEG",
           name.c_str());
    else if (const char* const kind = other_kind(start))
      fail(WGAP_IMAGE_ERROR,
           "%s: a %s, which the Python package reads and this library does not; save it as a JPEG or a PNG",
           name.c_str(), kind);
    else
      fail(WGAP_IMAGE_ERROR, "%s: not an image: expected JPEG or PNG, got a file that starts with %s", name.c_str(),
           in_quotes(std::string(start)).c_str());
  } catch (const CutShort& error) {
    fail(WGAP_IMAGE_ERROR, "%s: the image is cut short or corrupt: %s", name.c_str(), error.why.c_str());
  }
  const std::uint64_t pixels = header.width * header.height;
  const auto width = static_cast<unsigned long long>(header.width),
             height = static_cast<unsigned long long>(header.height);
  if (header.width > kMaxPixels || header.height > kMaxPixels || pixels > kMaxPixels)
    fail(WGAP_IMAGE_ERROR, "%s: %llu x %llu pixels exceed the limit of %llu pixels; make the image smaller first",
         name.c_str(), width, height, static_cast<unsigned long long>(kMaxPixels));
  if (std::max(header.width, header.height) > kWidest)
    fail(WGAP_IMAGE_ERROR, "%s: %llu x %llu pixels: no side may have more than %llu", name.c_str(), width, height,
         static_cast<unsigned long long>(kWidest));
  if (pixels > std::max<std::uint64_t>(kDensePixels, kDensest * encoded.size()))
    fail(WGAP_IMAGE_ERROR,
         "%s: %llu x %llu pixels in %zu bytes: made to exhaust memory, or a picture of nothing; it is not decoded",
         name.c_str(), width, height, encoded.size());
  return header;
}

// The picture as EXIF's orientation wants it seen: 1 to 8, others as 1.
Pixels oriented(Pixels stored, int orientation) {
  if (orientation < 2 || orientation > 8) return stored;
  const int height = stored.height, width = stored.width;
  Pixels made = orientation >= 5 ? Pixels(width, height) : Pixels(height, width);
  for (int y = 0; y < made.height; ++y) {
    unsigned char* to = made.row(y);
    for (int x = 0; x < made.width; ++x, to += 3) {
      int from_y = orientation >= 5 ? x : y, from_x = orientation >= 5 ? y : x;
      if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) from_x = width - 1 - from_x;
      if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) from_y = height - 1 - from_y;
      std::memcpy(to, stored.row(from_y) + 3 * static_cast<std::size_t>(from_x), 3);
    }
  }
  return made;
}

}  // namespace

Pixels::Pixels(int rows, int columns)
    : height(rows),
      width(columns),
      data(static_cast<unsigned char*>(std::malloc(static_cast<std::size_t>(rows) * columns * 3))) {
  if (data == nullptr) throw std::bad_alloc();
}

std::string read_image_file(const std::string& path) {
  if (path.empty()) fail(WGAP_IMAGE_ERROR, "expected the path of an image, got an empty one");
  OpenFile file(path, WGAP_IMAGE_ERROR, ": no such file");
  if (file.size() > static_cast<std::int64_t>(kMaxBytes))
    fail(WGAP_IMAGE_ERROR, "%s: expected an image of at most %llu MiB, got %lld bytes", path.c_str(),
         static_cast<unsigned long long>(kMaxBytes >> 20), static_cast<long long>(file.size()));
  return file.read(kMaxBytes);
}

// The first orientation, as OpenCV reads the entries: up to the first one that leads out of the metadata.
int exif_orientation(std::string_view exif) {
  const Bytes data(exif);
  int orientation = 0;
  try {
    const bool big = exif.substr(0, 2) != "II";
    const std::uint64_t at = data.number(4, 4, big);
    const std::uint32_t count = data.number(at, 2, big);
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::uint64_t entry = at + 2 + 12ULL * i;
      std::uint64_t place = 8, bytes = 0;
      switch (data.number(entry, 2, big)) {
        case 0x112: {  // neither its type nor its count is asked for
          const std::uint32_t value = data.number(entry + 8, 2, big);
          if (orientation == 0) orientation = value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
          continue;
        }
        case 0x10e:
        case 0x10f:
        case 0x110:
        case 0x131:
        case 0x132:
        case 0x8298:  // texts
          bytes = data.number(entry + 4, 4, big);
          break;
        case 0x11a:
        case 0x11b: bytes = 8; break;  // rationals
        case 0x13e: bytes = 16; break;
        case 0x211: bytes = 24; break;
        case 0x13f:
        case 0x214: bytes = 48; break;
        default: continue;
      }
      if (bytes > 4) place = data.number(entry + 8, 4, big);
      if (place + bytes > exif.size()) break;
    }
  } catch (const CutShort&) {  // decoders, too, leave off where they cannot read on
  }
  return std::max(orientation, 1);
}

Pixels decode(std::string_view encoded, const std::string& name) {
  if (encoded.size() > kMaxBytes)
    fail(WGAP_IMAGE_ERROR, "%s: expected an image of at most %llu MiB, got a larger one", name.c_str(),
         static_cast<unsigned long long>(kMaxBytes >> 20));
  if (encoded.empty()) fail(WGAP_IMAGE_ERROR, "%s: expected an image, got an empty file (0 bytes)", name.c_str());
  const Header header = checked_header(encoded, name);
  int orientation = 1;
  Pixels stored = header.png ? decode_png(encoded, name, &orientation) : decode_jpeg(encoded, name, &orientation);
  return oriented(std::move(stored), orientation);
}

}  // namespace wgap::sdk
