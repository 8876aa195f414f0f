// What runs a bundle's graph: a module of wgap's, loaded at run time, or an engine of the caller's own.
#pragma once

#include <string>

#include "bundle.h"
#include "wgap/runtime.h"

namespace wgap::sdk {

class Network {
 public:
  explicit Network(const wgap_network& given);  // takes it over
  ~Network();
  Network(Network&& other) noexcept : network_(other.network_) { other.network_ = WGAP_NETWORK_INIT; }
  Network& operator=(Network&&) = delete;

  const wgap_network& get() const { return network_; }
  std::string told() const;  // name and version

  // The outputs of one forward pass, for as long as this lives.
  class Pass {
   public:
    Pass(const Network& network, const std::uint8_t* images, std::int64_t count, std::uint32_t wanted);
    ~Pass();
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;
    const wgap_outputs& outputs() const { return outputs_; }

   private:
    const wgap_network& network_;
    wgap_outputs outputs_ = WGAP_OUTPUTS_INIT;
  };

 private:
  wgap_network network_;
};

struct NetworkOptions {
  std::string backend, precision;
  const char* library;
  const char* device;
  int threads, slots;
  bool ungated;
};

// The network of that backend over a bundle's file of that precision.
Network open_network(const Bundle& bundle, const wgap_rule& rule, const NetworkOptions& options);

}  // namespace wgap::sdk
