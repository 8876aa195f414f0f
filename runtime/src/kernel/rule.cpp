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

constexpr const char* kMaps[] = {"recombined", "positive", "signed"};

// For the sentences below.
constexpr const char kRules[] = "'adaptive' or 'fixed:ETA' with ETA in [0, 0.999]";
constexpr const char kMapNames[] = "'recombined', 'positive' or 'signed'";

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
  if (given.map < WGAP_MAP_RECOMBINED || given.map > WGAP_MAP_SIGNED)
    return fail(error, WGAP_UNKNOWN_RULE, "map: expected %s, got number %d", kMapNames, given.map);
  const int parameters = given.kind == WGAP_RULE_ADAPTIVE ? 0 : given.kind == WGAP_RULE_FIXED ? 1 : -1;
  if (parameters < 0)
    return fail(error, WGAP_UNKNOWN_RULE, "rule: expected %s, got kind number %d", kRules, given.kind);
  for (int i = parameters; i < 6; ++i)
    if (given.parameters[i] != 0.0)  // a NaN, too
      return fail(error, WGAP_UNKNOWN_RULE, "rule: expected 0 beyond its %d parameters, parameters[%d] is %g",
                  parameters, i, given.parameters[i]);
  if (parameters == 1 && !known(given.parameters[0]))
    return fail(error, WGAP_UNKNOWN_RULE, "rule: expected %s, got fixed with ETA %g", kRules, given.parameters[0]);
  *rule = parameters == 0 ? adaptive_rule(given.map) : fixed_rule(given.parameters[0], given.map);
  return WGAP_OK;
}

}  // namespace wgap

extern "C" wgap_status wgap_rule_parse(const char* text, const char* map, wgap_rule* rule, wgap_error* error) {
  using wgap::fail;
  WGAP_CHECK(wgap::check_error(error));
  if (text == nullptr || map == nullptr || rule == nullptr || !wgap::aligned(rule))
    return fail(error, WGAP_INVALID_ARGUMENT,
                "wgap_rule_parse: expected text, map and an aligned rule, got %p, %p and %p",
                static_cast<const void*>(text), static_cast<const void*>(map), static_cast<void*>(rule));
  WGAP_CHECK(wgap::check_size("wgap_rule", rule->struct_size, sizeof(wgap_rule), sizeof(wgap_rule), error));
  const wgap::DefaultArithmetic arithmetic;  // the number's bits, too, must not depend on the caller's rounding
  wgap_rule parsed = WGAP_RULE_INIT;
  const auto* const name = std::find_if(std::begin(wgap::kMaps), std::end(wgap::kMaps),
                                        [map](const char* known) { return std::strcmp(known, map) == 0; });
  if (name == std::end(wgap::kMaps))
    return fail(error, WGAP_UNKNOWN_RULE, "map: expected %s, got '%.*s'", wgap::kMapNames, wgap::quoted(map), map);
  parsed.map = static_cast<std::int32_t>(name - wgap::kMaps);
  if (std::strncmp(text, "fixed:", 6) == 0) {
    const char* const end = text + std::strlen(text);
    const auto [stopped, failed] = std::from_chars(text + 6, end, parsed.parameters[0]);
    if (failed == std::errc() && stopped == end && wgap::known(parsed.parameters[0])) parsed.kind = WGAP_RULE_FIXED;
  }
  if (parsed.kind == WGAP_RULE_ADAPTIVE && std::strcmp(text, "adaptive") != 0)
    return fail(error, WGAP_UNKNOWN_RULE, "rule: expected %s, got '%.*s'", wgap::kRules, wgap::quoted(text), text);
  *rule = parsed;
  return WGAP_OK;
}
