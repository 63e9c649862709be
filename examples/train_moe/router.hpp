// Four ways to make the rows that tokens are compared with: the paper's ablation.
#pragma once

#include "tensor.hpp"

#include <mpi_router/router/router_rows_vjp.hpp>

#include <array>
#include <string_view>

namespace train {

enum class router_kind : unsigned char {
  usual,       ///< R itself
  mpi,         ///< C · rM / ‖rM‖ (Eq. 4, 5)
  retraction,  ///< C · r / ‖r‖: the sphere without the power step
  power_step   ///< rM: the power step without the sphere
};
inline constexpr std::array all_routers{router_kind::usual, router_kind::mpi, router_kind::retraction,
                                        router_kind::power_step};
[[nodiscard]] std::string_view to_string(router_kind kind);

/// Makes the rows from the trained ones and the gate matrices, and takes gradients back.
class row_maker {
 public:
  row_maker(router_kind kind, const mpi_router::expert_shape& shape, double c_prime);

  /// rows: N × D, from router (N × D) and gates ([N, F, D]).
  void forward(const matrix& router, const matrix& gates, matrix& rows);
  /// Adds to the gradient of the router, and leaves that of the gates in factors.
  void backward(const matrix& router, const matrix& gates, const matrix& grad_rows, matrix& grad_router);
  /// Outer products that the gradient to each gate matrix is a sum of: two, or none.
  [[nodiscard]] index_t products() const {
    return kind_ == router_kind::mpi || kind_ == router_kind::power_step ? 2 : 0;
  }
  /// Those of the last backward for one expert.
  [[nodiscard]] mpi_router::rank2_factors<float> factors(index_t expert) {
    return mpi_router::router_factors<float>(factors_, shape_, options_).at(0, expert);
  }

 private:
  router_kind kind_;
  mpi_router::expert_shape shape_;
  mpi_router::router_options options_;
  std::vector<float> workspace_;
  std::vector<float> tape_;
  std::vector<float> factors_;
};

}  // namespace train
