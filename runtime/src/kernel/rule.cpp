#include "rule.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "arithmetic.h"
#include "checks.h"

namespace wgap {

namespace {

constexpr const char* kMaps[] = {"recombined", "positive", "signed", "none"};

// By kind.
constexpr const char* kKinds[] = {"adaptive", "fixed:", "foreground", "foreground+colour"};

// For the sentences below.
constexpr const char kRules[] = "'adaptive', 'foreground', 'foreground+colour' or 'fixed:ETA' with ETA in [0, 0.999]";
const char* map_names(int kind) {
  return kind >= WGAP_RULE_FOREGROUND ? "'recombined', 'positive', 'signed' or 'none'"
                                      : "'recombined', 'positive' or 'signed'";
}

// The last that a kind may have.
int last_map(int kind) { return kind >= WGAP_RULE_FOREGROUND ? WGAP_MAP_NONE : WGAP_MAP_SIGNED; }

// How many of a text's first bytes to quote: at most 64, and no half of a UTF-8 character.
int quoted(const char* text) {
  int length = static_cast<int>(strnlen(text, 65));
  if (length > 64)
    for (length = 64; length > 0 && (static_cast<unsigned char>(text[length]) & 0xc0) == 0x80;) --length;
  return length;
}

bool known(double eta) { return eta >= 0.0 && eta <= kLargestEta; }

}  // namespace

wgap_status kernel_rule(const wgap_rule& given, Rule* rule, wgap_error* error) {
  WGAP_CHECK(check_size("wgap_rule", given.struct_size, sizeof(wgap_rule), sizeof(wgap_rule), error));
  if (given.reserved != 0)
    return fail(error, WGAP_INVALID_ARGUMENT, "wgap_rule: expected reserved 0, got %d", given.reserved);
  if (given.kind < WGAP_RULE_ADAPTIVE || given.kind > WGAP_RULE_FOREGROUND_COLOUR)
    return fail(error, WGAP_UNKNOWN_RULE, "rule: expected %s, got kind number %d", kRules, given.kind);
  if (given.map < WGAP_MAP_RECOMBINED || given.map > last_map(given.kind))
    return fail(error, WGAP_UNKNOWN_RULE, "map: expected %s, got number %d", map_names(given.kind), given.map);
  const int parameters = given.kind == WGAP_RULE_FIXED ? 1 : 0;
  for (int i = parameters; i < 6; ++i)
    if (given.parameters[i] != 0.0)  // a NaN, too
      return fail(error, WGAP_UNKNOWN_RULE, "rule: expected 0 beyond its %d parameters, parameters[%d] is %g",
                  parameters, i, given.parameters[i]);
  if (parameters == 1 && !known(given.parameters[0]))
    return fail(error, WGAP_UNKNOWN_RULE, "rule: expected %s, got fixed with ETA %g", kRules, given.parameters[0]);
  *rule = parameters == 0 ? Rule{given.kind, given.map, 0, 0.0} : fixed_rule(given.parameters[0], given.map);
  return WGAP_OK;
}

}  // namespace wgap

extern "C" wgap_status wgap_rule_parse(const char* text, const char* map, wgap_rule* rule, wgap_error* error) {
  using wgap::fail;
  WGAP_CHECK(wgap::check_error(error));
  if (text == nullptr || rule == nullptr || !wgap::aligned(rule))
    return fail(error, WGAP_INVALID_ARGUMENT, "wgap_rule_parse: expected text and an aligned rule, got %p and %p",
                static_cast<const void*>(text), static_cast<void*>(rule));
  WGAP_CHECK(wgap::check_size("wgap_rule", rule->struct_size, sizeof(wgap_rule), sizeof(wgap_rule), error));
  const wgap::DefaultArithmetic arithmetic;  // the number's bits, too, must not depend on the caller's rounding
  wgap_rule parsed = WGAP_RULE_INIT;
  if (std::strncmp(text, "fixed:", 6) == 0) {
    const char* const end = text + std::strlen(text);
    const auto [stopped, failed] = std::from_chars(text + 6, end, parsed.parameters[0]);
    if (failed == std::errc() && stopped == end && wgap::known(parsed.parameters[0])) parsed.kind = WGAP_RULE_FIXED;
  }
  const auto index_of = [](const auto& names, const char* wanted) {
    return std::find_if(std::begin(names), std::end(names),
                        [wanted](const char* name) { return std::strcmp(name, wanted) == 0; }) -
           std::begin(names);
  };
  if (parsed.kind != WGAP_RULE_FIXED) {
    parsed.kind = static_cast<std::int32_t>(index_of(wgap::kKinds, text));
    if (parsed.kind > WGAP_RULE_FOREGROUND_COLOUR || parsed.kind == WGAP_RULE_FIXED)
      return fail(error, WGAP_UNKNOWN_RULE, "rule: expected %s, got '%.*s'", wgap::kRules, wgap::quoted(text), text);
  }
  if (parsed.kind >= WGAP_RULE_FOREGROUND) parsed.map = WGAP_MAP_NONE;
  if (map != nullptr) parsed.map = static_cast<std::int32_t>(index_of(wgap::kMaps, map));
  if (parsed.map > wgap::last_map(parsed.kind))
    return fail(error, WGAP_UNKNOWN_RULE, "map: expected %s, got '%.*s'", wgap::map_names(parsed.kind),
                wgap::quoted(map), map);
  *rule = parsed;
  return WGAP_OK;
}
