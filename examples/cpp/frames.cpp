// A camera's frames to boxes, and how long each took.
//
//   frames BUNDLE                                 30 made-up frames
//   ffmpeg -v error -i film.mp4 -f rawvideo -pix_fmt rgb24 - | frames BUNDLE WIDTH HEIGHT
//   camera | frames BUNDLE WIDTH HEIGHT ROW_BYTES
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include <wgap/wgap.hpp>

namespace {

enum class Read { kFrame, kEnd, kCutShort };

Read read_frame(std::vector<std::uint8_t>* frame) {
  const std::size_t bytes = std::fread(frame->data(), 1, frame->size(), stdin);
  return bytes == frame->size() ? Read::kFrame : bytes == 0 ? Read::kEnd : Read::kCutShort;
}

// A bright square that moves to the right, on grey.
Read make_frame(int number, int width, int height, int row_bytes, std::vector<std::uint8_t>* frame) {
  if (number == 30) return Read::kEnd;
  std::fill(frame->begin(), frame->end(), std::uint8_t{60});
  const int side = height / 3, left = (width - side) * number / 30;
  for (int y = side; y < 2 * side; ++y) {
    const auto from = frame->begin() + static_cast<std::ptrdiff_t>(y) * row_bytes + left * 3;
    std::fill(from, from + side * 3, std::uint8_t{230});
  }
  return Read::kFrame;
}

}  // namespace

int main(int count, char** arguments) {
  const bool made_up = count == 2;
  const int width = made_up ? 320 : count > 2 ? std::atoi(arguments[2]) : 0;
  const int height = made_up ? 240 : count > 3 ? std::atoi(arguments[3]) : 0;
  // From one row to the next: cameras and drivers often align rows, here to 1024 bytes.
  const int row_bytes = made_up ? 1024 : count > 4 ? std::atoi(arguments[4]) : 3 * width;
  if (count > 5 || width < 1 || height < 1 || row_bytes < 3 * width) {
    std::fprintf(stderr, "usage: frames BUNDLE [WIDTH HEIGHT [ROW_BYTES]], raw RGB frames on standard input\n");
    return 2;
  }
  wgap::Options options;
  options.threads = 2;  // of the network and the kernel: what the rest of the program leaves
  const auto localizer = wgap::Localizer::open(arguments[1], options);
  if (!localizer) {
    std::fprintf(stderr, "error: %s\n", localizer.error().text.c_str());
    return 1;
  }
  std::vector<std::uint8_t> frame(static_cast<std::size_t>(height) * static_cast<std::size_t>(row_bytes));
  std::vector<double> latencies;
  for (int number = 0;; ++number) {
    const Read read = made_up ? make_frame(number, width, height, row_bytes, &frame) : read_frame(&frame);
    if (read == Read::kEnd) break;
    if (read == Read::kCutShort) {
      std::fprintf(stderr, "error: frame %d: expected %zu bytes, the input ended before\n", number, frame.size());
      return 1;
    }
    // The pixels stay where they are; OpenCV's cv::Mat is BGR and has to be converted first.
    wgap::Pixels pixels;
    pixels.data = frame.data();
    pixels.width = width;
    pixels.height = height;
    pixels.row_bytes = row_bytes;
    pixels.bytes = frame.size();
    const auto start = std::chrono::steady_clock::now();
    const auto result = localizer->pixels(pixels);
    latencies.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    if (!result) {
      std::fprintf(stderr, "error: frame %d: %s\n", number, result.error().text.c_str());
      return 1;
    }
    const wgap::Found& found = result->best();
    std::printf("%d: %s at %g %g %g %g in %.1f ms\n", number, found.class_name.c_str(), found.box().x0, found.box().y0,
                found.box().x1, found.box().y1, latencies.back());
    std::fflush(stdout);  // whoever reads the boxes wants them now
  }
  if (latencies.empty()) return 0;
  std::sort(latencies.begin(), latencies.end());
  std::fprintf(stderr, "%zu frames, median %.1f ms, slowest %.1f ms\n", latencies.size(),
               latencies[latencies.size() / 2], latencies.back());
  return 0;
}
