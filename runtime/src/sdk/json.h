// JSON as the Python package's wgap.plain reads it, so that both readers of a manifest take the same texts.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "failure.h"

namespace wgap::sdk {

using Json = nlohmann::ordered_json;

// A value is not what its field's type says; `text` starts with the field's path.
class PlainError : public Failure {
 public:
  explicit PlainError(std::string text) : Failure(WGAP_MANIFEST_ERROR, std::move(text)) {}
};

// No key twice in one object, 32 levels at most, whole characters without control characters, finite numbers, integers
// of 64 bits. Throws PlainError.
Json read_json(std::string_view text);

// Refuses an empty list, an empty name and one that comes twice. Throws PlainError.
void require_distinct(const char* path, std::vector<std::string> names);

// The type of a field, and what an object of these fields is.
struct Field;
struct Type {
  enum Kind { kAny, kText, kWhole, kNumber, kTruth, kList, kTable, kObject, kWord, kWholeOrText, kRule };
  Kind kind;
  std::vector<Type> item = {};          // of a list or a table: of each entry
  std::vector<Field> fields = {};       // of an object
  std::vector<const char*> words = {};  // of a word: those that it may be
  std::size_t count = 0;                // of a list: how many, or 0 for any number
  bool nullable = false;
};
struct Field {
  const char* name;
  Type type;
  bool required = true;
};

// Compares a value with a type. Throws PlainError.
void require(const Type& type, const Json& value, const std::string& path);

// A rule from its object in a manifest. Throws Failure with WGAP_RULE_ERROR.
wgap_rule rule_of(const Json& value);

}  // namespace wgap::sdk
