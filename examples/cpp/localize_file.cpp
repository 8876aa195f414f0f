// Image files to boxes: localize_file BUNDLE IMAGE...
#include <cstdio>
#include <wgap/wgap.hpp>

int main(int count, char** arguments) {
  if (count < 3) {
    std::fprintf(stderr, "usage: localize_file BUNDLE IMAGE...\n");
    return 2;
  }
  // Opening reads, checks and compiles the network: open one localizer and keep it.
  wgap::Options options;
  options.max_boxes = 3;  // of the best class; top_k asks for further classes
  const auto localizer = wgap::Localizer::open(arguments[1], options);
  if (!localizer) {
    std::fprintf(stderr, "error: %s\n", localizer.error().text.c_str());
    return 1;
  }
  std::fprintf(stderr, "%s runs the network\n", localizer->backend().c_str());

  int failed = 0;
  for (int i = 2; i < count; ++i) {
    const auto result = localizer->file(arguments[i]);
    if (!result) {  // this picture alone; code() is the name of an error, the text names the file
      std::fprintf(stderr, "error: %s: %s\n", result.error().code(), result.error().text.c_str());
      ++failed;
      continue;
    }
    const wgap::Found& found = result->best();
    std::printf("%s: %s %.1f%% at", arguments[i], found.class_name.c_str(), 100 * static_cast<double>(found.score));
    for (const wgap::Box& box : found.boxes)  // in pixels of the picture; the first one is found.box()
      std::printf(" [%g %g %g %g]", box.x0, box.y0, box.x1, box.y1);
    std::printf("%s\n", found.degenerate ? " (nothing stands out: the whole picture)" : "");
  }
  return failed > 0 ? 1 : 0;
}
