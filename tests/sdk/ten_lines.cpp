#include <cstdio>
#include <wgap/wgap.hpp>

int main(int, char** arguments) {
  auto localizer = wgap::Localizer::open(arguments[1]);
  if (!localizer) return std::fprintf(stderr, "%s\n", localizer.error().text.c_str()), 1;
  for (const wgap::Found& found : localizer->file(arguments[2]))
    std::printf("%s %.3f at %g %g %g %g\n", found.class_name.c_str(), static_cast<double>(found.score), found.box().x0,
                found.box().y0, found.box().x1, found.box().y1);
}
