// What runs a bundle's graph: a module of wgap's, loaded at run time, or an engine of the caller's own.
#pragma once

#include <string>
#include <vector>

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
  std::string told() const;                               // name and version
  void locate(const wgap_locate_request& request) const;  // by the network's own kernel, where it has one

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

  void require(wgap_status status, wgap_error* error) const;  // of a call of the network; throws what it says
};

struct NetworkOptions {
  std::string backend, precision;
  const char* library;
  const char* device;
  int threads, slots, batch_size;
  std::int64_t memory_limit;
  bool ungated;
  const char* hint;
  int streams;
};

// The network of that backend over a bundle's file of that precision.
Network open_network(const Bundle& bundle, const wgap_rule& rule, const std::vector<float>& classifier,
                     const NetworkOptions& options);

}  // namespace wgap::sdk
