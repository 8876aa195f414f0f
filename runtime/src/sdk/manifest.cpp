#include "manifest.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "json.h"
#include "outputs.h"

namespace wgap::sdk {
namespace {

constexpr int kSchema = 2;
constexpr std::int64_t kLargest = 65535;  // of the extents of a tensor
constexpr std::size_t kMostFiles = 1000;
constexpr std::size_t kLongest = 240;  // bytes of a file's path

// -- What stands where: the dataclasses of wgap.manifest and wgap.schema1, field by field --

Type list(Type item, std::size_t count = 0) { return {Type::kList, {std::move(item)}, {}, {}, count}; }
Type table(Type item) { return {Type::kTable, {std::move(item)}}; }
Type object(std::vector<Field> fields) { return {Type::kObject, {}, std::move(fields)}; }
Type word(std::vector<const char*> words) { return {Type::kWord, {}, {}, std::move(words)}; }
Type nullable(Type type) { return type.nullable = true, type; }
Field optional(const char* name, Type type) { return {name, std::move(type), false}; }

// Made at the first use: programs may open a bundle before this file's own variables are made.
struct Schema {
  const Type kAny{Type::kAny}, kText{Type::kText}, kWhole{Type::kWhole}, kNumber{Type::kNumber}, kTruth{Type::kTruth};
  const Type kRule{Type::kRule};

  const Type kTexts = list(kText), kFree = table(kAny), kTools = table(kText);
  const Type kTensor = object({{"name", kText},
                               {"dtype", word({"uint8", "float32"})},
                               {"shape", list({Type::kWholeOrText})},
                               {"layout", kText}});
  const Type kModel = object({{"architecture", object({{"name", kText}, optional("parameters", kFree)})},
                              {"classes", kTexts},
                              {"inputs", list(kTensor)},
                              {"outputs", list(kTensor)}});
  const Type kPreprocessing = object({{"name", kText},
                                      {"channel_order", word({"rgb", "bgr"})},
                                      {"scale", kNumber},
                                      {"mean", list(kNumber, 3)},
                                      {"std", list(kNumber, 3)}});
  const Type kImages = list(object({{"name", kText}, {"sha256", kText}, {"pixels_sha256", kText}}));
  const Type kTraining = object({{"checkpoint_sha256", kText}, {"tools", kTools}, optional("opset", nullable(kWhole))});
  const Type kImport = object({{"source_sha256", kText},
                               {"external_sha256", kTexts},
                               {"logits", kText},
                               {"features", kText},
                               {"nodes", kTools},
                               {"pooling", word({"gap", "wgap"})},
                               {"features_min", kNumber},
                               {"figures", kFree},
                               {"opset", kWhole},
                               {"tools", kTools}});
  const Type kCalibration = object({{"float32_sha256", kText},
                                    {"images_sha256", kText},
                                    {"images", kImages},
                                    {"warnings", kTexts},
                                    {"keep_float", kTexts},
                                    {"tools", kTools},
                                    optional("quantisation", nullable(kFree)),
                                    optional("headroom", nullable(list(kFree)))});
  const Type kGate = object({{"passed", kTruth},
                             {"reasons", kTexts},
                             {"rule", kRule},
                             {"candidate_sha256", kText},
                             {"float32_sha256", kText},
                             {"backend", kText},
                             {"limits", table(kNumber)},
                             {"figures", kFree},
                             optional("int8_sums", nullable(word({"exact", "saturating"})))});
  const Type kForeground = object({{"images_sha256", kText},
                                   {"images", kImages},
                                   {"warnings", kTexts},
                                   {"labels", kText},
                                   {"coarse", kText},
                                   {"separation", kFree},
                                   {"constants", kFree},
                                   {"tools", kTools},
                                   optional("fine", nullable(kText)),
                                   optional("finer", nullable(kText))});
  const Type kEngine = object({{"flavor", kText},
                               {"version", kText},
                               {"architecture", kText},
                               {"platform", kText},
                               {"profile", object({{"min", kWhole}, {"opt", kWhole}, {"max", kWhole}})},
                               {"onnx_sha256", kText},
                               optional("options", kFree),
                               optional("gpu", nullable(kText)),
                               optional("driver", nullable(kText)),
                               optional("cuda", nullable(kText)),
                               optional("calibration_sha256", nullable(kText)),
                               optional("attestation", kFree),
                               optional("tools", kTools)});
  const Type kFile = object({{"path", kText},
                             {"role", kText},
                             {"precision", kText},
                             {"sha256", kText},
                             {"size", kWhole},
                             optional("training", nullable(kTraining)),
                             optional("calibration", nullable(kCalibration)),
                             optional("gate", nullable(kGate)),
                             optional("engine", nullable(kEngine)),
                             optional("foreground", nullable(kForeground)),
                             optional("gates", nullable(table(kGate))),
                             optional("import", nullable(kImport))});
  const Type kWhole2 = object({{"model", kModel},
                               {"preprocessing", kPreprocessing},
                               {"rule", kRule},
                               {"files", list(kFile)},
                               {"wgap_version", kText}});

  // Of schema 1, what is not known is left out at some levels.
  const Type kModel1 = object({{"backbone", kText},
                               {"width", kNumber},
                               {"stride", kWhole},
                               {"neck", kText},
                               {"pooling", kText},
                               {"classes", kTexts},
                               {"input_size", list(kWhole, 2)},
                               {"feature_shape", list(kWhole, 3)}});
  const Type kFile1 = object({{"path", kText},
                              {"role", kText},
                              {"precision", kText},
                              {"sha256", kText},
                              {"size", kWhole},
                              optional("provenance", kFree)});
  const Type kWhole1 = object({{"model", kModel1},
                               {"preprocessing", kPreprocessing},
                               {"postprocessing", object({optional("map", kText), optional("threshold", kText)})},
                               {"files", list(kFile1)},
                               {"wgap_version", kText}});
  const Type kLowered1 =
      object({{"float32_sha256", kText},
              {"calibration", object({{"sha256", kText}, {"images", kImages}, {"warnings", kTexts}})},
              {"tools", kTools},
              optional("quantisation", nullable(kFree)),
              optional("lowering", nullable(kFree))});
  const Type kDetails1 = object({optional("keep_float", kTexts), optional("headroom", nullable(list(kFree)))});
  const Type kGate1 = object({{"passed", kTruth},
                              {"reasons", kTexts},
                              {"map", kText},
                              {"threshold", kText},
                              {"candidate_sha256", kText},
                              {"float32_sha256", kText},
                              {"backend", kText},
                              {"limits", table(kNumber)}});
};
const Schema& schema() {
  static const Schema one;
  return one;
}

// Those fields of an object that are known, judged.
Json known(const Type& type, const Json& value, const std::string& path) {
  Json kept = value;
  if (value.is_object()) {
    kept = Json::object();
    for (const Field& field : type.fields)
      if (const auto found = value.find(field.name); found != value.end()) kept[field.name] = *found;
  }
  require(type, kept, path);
  return kept;
}

std::string or_empty(const Json& value, const char* name) {
  const auto found = value.find(name);
  return found == value.end() || found->is_null() ? "" : found->get<std::string>();
}

Gate gate_of(const Json& value, const wgap_rule& rule) {
  return {value["passed"],           value["reasons"],        rule,
          value["candidate_sha256"], value["float32_sha256"], or_empty(value, "int8_sums")};
}

Tensor tensor_of(const Json& value) {
  Tensor made{value["name"], value["dtype"], value["layout"], {}};
  for (const Json& extent : value["shape"])  // what is out of range, and a text that is no "N", are 0
    made.shape.push_back(extent.is_string() ? (extent == "N" ? -1 : 0)
                                            : std::max<std::int64_t>(0, extent.get<std::int64_t>()));
  return made;
}

File file_of(const Json& value) {
  return {value["path"], value["role"], value["precision"], value["sha256"], value["size"], {}, {}, {}};
}

const Json* record_of(const Json& value, const char* name) {
  const auto found = value.find(name);
  return found == value.end() || found->is_null() ? nullptr : &*found;
}

wgap_rule rule1_of(const Json& value, const std::string& path) {
  try {
    return rule_of(value.value("threshold", "adaptive").c_str(), value.value("map", "recombined").c_str());
  } catch (const Failure& failure) {
    throw PlainError(path + ": " + failure.text());
  }
}

// What Python takes for true.
bool is_true(const Json& value, const char* name) {
  const auto found = value.find(name);
  if (found == value.end() || found->is_null()) return false;
  if (found->is_boolean()) return found->get<bool>();
  if (found->is_number()) return *found != 0;
  return found->is_string() ? !found->get_ref<const std::string&>().empty() : !found->empty();
}

Engine engine_of(const Json& value, const std::string& path) {
  const Json &batches = value["profile"], options = value.value("options", Json::object());
  Engine made{value["flavor"],
              value["version"],
              value["architecture"],
              value["platform"],
              value["onnx_sha256"],
              batches["min"],
              batches["opt"],
              batches["max"],
              {},
              is_true(options, "version_compatible"),
              is_true(options, "strip_weights")};
  if (made.least < 1 || made.usual < made.least || made.most < made.usual)
    throw PlainError(path + ".engine.profile: expected 1 <= min <= opt <= max");
  if (const auto kept = options.find("outputs"); kept != options.end() && kept->is_array())
    for (const Json& name : *kept)
      if (name.is_string()) made.outputs.push_back(name);
  return made;
}

void read_schema2(const Json& raw, Manifest* made) {
  require(schema().kWhole2, raw, "");
  const Json& model = raw["model"];
  made->classes = model["classes"].get<std::vector<std::string>>();
  for (const Json& tensor : model["inputs"]) made->inputs.push_back(tensor_of(tensor));
  for (const Json& tensor : model["outputs"]) made->outputs.push_back(tensor_of(tensor));
  made->rule = rule_of(raw["rule"]);
  for (const Json& entry : raw["files"]) {
    File file = file_of(entry);
    if (const Json* const gate = record_of(entry, "gate")) file.gate = gate_of(*gate, rule_of((*gate)["rule"]));
    if (const Json* const gates = record_of(entry, "gates"))
      for (const auto& [backend, gate] : gates->items())
        file.gates.insert_or_assign(backend, gate_of(gate, rule_of(gate["rule"])));
    if (const Json* const from = record_of(entry, "calibration")) file.made_from = (*from)["float32_sha256"];
    if (const Json* const from = record_of(entry, "import")) file.features_min = (*from)["features_min"];
    const std::string path = text("files[%zu]", made->files.size());
    if (const Json* const engine = record_of(entry, "engine"))
      file.engine = engine_of(*engine, path);
    else if (file.role == "engine")
      throw PlainError(path + ".engine: missing");
    made->files.push_back(std::move(file));
  }
}

// As wgap.schema1 reads them.
void read_schema1(const Json& given, Manifest* made) {
  const Json raw = known(schema().kWhole1, given, "");
  const Json& model = raw["model"];
  made->classes = model["classes"].get<std::vector<std::string>>();
  const Json &size = model["input_size"], &features = model["feature_shape"];
  made->inputs = {{"image", "uint8", "NHWC", {-1, size[0], size[1], 3}}};
  made->outputs = {{"logits", "float32", "NK", {-1, static_cast<std::int64_t>(made->classes.size())}},
                   {"features", "float32", "NCHW", {-1, features[0], features[1], features[2]}}};
  made->rule = rule1_of(raw["postprocessing"], "postprocessing");
  for (const Json& entry : raw["files"]) {
    File file = file_of(entry);
    const std::string name = text("files[%zu]", made->files.size()), path = name + ".provenance";
    const Json from = entry.value("provenance", Json::object());
    if (from.contains("checkpoint_sha256")) known(schema().kTraining, from, path);
    if (from.contains("calibration") && file.role != "engine") {
      const Json lowered = known(schema().kLowered1, from, path);
      const char* const stage = record_of(lowered, "quantisation") == nullptr ? "lowering" : "quantisation";
      known(schema().kDetails1, from.value(stage, Json::object()), path + "." + stage);
      file.made_from = lowered["float32_sha256"];
    }
    if (from.contains("gate")) {
      const Json gate = known(schema().kGate1, from["gate"], path + ".gate");
      file.gate = gate_of(gate, rule1_of(gate, path + ".gate"));
    }
    if (file.role == "engine") file.engine = engine_of(known(schema().kEngine, from, path), name);
    made->files.push_back(std::move(file));
  }
}

// -- What types do not say --

std::string shown(const Tensor& tensor) {
  std::string made = tensor.dtype + "[";
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    if (i > 0) made += ", ";
    made += tensor.shape[i] == -1 ? "N" : std::to_string(tensor.shape[i]);
  }
  return made + "]";
}

void check_tensor(const Tensor& tensor, const char* layout, std::int64_t last) {
  const auto whole = [](std::int64_t extent) { return extent > 0 && extent <= kLargest; };
  const bool fits = tensor.layout == layout && tensor.shape.size() == std::strlen(layout) && tensor.shape[0] == -1 &&
                    std::all_of(tensor.shape.begin() + 1, tensor.shape.end(), whole);
  const std::string said = "model: " + tensor.name + " is " + shown(tensor);
  if (!fits)
    throw PlainError(said + " in layout " + in_quotes(tensor.layout) +
                     "; expected N first, then extents of 1..65535, in layout " + layout);
  const char* const dtype = tensor.name == "image" ? "uint8" : "float32";
  if (tensor.dtype != dtype) throw PlainError(said + "; expected " + dtype);
  if (last != 0 && tensor.shape.back() != last)
    throw PlainError(said + ", but the last extent must be " + std::to_string(last));
  if (tensor.name == "foreground" && tensor.shape[1] != 1) throw PlainError(said + "; expected one channel");
}

// The parts of a path, as pathlib's PurePosixPath takes it apart.
std::vector<std::string> parts_of(const std::string& path) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at <= path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    if (const std::string part = path.substr(at, end - at); !part.empty() && part != ".") parts.push_back(part);
    at = end + 1;
  }
  return parts;
}

void check_file(const File& file, std::size_t number) {
  const std::string path = text("files[%zu]", number);
  const std::vector<std::string> parts = parts_of(file.path);
  if (file.path.substr(0, 1) == "/" || std::find(parts.begin(), parts.end(), "..") != parts.end())
    throw PlainError(path + ".path: " + in_quotes(file.path) + " lies outside the bundle; refusing to read it");
  const auto printable = [](char c) { return c >= 0x20 && c < 0x7f; };
  const bool manifest = parts.size() == 1 && parts[0] == kManifest;
  if (parts.empty() || manifest || file.path.size() > kLongest ||
      !std::all_of(file.path.begin(), file.path.end(), printable))
    throw PlainError(path +
                     ".path: expected the path of a file, of printable ASCII characters and at most 240 bytes, got " +
                     in_quotes(file.path));
  const auto digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (file.sha256.size() != 64 || !std::all_of(file.sha256.begin(), file.sha256.end(), digit) || file.size < 0)
    throw PlainError(path + ": expected a sha256 of 64 hexadecimal digits and a size of 0 or more, got " +
                     in_quotes(file.sha256) + " and " + std::to_string(file.size));
}

void check(const Manifest& manifest) {
  require_distinct("model.classes", manifest.classes);
  std::vector<std::string> names;
  for (const auto* const tensors : {&manifest.inputs, &manifest.outputs})
    for (const Tensor& tensor : *tensors) names.push_back(tensor.name);
  require_distinct("model", names);
  if (manifest.files.size() > kMostFiles)
    throw PlainError(text("files: expected at most %zu, got %zu", kMostFiles, manifest.files.size()));
  std::vector<std::string> paths, roles;
  for (const File& file : manifest.files) {
    std::string path = file.path.substr(0, 1) == "/" ? "/" : "";
    for (const std::string& part : parts_of(file.path)) path += (path.empty() || path == "/" ? "" : "/") + part;
    paths.push_back(path.empty() ? "." : path);
    // Stripped, "a " of no precision is "a"; what is within stays apart.
    if (file.role == "golden" || file.role == "engine") continue;
    const std::string role = file.role + " " + file.precision;
    const std::size_t first = role.find_first_not_of(' '), last = role.find_last_not_of(' ');
    roles.push_back(first == std::string::npos ? "" : role.substr(first, last - first + 1));
  }
  require_distinct("files", paths);
  require_distinct("files", roles);
  struct Expected {
    const char *name, *layout;
    std::int64_t last;
  };
  std::vector<Expected> expected = {{"image", "NHWC", 3},
                                    {"logits", "NK", static_cast<std::int64_t>(manifest.classes.size())},
                                    {"features", "NCHW", 0}};
  if (manifest.tensor("foreground") != nullptr || on_scores(manifest.rule))
    expected.push_back({"foreground", "NCHW", 0});
  for (const Expected& one : expected) {
    const Tensor* const tensor = manifest.tensor(one.name);
    if (tensor == nullptr) throw PlainError(text("model: the signature has no tensor '%s'", one.name));
    check_tensor(*tensor, one.layout, one.last);
  }
  for (std::size_t i = 0; i < manifest.files.size(); ++i) check_file(manifest.files[i], i);
}

}  // namespace

bool has_own_verdict(const std::string& backend) { return backend == "openvino"; }

const Gate* File::verdict(const std::string& backend) const {
  if (!has_own_verdict(backend)) return gate ? &*gate : nullptr;
  const auto found = gates.find(backend);
  return found == gates.end() ? nullptr : &found->second;
}

const Tensor* Manifest::tensor(std::string_view name) const {
  for (const auto* const tensors : {&inputs, &outputs})
    for (const Tensor& tensor : *tensors)
      if (tensor.name == name) return &tensor;
  return nullptr;
}

Manifest read_manifest(std::string content, const std::string& where) {
  const auto refuse = [&](const std::string& why) {
    throw Failure(WGAP_MANIFEST_ERROR, where + " " + why + "; export the bundle again");
  };
  Json raw;
  try {
    raw = read_json(content);
  } catch (const PlainError& error) {
    refuse("is no manifest: " + error.text());
  }
  const Json schema = raw.is_object() ? raw.value("schema", Json()) : Json();
  if (!schema.is_number_integer())
    fail(WGAP_MANIFEST_ERROR, "%s has no schema number; expected \"schema\": %d. Is this a wgap bundle?", where.c_str(),
         kSchema);
  const auto number = schema.get<std::int64_t>();
  if (number > kSchema)
    fail(WGAP_MANIFEST_ERROR, "%s has schema %lld, this wgap reads up to %d; upgrade wgap", where.c_str(),
         static_cast<long long>(number), kSchema);
  if (number < 1) refuse(text("has schema %lld, expected %d", static_cast<long long>(number), kSchema));
  raw.erase("schema");
  Manifest made{static_cast<int>(number), {}, {}, {}, WGAP_RULE_INIT, {}, std::move(content)};
  try {
    (number == 1 ? read_schema1 : read_schema2)(raw, &made);
    check(made);
  } catch (const PlainError& error) {
    refuse(text("does not follow schema %d: ", made.schema) + error.text());
  }
  return made;
}

// -- Rules --

namespace {

// The shortest digits, with a point in every locale.
std::string number_text(double value) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, value).ptr};
}

}  // namespace

wgap_rule rule_of(const char* given, const char* map) {
  wgap_rule rule = WGAP_RULE_INIT;
  wgap_error error = WGAP_ERROR_INIT;
  if (wgap_rule_parse(given, map, &rule, &error) != WGAP_OK) throw Failure(WGAP_RULE_ERROR, error.text);
  return rule;
}

wgap_rule rule_of(const Json& value) {
  const bool fits = value.is_object() && value.contains("kind") && value.contains("map") && value["kind"].is_string() &&
                    value["map"].is_string() && value.size() == (value.contains("eta") ? 3U : 2U) &&
                    (!value.contains("eta") || value["eta"].is_number());
  if (!fits) throw Failure(WGAP_RULE_ERROR, "rule: expected {\"kind\", \"map\"} and, of a fixed one, \"eta\"");
  const std::string kind = value["kind"], map = value["map"];
  // A kind is one of the words; "fixed:0.2" is a text for both kind and parameter.
  if (kind.find(':') != std::string::npos)
    throw Failure(WGAP_RULE_ERROR, "kind: expected a word, got " + in_quotes(kind));
  const std::string whole = value.contains("eta") ? kind + ":" + number_text(value["eta"].get<double>()) : kind;
  return rule_of(whole.c_str(), map.c_str());
}

bool equal(const wgap_rule& a, const wgap_rule& b) {
  return a.kind == b.kind && a.map == b.map && a.parameters[0] == b.parameters[0];
}

std::string rule_text(const wgap_rule& rule) {
  switch (rule.kind) {
    case WGAP_RULE_FIXED: return "fixed:" + number_text(rule.parameters[0]);
    case WGAP_RULE_FOREGROUND: return "foreground";
    case WGAP_RULE_FOREGROUND_COLOUR: return "foreground+colour";
    default: return "adaptive";
  }
}

const char* map_text(const wgap_rule& rule) {
  constexpr const char* kNames[] = {"recombined", "positive", "signed", "none"};
  return rule.map >= 0 && rule.map <= WGAP_MAP_NONE ? kNames[rule.map] : "?";
}

void require_rule(const wgap_rule& rule) {
  if (rule.kind < WGAP_RULE_ADAPTIVE || rule.kind > WGAP_RULE_FOREGROUND_COLOUR || rule.map < 0 ||
      rule.map > WGAP_MAP_NONE)
    fail(WGAP_RULE_ERROR, "rule: expected a kind of 0..3 and a map of 0..3, got %d and %d", rule.kind, rule.map);
  rule_of(rule_text(rule).c_str(), map_text(rule));
}

}  // namespace wgap::sdk
