// wgap-localize: `wgap localize` without Python.
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "arguments.h"

namespace {

namespace fs = std::filesystem;
using wgap::programs::end_with;
using wgap::programs::shown;

constexpr const char* kUsage =
    "Usage: wgap-localize [OPTIONS] BUNDLE IMAGES...\n"
    "\n"
    "Localize the object in each of IMAGES, JPEG or PNG files and folders of them; exit code 1 if one of them failed, "
    "after\n"
    "all the others are done.\n"
    "\n"
    "  --backend NAME     onnxruntime (the default), onnxruntime_cuda, openvino or tensorrt; auto for what runs best "
    "here\n"
    "  --precision NAME   which of the bundle's models to run; default: fp32\n"
    "  --rule RULE        adaptive, fixed:ETA, foreground or foreground+colour; default: the bundle's\n"
    "  --map MAP          recombined, positive, signed or, of foreground, none; default: the bundle's\n"
    "  --top-k N          localize this many classes per image; default: 1\n"
    "  --max-boxes N      boxes per class; default: 1\n"
    "  --class CLASS      localize this class (name or id)\n"
    "  --batch-size N     images per forward pass; default: 1\n"
    "  --threads N        CPU threads; default: every core for the network, one for the kernel\n"
    "  --library FILE     the backend's library, such as libonnxruntime.so.1; default: searched\n"
    "  --device GPU       ordinal or UUID (nvidia-smi -L); default: the first. Of openvino: CPU, GPU, NPU\n"
    "  --hint HINT        of openvino: latency (the default) or throughput\n"
    "  --streams N        of openvino: forward passes side by side\n"
    "  --slots N          calls on the GPU at the same time; default: 4\n"
    "  --memory-limit N   bytes that ONNX Runtime may hold on the GPU; default: 4 GiB\n"
    "  --ungated          run a lower-precision file that no gate has passed under this rule\n"
    "  --json             print one JSON line per image\n"
    "  --version, --help\n";

bool has_image_ending(const fs::path& path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  static const std::set<std::string> kEndings = {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff"};
  return kEndings.count(ending) != 0;
}

using Folders = std::set<std::pair<dev_t, ino_t>>;  // by what they are, not by their names

// A path as Python's pathlib writes it: without "." and doubled slashes, ".." as it is.
std::string written(const std::string& path) {
  std::string made;
  for (std::size_t at = 0; at <= path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    const std::string part = path.substr(at, end - at);
    if (!part.empty() && part != ".") made += (made.empty() ? "" : "/") + part;
    at = end + 1;
  }
  if (!path.empty() && path[0] == '/') return "/" + made;
  return made.empty() ? "." : made;
}

// Image files below a folder: links followed, but not back to a folder that they lie in; hidden ones left out.
void add_below(const std::string& folder, Folders above, std::vector<std::string>* found) {
  struct stat about = {};
  if (stat(folder.c_str(), &about) != 0 || !above.insert({about.st_dev, about.st_ino}).second) return;
  std::error_code failed;
  for (fs::directory_iterator entry(folder, failed), end; !failed && entry != end; entry.increment(failed)) {
    const std::string name = entry->path().filename().string();
    if (name[0] == '.' || name == "__MACOSX") continue;
    const std::string path = written(folder + "/" + name);
    std::error_code ignored;
    if (fs::is_directory(path, ignored))
      add_below(path, above, found);
    else if (has_image_ending(name) && fs::is_regular_file(path, ignored))
      found->push_back(path);
  }
}

// In the order of the inputs, each folder's by path, part by part; a path that several inputs reach comes once.
std::vector<std::string> expanded(const std::vector<std::string>& inputs) {
  std::vector<std::string> paths;
  std::set<fs::path> seen;
  for (const std::string& given : inputs) {
    const std::string input = written(given);
    std::vector<std::string> found = {input};
    std::error_code ignored;
    if (fs::is_directory(input, ignored)) {
      found.clear();
      Folders above;
      const fs::path real = fs::canonical(input, ignored);
      for (fs::path parent = real.parent_path(), last = real; parent != last;
           last = parent, parent = parent.parent_path()) {
        struct stat about = {};
        if (stat(parent.c_str(), &about) == 0) above.insert({about.st_dev, about.st_ino});
      }
      add_below(input, above, &found);
      if (found.empty()) end_with(1, shown(given) + ": expected a folder with images in it, found none");
      std::sort(found.begin(), found.end(), [](const fs::path& a, const fs::path& b) {
        return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
      });
    }
    for (const std::string& path : found) {
      const fs::path whole = fs::absolute(path, ignored).lexically_normal();
      if (seen.insert(ignored ? fs::path(path) : whole).second) paths.push_back(path);
    }
  }
  return paths;
}

int class_of(const wgap::Localizer& localizer, const std::string& given) {
  for (int id = 0; id < localizer.classes(); ++id)
    if (localizer.class_name(id) == given) return id;
  const bool number = given.size() < 10 && given.find_first_not_of("0123456789") == std::string::npos;
  if (number && std::stoi(given) < localizer.classes()) return std::stoi(given);
  end_with(1, "no class '" + shown(given) + "'; expected a name (" + shown(localizer.class_name(0)) +
                  ", ...) or an id of 0.." + std::to_string(localizer.classes() - 1));
}

void print_sentence(const std::string& path, const wgap::Found& found, bool thresholds) {
  std::string boxes;
  for (const wgap::Box& box : found.boxes) {
    char text[128];
    std::snprintf(text, sizeof text, "%s%.0f %.0f %.0f %.0f", boxes.empty() ? "" : ", ", box.x0, box.y0, box.x1,
                  box.y1);
    boxes += text;
  }
  std::printf("%s: %s %.1f%% box %s", shown(path).c_str(), shown(found.class_name).c_str(),
              100.0 * static_cast<double>(found.score), boxes.c_str());
  if (thresholds) std::printf(" threshold %g", found.threshold);
  std::printf("%s\n", found.degenerate ? " degenerate" : "");
}

}  // namespace

int main(int count, char** given) {
  std::signal(SIGPIPE, SIG_DFL);
  wgap::programs::Arguments arguments(count, given, kUsage);
  const wgap::Options options = arguments.localizer();
  const std::string class_name = arguments.text("--class");
  const bool json = arguments.flag("--json");
  std::vector<std::string> rest = arguments.rest(2);
  const std::string bundle = rest[0];
  const std::vector<std::string> paths = expanded({rest.begin() + 1, rest.end()});
  const auto localizer = wgap::Localizer::open(bundle, options);
  if (!localizer) end_with(1, shown(localizer.error().text));
  if (options.backend == "auto") std::fprintf(stderr, "auto: %s\n", localizer->backend().c_str());
  const bool thresholds = localizer->rule().kind < WGAP_RULE_FOREGROUND;
  const int class_id = class_name.empty() ? -1 : class_of(*localizer, class_name);
  std::size_t failed = 0;
  const auto each = static_cast<std::size_t>(options.batch_size);
  for (std::size_t first = 0; first < paths.size(); first += each) {
    std::vector<wgap::Picture> batch;
    for (std::size_t i = first; i < std::min(paths.size(), first + each); ++i)
      batch.push_back(wgap::Picture(paths[i]).of_class(class_id));
    const auto results = localizer->batch(batch);
    if (!results) end_with(1, shown(results.error().text));
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const auto& result = (*results)[i];
      failed += !result;
      if (json)
        std::printf("%s\n", (result ? result->json : result.error().json).c_str());
      else if (result)
        print_sentence(paths[first + i], result->best(), thresholds);
      else
        std::fprintf(stderr, "error: %s\n", shown(result.error().text).c_str());
    }
  }
  if (std::fflush(stdout) != 0) end_with(1, "output: cannot be written");
  if (failed > 0) return std::fprintf(stderr, "%zu of %zu images failed\n", failed, paths.size()), 1;
  return 0;
}
