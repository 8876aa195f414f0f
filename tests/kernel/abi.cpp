// What the C interface promises of every call: sized structs, no byte beyond those that are named, a sentence for every
// failure, one way to write a rule, and evidence that costs the record nothing.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <clocale>
#include <cstdlib>
#include <memory>

#include "batch.h"

namespace {

// A call with an error answers this status and a sentence that says this; one without answers the same.
template <class Call>
void fails(wgap_status status, const std::string& said, Call call) {
  wgap_error error = WGAP_ERROR_INIT;
  const wgap_status answered = call(&error);
  if (answered != status || error.status != status || std::strstr(error.text, said.c_str()) == nullptr) {
    std::fprintf(stderr, "expected status %d, '%s'; got status %d, '%s'\n", status, said.c_str(), answered, error.text);
    std::exit(1);
  }
  EXPECT(error.text[0] != 0 && call(nullptr) == status);
}

// Memory whose end is followed by none.
class Guarded {
 public:
  explicit Guarded(std::size_t bytes) : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    whole_ = (bytes + page_ - 1) / page_ * page_;
    void* const at = mmap(nullptr, whole_ + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(at != MAP_FAILED);
    base_ = static_cast<char*>(at);
    EXPECT(mprotect(base_ + whole_, page_, PROT_NONE) == 0);
    data_ = base_ + whole_ - bytes;
  }
  ~Guarded() { munmap(base_, whole_ + page_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::size_t page_, whole_;
  char *base_, *data_;
};

template <class T>
T* misaligned(T* p) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(p) + 1);
}

std::string too_new(const char* name, std::size_t got, std::size_t known) {
  return std::string(name) + " has " + std::to_string(got) + " bytes, wgap " + wgap_version() + " knows " +
         std::to_string(known);
}

std::string too_old(const char* name, std::size_t known, std::size_t got) {
  return std::string(name) + ": expected a size of at least " + std::to_string(known) + " bytes, got " +
         std::to_string(got);
}

// `size` is a field of what `call` takes. Its first version is 0.2.0's, whose size is given as a number: it must not move.
template <class Call>
void sized(const char* name, std::uint32_t* size, std::uint32_t first, Call call) {
  const std::uint32_t known = *size;
  for (const std::uint32_t more : {8U, 0x7fffffffU}) {
    *size = known + more;
    fails(WGAP_STRUCT_TOO_NEW, too_new(name, *size, known), call);
  }
  for (const std::uint32_t less : {first - 8, 4U, 0U}) {
    *size = less;
    fails(WGAP_INVALID_ARGUMENT, too_old(name, first, less), call);
  }
  *size = known;
  EXPECT(call(nullptr) == WGAP_OK);
  *size = first;
  EXPECT(call(nullptr) == WGAP_OK);
  *size = known;
}

void structs() {
  Batch b(2, 3, 4, 5, 6);
  const Workspace workspace(1);
  const auto localize = [&](wgap_error* error) {
    return wgap_localize(workspace, b.classifier, &b.input, &b.options, &b.output, error);
  };
  sized("wgap_input", &b.input.struct_size, 80, localize);
  sized("wgap_options", &b.options.struct_size, 80, localize);
  sized("wgap_rule", &b.options.rule.struct_size, 64, localize);
  sized("wgap_output", &b.output.struct_size, 56, localize);
  sized("wgap_record", &b.output.record_size, 56, localize);
  EXPECT(b.records[1].struct_size == 56);
  wgap_rule rule = WGAP_RULE_INIT;
  sized("wgap_rule", &rule.struct_size, 64,
        [&](wgap_error* error) { return wgap_rule_parse("adaptive", "signed", &rule, error); });
  std::uint8_t pixel[1] = {7}, other[1];
  wgap_image from = WGAP_IMAGE_INIT, to = WGAP_IMAGE_INIT;
  from.height = from.width = from.channels = to.height = to.width = to.channels = 1;
  from.row_bytes = to.row_bytes = 1, from.bytes = to.bytes = 1, from.data = pixel, to.data = other;
  const auto resize = [&](wgap_error* error) { return wgap_resize(&from, &to, error); };
  sized("source (wgap_image)", &from.struct_size, 40, resize);
  sized("destination (wgap_image)", &to.struct_size, 40, resize);

  // An error: a larger one is refused by every call, of a smaller one no byte beyond it is touched.
  struct {
    wgap_error error;
    char more[8];
  } newer = {WGAP_ERROR_INIT, {}};
  newer.error.struct_size = sizeof newer;
  const std::string said = too_new("wgap_error", sizeof newer, sizeof(wgap_error));
  wgap_classifier* classifier = nullptr;
  wgap_workspace* none = nullptr;
  const auto refused = [&](wgap_status status) {
    EXPECT(status == WGAP_STRUCT_TOO_NEW && newer.error.status == status);
    EXPECT(std::strstr(newer.error.text, said.c_str()) != nullptr);
    std::memset(newer.error.text, 0, sizeof newer.error.text);
  };
  refused(wgap_classifier_create(b.weight.data(), b.weight.size() * 4, 3, 4, &classifier, &newer.error));
  refused(wgap_workspace_create(1, nullptr, &none, &newer.error));
  refused(localize(&newer.error));
  refused(resize(&newer.error));
  refused(wgap_rule_parse("adaptive", "signed", &rule, &newer.error));
  EXPECT(classifier == nullptr && none == nullptr);
  for (std::uint32_t size = 0; size < 40; ++size) {
    wgap_error error;
    std::memset(&error, 0x5a, sizeof error);
    error.struct_size = size;
    EXPECT(wgap_workspace_create(0, nullptr, &none, &error) == WGAP_INVALID_ARGUMENT);
    if (size > 8)
      EXPECT(std::string(error.text) == std::string("threads: expected 1..1024, got 0").substr(0, size - 9));
    for (std::size_t i = size > 8 ? size - 8 : 0; i < sizeof error.text; ++i) EXPECT(error.text[i] == 0x5a);
  }
}

// `bytes` are needed at *pointer, which *named names. Exactly as many serve; of one less, none is touched.
template <class T, class Call>
void bounded(const char* name, T** pointer, std::uint64_t* named, Call call) {
  using Plain = std::remove_const_t<T>;
  T* const held = *pointer;
  const std::size_t bytes = *named;
  const Guarded whole(bytes), less(bytes - sizeof(T));
  if (held != nullptr) std::memcpy(whole.as<Plain>(), held, bytes);
  *pointer = whole.as<T>();
  EXPECT(call(nullptr) == WGAP_OK);
  *pointer = less.as<T>();
  *named = bytes - 1;
  std::memset(less.as<Plain>(), 0x5a, bytes - sizeof(T));
  fails(WGAP_BUFFER_TOO_SMALL,
        std::string(name) + ": expected at least " + std::to_string(bytes) + " bytes, got " + std::to_string(bytes - 1),
        call);
  for (std::size_t i = 0; i < bytes - sizeof(T); ++i) EXPECT(less.as<char>()[i] == 0x5a);
  *named = bytes;
  const auto spoiled = [&](T* p) {
    *pointer = p;
    fails(WGAP_INVALID_ARGUMENT,
          std::string(name) + ": expected a pointer aligned to " + std::to_string(alignof(T)) + " bytes", call);
  };
  if (alignof(T) > 1) spoiled(misaligned(held));
  if (std::strstr("heatmaps edge_means class_ids", name) == nullptr) spoiled(nullptr);  // those are optional
  *pointer = held;
}

void bounds() {
  for (const char* const* target = wgap_targets(); *target != nullptr; ++target)
    for (const int threads : {1, 3}) {
      const Workspace workspace(threads, *target);
      Batch b(3, 5, 19, 7, 9);  // odd sizes: nothing is read in whole vectors beyond them
      b.want(2, 45, 67, true, true);
      std::string before;
      const auto localize = [&](wgap_error* error) {
        before = b.written();
        const wgap_status status = wgap_localize(workspace, b.classifier, &b.input, &b.options, &b.output, error);
        EXPECT(status == WGAP_OK || b.written() == before);  // nothing was written elsewhere either
        return status;
      };
      bounded("logits", &b.input.logits, &b.input.logits_bytes, localize);
      bounded("features", &b.input.features, &b.input.features_bytes, localize);
      bounded("records", &b.output.records, &b.output.records_bytes, localize);
      bounded("heatmaps", &b.output.heatmaps, &b.output.heatmaps_bytes, localize);
      bounded("edge_means", &b.output.edge_means, &b.output.edge_means_bytes, localize);
      const std::int64_t ids[3] = {0, 4, 2};
      b.input.class_ids = ids, b.input.class_ids_bytes = sizeof ids;
      bounded("class_ids", &b.input.class_ids, &b.input.class_ids_bytes, localize);
    }
  const std::vector<float> weight(3 * 7, 0.5f);
  const float* values = weight.data();
  std::uint64_t bytes = weight.size() * sizeof(float);
  bounded("classifier weight", &values, &bytes, [&](wgap_error* error) {
    wgap_classifier* classifier = nullptr;
    const wgap_status status = wgap_classifier_create(values, bytes, 3, 7, &classifier, error);
    EXPECT((status == WGAP_OK) == (classifier != nullptr));
    wgap_classifier_destroy(classifier);
    return status;
  });

  // Padded rows, downwards and upwards: the last row's padding need not be there.
  for (const int sign : {1, -1}) {
    std::vector<std::uint8_t> source(10 * 64 + 15, 9), destination(6 * 32 + 12);
    wgap_image images[2] = {WGAP_IMAGE_INIT, WGAP_IMAGE_INIT};
    images[0].height = 11, images[0].width = 5, images[0].row_bytes = 64, images[0].data = source.data();
    images[1].height = 7, images[1].width = 4, images[1].row_bytes = 32, images[1].data = destination.data();
    images[0].bytes = source.size(), images[1].bytes = destination.size();
    const char* const names[2] = {"source", "destination"};
    for (int i = 0; i < 2; ++i) images[i].channels = 3;
    for (int i = 0; i < 2; ++i) {
      // `lowest` is where the image's memory begins; its data points to the last of its rows if they run upwards.
      std::uint8_t* lowest = images[i].data;
      bounded(names[i], &lowest, &images[i].bytes, [&](wgap_error* error) {
        wgap_image turned[2] = {images[0], images[1]};
        turned[i].row_bytes *= sign;
        turned[i].data = lowest;
        if (lowest != nullptr && sign < 0) turned[i].data += (images[i].height - 1) * images[i].row_bytes;
        return wgap_resize(&turned[0], &turned[1], error);
      });
    }
  }
}

void pointers() {
  Batch b(1, 3, 4, 5, 6);
  const Workspace workspace(1);
  wgap_classifier* classifier = nullptr;
  wgap_workspace* none = nullptr;
  const char* const wanted = "expected an aligned pointer, got";
  for (const bool null : {true, false}) {
    const auto bad = [null](auto* p) { return null ? nullptr : misaligned(p); };
    const auto localize = [&](const char* name, wgap_workspace* w, wgap_classifier* c, wgap_input* i, wgap_options* o,
                              wgap_output* out) {
      fails(WGAP_INVALID_ARGUMENT, std::string(name) + ": " + wanted,
            [&](wgap_error* error) { return wgap_localize(w, c, i, o, out, error); });
    };
    localize("workspace", bad(workspace.handle), b.classifier, &b.input, &b.options, &b.output);
    localize("classifier", workspace, bad(b.classifier), &b.input, &b.options, &b.output);
    localize("wgap_input", workspace, b.classifier, bad(&b.input), &b.options, &b.output);
    localize("wgap_options", workspace, b.classifier, &b.input, bad(&b.options), &b.output);
    localize("wgap_output", workspace, b.classifier, &b.input, &b.options, bad(&b.output));
    fails(WGAP_INVALID_ARGUMENT, wanted, [&](wgap_error* error) {
      return wgap_classifier_create(b.weight.data(), b.weight.size() * 4, 3, 4, bad(&classifier), error);
    });
    fails(WGAP_INVALID_ARGUMENT, wanted,
          [&](wgap_error* error) { return wgap_workspace_create(1, nullptr, bad(&none), error); });
    wgap_image image = WGAP_IMAGE_INIT;
    fails(WGAP_INVALID_ARGUMENT, "source", [&](wgap_error* error) { return wgap_resize(bad(&image), &image, error); });
    fails(WGAP_INVALID_ARGUMENT, "destination",
          [&](wgap_error* error) { return wgap_resize(&image, bad(&image), error); });
    wgap_rule rule = WGAP_RULE_INIT;
    fails(WGAP_INVALID_ARGUMENT, "aligned rule",
          [&](wgap_error* error) { return wgap_rule_parse("adaptive", "signed", bad(&rule), error); });
  }
  wgap_rule rule = WGAP_RULE_INIT;
  fails(WGAP_INVALID_ARGUMENT, "wgap_rule_parse",
        [&](wgap_error* error) { return wgap_rule_parse(nullptr, "signed", &rule, error); });
  // A misaligned error holds no sentence; the status is still told, and nothing is written.
  wgap_error errors[2] = {WGAP_ERROR_INIT, WGAP_ERROR_INIT};
  EXPECT(wgap_workspace_create(1, nullptr, &none, misaligned(&errors[0])) == WGAP_INVALID_ARGUMENT && none == nullptr);
  EXPECT(errors[0].status == WGAP_OK && errors[0].text[0] == 0);
  wgap_classifier_destroy(nullptr);
  wgap_workspace_destroy(nullptr);
  EXPECT(std::strcmp(wgap_workspace_target(nullptr), "") == 0);
}

// In a process of its own: the variable is read once.
void a_wrong_target_in_the_environment() {
  const pid_t child = fork();
  EXPECT(child >= 0);
  if (child == 0) {
    setenv("WGAP_TARGET", "mmx", 1);
    const auto said = "instruction set 'mmx' (WGAP_TARGET) is not one that this machine runs";
    wgap_workspace* workspace = nullptr;
    for (int again = 0; again < 2; ++again)
      fails(WGAP_UNSUPPORTED_TARGET, said,
            [&](wgap_error* error) { return wgap_workspace_create(1, nullptr, &workspace, error); });
    EXPECT(workspace == nullptr);
    std::uint8_t pixel[1] = {7}, other[1] = {0};
    wgap_image from = WGAP_IMAGE_INIT;
    from.height = from.width = from.channels = 1, from.row_bytes = 1, from.bytes = 1, from.data = pixel;
    wgap_image to = from;
    to.data = other;
    fails(WGAP_UNSUPPORTED_TARGET, said, [&](wgap_error* error) { return wgap_resize(&from, &to, error); });
    EXPECT(other[0] == 0);
    Batch b(1, 3, 4, 5, 6);
    EXPECT(b.localize(Workspace(1, "baseline")) == WGAP_OK);
    _exit(0);
  }
  int status = -1;
  EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void rules() {
  wgap_rule rule = WGAP_RULE_INIT;
  const char* const maps[3] = {"recombined", "positive", "signed"};
  for (int map = 0; map < 3; ++map) {
    EXPECT(wgap_rule_parse("adaptive", maps[map], &rule, nullptr) == WGAP_OK);
    EXPECT(rule.kind == WGAP_RULE_ADAPTIVE && rule.map == map && rule.parameters[0] == 0.0);
    EXPECT(rule.struct_size == sizeof rule && rule.reserved == 0);
  }
  EXPECT(wgap_rule_parse("fixed:0.5", nullptr, &rule, nullptr) == WGAP_OK);
  EXPECT(rule.kind == WGAP_RULE_FIXED && rule.map == WGAP_MAP_RECOMBINED && rule.parameters[0] == 0.5);
  for (const char* const map : {static_cast<const char*>(nullptr), "none", "recombined", "positive", "signed"})
    for (const bool colour : {false, true}) {
      EXPECT(wgap_rule_parse(colour ? "foreground+colour" : "foreground", map, &rule, nullptr) == WGAP_OK);
      EXPECT(rule.kind == (colour ? WGAP_RULE_FOREGROUND_COLOUR : WGAP_RULE_FOREGROUND));
      EXPECT((rule.map == WGAP_MAP_NONE) == (map == nullptr || std::string(map) == "none"));
    }
  const auto eta_of = [&](const std::string& text) {
    EXPECT(wgap_rule_parse(text.c_str(), "signed", &rule, nullptr) == WGAP_OK);
    EXPECT(rule.kind == WGAP_RULE_FIXED && rule.map == WGAP_MAP_SIGNED);
    for (int i = 1; i < 6; ++i) EXPECT(rule.parameters[i] == 0.0);
    return rule.parameters[0];
  };
  const auto written = [&] {
    EXPECT(eta_of("fixed:0.2") == 0.2 && eta_of("fixed:0.35") == 0.35 && eta_of("fixed:2e-1") == 0.2);
    EXPECT(eta_of("fixed:0") == 0.0 && eta_of("fixed:0.999") == 0.999 && eta_of("fixed:.5") == 0.5);
    EXPECT(eta_of("fixed:0." + std::string(100000, '1')) == 1.0 / 9.0);
    EXPECT(eta_of("fixed:0.3000000000000000444089209850062616169452667236328125") == 0.3000000000000000444);
    rule = wgap_rule WGAP_RULE_INIT;
    rule.map = 77;
    for (const char* const text : {"", "fixed", "fixed:", "fixed:0,2", "fixed:0.2,", "fixed: 0.2", "fixed:0.2 ",
                                   "fixed:+0.2", "fixed:0x1p-2", "fixed:0.9991", "fixed:1", "fixed:-0.1", "fixed:nan",
                                   "fixed:inf", "fixed:1e999", "Adaptive", "adaptive ", "adaptive:0.2", "otsu"})
      fails(
          WGAP_UNKNOWN_RULE,
          "rule: expected 'adaptive', 'foreground', 'foreground+colour' or 'fixed:ETA' with ETA in [0, 0.999], got '" +
              std::string(text) + "'",
          [&](wgap_error* error) { return wgap_rule_parse(text, "signed", &rule, error); });
    const std::string endless(100000, 'x');  // named as far as it fits
    fails(WGAP_UNKNOWN_RULE, "got '" + endless.substr(0, 64) + "'",
          [&](wgap_error* error) { return wgap_rule_parse(endless.c_str(), "signed", &rule, error); });
    for (const std::string& map : {std::string(), std::string("cam"), std::string("signed "), endless})
      fails(WGAP_UNKNOWN_RULE, "map: expected 'recombined', 'positive' or 'signed', got '" + map.substr(0, 64) + "'",
            [&](wgap_error* error) { return wgap_rule_parse("adaptive", map.c_str(), &rule, error); });
    EXPECT(rule.map == 77);  // untouched by what failed
    rule = wgap_rule WGAP_RULE_INIT;
  };
  written();
  for (const char* const locale : {"de_DE.UTF-8", "de_DE.utf8", "de_DE", "fr_FR.UTF-8"})
    if (std::setlocale(LC_ALL, locale) != nullptr) {
      EXPECT(std::strcmp(std::localeconv()->decimal_point, ",") == 0);
      written();
      break;
    }
  std::setlocale(LC_ALL, "C");
}

void evidence() {
  const Workspace workspace(2);
  Batch b(5, 3, 4, 5, 6);  // the fourth image is zero everywhere
  for (const char* const text : {"adaptive", "fixed:0.3"}) {
    EXPECT(wgap_rule_parse(text, "recombined", &b.options.rule, nullptr) == WGAP_OK);
    b.want(3, 40, 50);
    EXPECT(b.localize(workspace) == WGAP_OK);
    const std::vector<wgap_record> bare = b.records;
    b.want(3, 40, 50, true, true);
    EXPECT(b.localize(workspace) == WGAP_OK);
    EXPECT(std::memcmp(bare.data(), b.records.data(), bare.size() * sizeof(wgap_record)) == 0);
    for (std::size_t i = 0; i < b.records.size(); ++i) {
      EXPECT((b.records[i].degenerate != 0) == (i / 3 == 3));
      const bool searched = b.records[i].level >= 0;
      EXPECT(searched == (text[0] == 'a' && i / 3 != 3));
      for (int l = 0; l <= WGAP_LEVELS; ++l) {
        const double mean = b.edge_means[i * (WGAP_LEVELS + 1) + static_cast<std::size_t>(l)];
        EXPECT(searched ? std::isnan(mean) || (mean >= 0.0 && mean <= 1.0) : std::isnan(mean));
      }
      // The peak's own edge: the set of the highest level holds pixels above it.
      if (searched) EXPECT(b.edge_means[i * (WGAP_LEVELS + 1) + WGAP_LEVELS - 1] > 0.9);
    }
  }
}

}  // namespace

int main() {
  a_wrong_target_in_the_environment();
  structs();
  bounds();
  pointers();
  rules();
  evidence();
  return 0;
}
