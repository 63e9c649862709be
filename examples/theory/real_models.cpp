#include "real_models.hpp"

#include <mpi_router/core/experts.hpp>
#include <mpi_router/io/safetensors.hpp>

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace theory {

std::vector<real_expert> real_experts() {
  std::vector<real_expert> experts;
  for (const bool mpi : {false, true}) {
    const std::string path =
        std::string(THEORY_DATA) + (mpi ? "/tiny-mpi.safetensors" : "/tiny-vanilla.safetensors");
    const safetensors_file model(path);
    for (const int layer : {0, 1}) {
      const std::string prefix = fmt::format("model.layers.{}.mlp.", layer);
      const auto* router = model.find(prefix + "router.weight");
      const auto* gates = model.find(prefix + "experts.gate_proj");
      if (router == nullptr || gates == nullptr) {
        throw std::runtime_error(path + " lacks " + prefix);
      }
      const auto rows = router->load<float>();
      const auto weights = gates->load<bf16>();
      const index_t f = gates->shape()[1];
      const index_t d = gates->shape()[2];
      for (index_t e = 0; e < gates->shape()[0]; ++e) {
        const auto gate = gate_fd(weights.data() + e * f * d, f, d);
        experts.push_back(
            {mpi, layer, Eigen::Map<const Eigen::VectorXf>(rows.data() + e * d, d).cast<double>(),
             MatrixXd::NullaryExpr(f, d, [&](index_t i, index_t j) { return widen<double>(gate(i, j)); })});
      }
    }
  }
  return experts;
}

}  // namespace theory
