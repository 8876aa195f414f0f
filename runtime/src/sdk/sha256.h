// SHA-256 (FIPS 180-4), with the processor's own instructions where it has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace wgap::sdk {

class Sha256 {
 public:
  void add(const void* data, std::size_t bytes);
  std::string hexadecimal();  // lower case; ends the sum

 private:
  std::uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  unsigned char block_[64];
  std::uint64_t bytes_ = 0;
};

}  // namespace wgap::sdk
