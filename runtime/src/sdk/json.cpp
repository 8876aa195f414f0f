#include "json.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace wgap::sdk {
namespace {

constexpr std::size_t kDeepest = 32;

std::string shown(const Json& value) {
  if (value.is_string()) return in_quotes(value.get_ref<const std::string&>());
  const std::string whole = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return whole.size() > 60 ? whole.substr(0, 60) + "..." : whole;
}

[[noreturn]] void refuse(const std::string& path, const std::string& expected, const Json& value) {
  throw PlainError((path.empty() ? "the whole" : path) + ": expected " + expected + ", got " + shown(value));
}

// UTF-8 that the parser has found whole.
bool has_control_characters(const std::string& text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c < 0x20 || c == 0x7f) return true;
    if (c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0) return true;
  }
  return false;
}

// Builds the value, and refuses what the library would let pass.
class Builder : public nlohmann::json_sax<Json> {
 public:
  Json value;

  bool null() override { return put(nullptr); }
  bool boolean(bool given) override { return put(given); }
  bool number_integer(number_integer_t given) override { return put(given); }
  bool number_unsigned(number_unsigned_t given) override {
    if (given > static_cast<number_unsigned_t>(INT64_MAX))
      throw PlainError("expected a whole number of 64 bits, got " + std::to_string(given));
    return put(static_cast<number_integer_t>(given));
  }
  bool number_float(number_float_t given, const string_t& lexeme) override {
    if (lexeme.find_first_not_of("-0123456789") == std::string::npos)  // not by its point, which the locale decides
      throw PlainError("expected a whole number of 64 bits, got " + in_quotes(lexeme));
    if (!std::isfinite(given)) throw PlainError("expected a finite number, got " + in_quotes(lexeme));
    return put(given);
  }
  bool string(string_t& given) override {
    require_text(given);
    return put(std::move(given));
  }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }
  bool key(string_t& given) override {
    require_text(given);
    if (!keys_.back().insert(given).second)
      throw PlainError("the key " + in_quotes(given) + " stands twice in one object");
    key_ = std::move(given);
    return true;
  }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::detail::exception&) override {
    throw PlainError(text("no JSON at byte %zu", at));
  }

 private:
  std::vector<Json*> open_;
  std::vector<std::set<std::string>> keys_;  // of each that is open
  std::string key_;

  static void require_text(const std::string& text) {
    if (has_control_characters(text))
      throw PlainError("expected text without control characters, got " + in_quotes(text));
  }
  Json* place(Json given) {
    if (open_.empty()) return &(value = std::move(given));
    Json& in = *open_.back();
    if (in.is_array()) return &in.emplace_back(std::move(given));
    // Ordered objects search: what is not there yet, as `key` has seen, is put at the end.
    auto& members = in.get_ref<Json::object_t&>();
    members.Container::emplace_back(std::move(key_), std::move(given));
    return &members.back().second;
  }
  bool put(Json given) { return place(std::move(given)), true; }
  bool open(Json given) {
    if (open_.size() == kDeepest) throw PlainError("lists and objects lie deeper than 32 levels within each other");
    Json* const made = place(std::move(given));  // it stays where it is while it is open: nothing is added beside it
    open_.push_back(made);
    keys_.emplace_back();
    return true;
  }
  bool close() { return open_.pop_back(), keys_.pop_back(), true; }
};

// As Python's str.strip understands space, beyond control characters.
bool is_blank(const std::string& name) {
  static const std::set<std::string> kWide = [] {
    std::set<std::string> made = {"\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\xa8", "\xe2\x80\xa9",
                                  "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
    for (char c = '\x80'; c <= '\x8a'; ++c) made.insert(std::string("\xe2\x80") + c);
    return made;
  }();
  for (std::size_t i = 0; i < name.size();) {
    const auto first = static_cast<unsigned char>(name[i]);
    const std::size_t length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if (name[i] != ' ' && kWide.count(name.substr(i, length)) == 0) return false;
    i += length;
  }
  return true;
}

void require_fields(const Type& type, const Json& value, const std::string& path) {
  if (!value.is_object()) refuse(path, "an object", value);
  const std::string below = path.empty() ? "" : path + ".";
  for (const auto& [name, item] : value.items()) {
    const bool known = std::any_of(type.fields.begin(), type.fields.end(),
                                   [&name = name](const Field& field) { return name == field.name; });
    if (!known) throw PlainError(below + in_quotes(name) + ": no such field");
  }
  for (const Field& field : type.fields)
    if (field.required && !value.contains(field.name)) throw PlainError(below + field.name + ": missing");
  for (const Field& field : type.fields)
    if (const auto found = value.find(field.name); found != value.end())
      require(field.type, *found, below + field.name);
}

}  // namespace

Json read_json(std::string_view text) {
  if (text.substr(0, 3) == "\xef\xbb\xbf") throw PlainError("it begins with a byte order mark");
  Builder builder;
  Json::sax_parse(text.begin(), text.end(), &builder);
  return std::move(builder.value);
}

void require_distinct(const char* path, std::vector<std::string> names) {
  if (names.empty()) throw PlainError(std::string(path) + ": expected names, got none");
  std::sort(names.begin(), names.end());
  for (std::size_t i = 0; i < names.size(); ++i)
    if (is_blank(names[i]) || (i > 0 && names[i] == names[i - 1]))
      throw PlainError(std::string(path) + ": expected names, none of them empty, each once; got " +
                       in_quotes(names[i]));
}

void require(const Type& type, const Json& value, const std::string& path) {
  if (type.nullable && value.is_null()) return;
  switch (type.kind) {
    case Type::kAny: return;
    case Type::kText:
      if (!value.is_string()) refuse(path, "text", value);
      return;
    case Type::kWhole:
      if (!value.is_number_integer()) refuse(path, "a whole number", value);
      return;
    case Type::kNumber:
      if (!value.is_number()) refuse(path, "a number", value);
      return;
    case Type::kTruth:
      if (!value.is_boolean()) refuse(path, "true or false", value);
      return;
    case Type::kWholeOrText:
      if (!value.is_string() && !value.is_number_integer()) refuse(path, "a whole number or text", value);
      return;
    case Type::kWord: {
      const auto same = [&](const char* word) { return value == word; };
      if (std::none_of(type.words.begin(), type.words.end(), same)) {
        std::string words;
        for (const char* const word : type.words) words += (words.empty() ? "" : ", ") + std::string(word);
        refuse(path, "one of " + words, value);
      }
      return;
    }
    case Type::kList:
      if (!value.is_array()) refuse(path, "a list", value);
      if (type.count != 0 && value.size() != type.count) refuse(path, std::to_string(type.count) + " values", value);
      for (std::size_t i = 0; i < value.size(); ++i) require(type.item[0], value[i], path + text("[%zu]", i));
      return;
    case Type::kTable:
      if (!value.is_object()) refuse(path, "an object", value);
      for (const auto& [name, item] : value.items()) require(type.item[0], item, path + "." + name);
      return;
    case Type::kRule: try { rule_of(value);
      } catch (const Failure& failure) {
        throw PlainError(path + ": " + failure.text());
      }
      return;
    case Type::kObject: require_fields(type, value, path); return;
  }
}

}  // namespace wgap::sdk
