#include "safetensors.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

#include "json.h"

namespace wgap::sdk {
namespace {

constexpr std::uint64_t kLongestHeader = 100000000;

const Type& tensor_type() {
  static const Type type{Type::kObject,
                         {},
                         {{"dtype", {Type::kText}},
                          {"shape", {Type::kList, {{Type::kWhole}}}},
                          {"data_offsets", {Type::kList, {{Type::kWhole}}, {}, {}, 2}}}};
  return type;
}

// Bytes of a value; 0 where the dtype is not known.
std::uint64_t size_of(const std::string& dtype) {
  static const std::map<std::string, std::uint64_t> kSizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};
  const auto found = kSizes.find(dtype);
  return found == kSizes.end() ? 0 : found->second;
}

std::string shown(const std::vector<std::int64_t>& shape) {
  std::string made = "[";
  for (const std::int64_t extent : shape) made += (made.size() > 1 ? ", " : "") + std::to_string(extent);
  return made + "]";
}

}  // namespace

Safetensors::Safetensors(std::string content, std::string where)
    : content_(std::move(content)), where_(std::move(where)) {
  const auto refuse = [&](const std::string& why) {
    fail(WGAP_BUNDLE_ERROR, "%s is not a safetensors file (%s); export the bundle again", where_.c_str(), why.c_str());
  };
  std::uint64_t length = 0;
  if (content_.size() < 9) refuse("its header is cut short");
  std::memcpy(&length, content_.data(), 8);  // little-endian, as every machine that this is built for
  if (length > std::min<std::uint64_t>(content_.size() - 8, kLongestHeader)) refuse("its header is cut short");
  if (content_[8] != '{') refuse("its header is no object");
  const std::uint64_t start = 8 + length;
  std::vector<std::tuple<std::uint64_t, std::uint64_t, const Tensor*>> places;
  try {
    const Json header = read_json(std::string_view(content_).substr(8, length));
    for (const auto& [name, value] : header.items()) {
      if (name == "__metadata__") {
        require({Type::kTable, {{Type::kText}}}, value, name);
        metadata_ = value.get<std::map<std::string, std::string>>();
        continue;
      }
      require(tensor_type(), value, name);
      const std::int64_t begin = value["data_offsets"][0], end = value["data_offsets"][1];
      const auto most = static_cast<std::int64_t>(content_.size() - start);
      if (begin < 0 || end < begin || end > most) refuse("the place of " + in_quotes(name));
      Tensor made{value["dtype"], value["shape"], static_cast<std::size_t>(start) + static_cast<std::size_t>(begin),
                  static_cast<std::size_t>(end - begin)};
      std::uint64_t bytes = size_of(made.dtype);
      if (bytes == 0) refuse("the dtype " + in_quotes(made.dtype));
      for (const std::int64_t extent : made.shape)
        if (extent < 0 || __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes))
          refuse("the shape of " + in_quotes(name));
      if (bytes != made.bytes) refuse("the size of " + in_quotes(name));
      const Tensor& kept = tensors_[name] = std::move(made);
      places.emplace_back(begin, end, &kept);
    }
  } catch (const PlainError& error) {
    refuse(error.text());
  }
  std::sort(places.begin(), places.end());
  std::uint64_t at = 0;
  for (const auto& [begin, end, _] : places) {
    if (begin != at) refuse("values that overlap, or holes between them");
    at = end;
  }
  if (at != content_.size() - start) refuse("values cut short, or more behind them");
}

const Safetensors::Tensor* Safetensors::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const Safetensors::Tensor& Safetensors::required(const char* name, const char* dtype,
                                                 const std::vector<std::int64_t>& shape) const {
  const Tensor* const tensor = find(name);
  if (tensor == nullptr || tensor->dtype != dtype || tensor->shape != shape)
    fail(WGAP_BUNDLE_ERROR, "%s: expected %s %s %s, got %s; export the bundle again", where_.c_str(), name, dtype,
         shown(shape).c_str(), tensor == nullptr ? "nothing" : (tensor->dtype + " " + shown(tensor->shape)).c_str());
  return *tensor;
}

}  // namespace wgap::sdk
