// The language model: bytes in, a distribution over the next byte out.
#pragma once

#include "blocks.hpp"
#include "corpus.hpp"
#include "moe_layer.hpp"

#include <memory>

namespace train {

struct model_sizes {
  moe_sizes moe{};
  index_t layers = 2;
  index_t heads = 4;
  index_t length = 64;
};

class model {
 public:
  model(const model_sizes& sizes, router_kind kind, double c_prime, std::uint64_t seed);

  /// Mean cross entropy in nats per byte.
  float forward(const batch& data);
  /// Gradients of cross entropy + coefficient · mean balance loss of the layers, added to the parameters.
  void backward(const batch& data, float coefficient);

  [[nodiscard]] std::vector<parameter*> parameters();
  [[nodiscard]] std::vector<std::unique_ptr<moe_layer>>& layers() { return moe_; }
  [[nodiscard]] float balance() const;

 private:
  model_sizes sizes_;
  random_source random_;
  parameter embedding_, positions_, head_;
  std::vector<std::unique_ptr<rms_norm>> norms_;  ///< two a layer, and the last
  std::vector<std::unique_ptr<attention>> attention_;
  std::vector<std::unique_ptr<moe_layer>> moe_;
  matrix last_, probabilities_;
};

}  // namespace train
