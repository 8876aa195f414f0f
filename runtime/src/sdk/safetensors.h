// Files of named tensors: eight bytes with the length of a JSON header, that header, and the values in its order.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace wgap::sdk {

class Safetensors {
 public:
  // where: what messages call it. Throws Failure with WGAP_BUNDLE_ERROR where the file is not whole.
  Safetensors(std::string content, std::string where);

  struct Tensor {
    std::string dtype;  // "F32", "U8", ...
    std::vector<std::int64_t> shape;
    std::size_t place, bytes;  // in the file
  };
  const Tensor* find(const std::string& name) const;  // null where there is none
  // The values of a tensor. Throws where there is none of that name, dtype and shape.
  template <class T>
  std::vector<T> read(const char* name, const char* dtype, const std::vector<std::int64_t>& shape) const {
    const Tensor& tensor = required(name, dtype, shape);
    std::vector<T> values(tensor.bytes / sizeof(T));
    std::memcpy(values.data(), content_.data() + tensor.place, tensor.bytes);
    return values;
  }
  std::vector<float> floats(const char* name, const std::vector<std::int64_t>& shape) const {
    return read<float>(name, "F32", shape);
  }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  std::string content_, where_;
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;

  const Tensor& required(const char* name, const char* dtype, const std::vector<std::int64_t>& shape) const;
};

}  // namespace wgap::sdk
