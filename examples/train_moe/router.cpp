#include "router.hpp"

namespace train {
namespace {

using namespace mpi_router;
using row = vector_view<float>;
using const_row = vector_view<const float>;

}  // namespace

std::string_view to_string(router_kind kind) {
  switch (kind) {
    case router_kind::usual: return "usual";
    case router_kind::mpi: return "mpi";
    case router_kind::retraction: return "retraction-only";
    case router_kind::power_step: return "power-step-only";
  }
  return "unknown";
}

row_maker::row_maker(router_kind kind, const expert_shape& shape, double c_prime)
    : kind_(kind), shape_(shape) {
  options_.radius = router_radius::scale_free(c_prime);
  workspace_.resize(static_cast<std::size_t>(router_rows_vjp_workspace(shape)));
  tape_.resize(static_cast<std::size_t>(router_tape_size(shape, options_)));
  factors_.resize(static_cast<std::size_t>(router_factors<float>::size(shape, options_)));
}

void row_maker::forward(const matrix& router, const matrix& gates, matrix& rows) {
  const auto experts = experts_nfd(gates.data(), shape_);
  const auto radius = static_cast<float>(options_.radius.of(shape_.num_experts));
  rows.resizeLike(router);
  if (kind_ == router_kind::mpi) {
    router_rows(experts, view(router), view(rows), options_, workspace_, {.tape = tape_});
    return;
  }
  rows = router;
  for (index_t i = 0; i < shape_.num_experts; ++i) {
    if (kind_ == router_kind::retraction) {
      retract<float>(view(router).row(i), view(rows).row(i), radius);
    } else if (kind_ == router_kind::power_step) {
      gram(experts[i]).apply(view(router).row(i), view(rows).row(i));
    }
  }
}

void row_maker::backward(const matrix& router, const matrix& gates, const matrix& grad_rows,
                         matrix& grad_router) {
  const auto experts = experts_nfd(gates.data(), shape_);
  const auto radius = static_cast<float>(options_.radius.of(shape_.num_experts));
  switch (kind_) {
    case router_kind::usual: grad_router += grad_rows; return;
    case router_kind::mpi:
      router_rows_vjp_factored(experts, view(router), tape_, view(grad_rows), options_, view(grad_router),
                               {factors_, shape_, options_}, gradient_mode::accumulate, workspace_);
      return;
    case router_kind::retraction:
      // r̄ = (C/‖r‖)(ḡ − r̂(r̂·ḡ))
      for (index_t i = 0; i < shape_.num_experts; ++i) {
        const float length = router.row(i).norm();
        const auto unit = (router.row(i) / length).eval();
        grad_router.row(i) += (radius / length) * (grad_rows.row(i) - unit.dot(grad_rows.row(i)) * unit);
      }
      return;
    case router_kind::power_step:
      // r̄ = ḡM, Ā = (Ar) ḡᵀ + (Aḡ) rᵀ
      for (index_t i = 0; i < shape_.num_experts; ++i) {
        const auto op = gram(experts[i]);
        const auto [projection, dual_row, dual_projection, row] = factors(i);
        map(row) = router.row(i);
        map(dual_row) = grad_rows.row(i);
        matrix image(1, shape_.hidden_dim);
        op.apply(const_row(dual_row), view(image).row(0));
        op.project(const_row(row), projection);
        op.project(const_row(dual_row), dual_projection);
        grad_router.row(i) += image;
      }
      return;
  }
}

}  // namespace train
