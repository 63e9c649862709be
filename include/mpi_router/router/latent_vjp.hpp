// The backward of latent experts, whose operators are M = PᵀAᵀA P: from the gradient to A P, the factor that
// router_rows_vjp_factored knows, to those of A and of the projection P that all experts of a layer share.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/router/router_factors.hpp>

#include <algorithm>

MPIROUTER_BEGIN

/// Elements of scratch that latent_vjp takes: 2 L for each expert and term of the factors of A P.
template <Accumulator S>
[[nodiscard]] index_t latent_vjp_workspace(const router_factors<S>& of_products, index_t latent_dim) {
  return 2 * of_products.terms() * of_products.shape().num_experts * latent_dim;
}

namespace detail {

/// What latent_vjp is given, except the operators.
template <Accumulator S>
struct latent_call {
  const router_factors<S>& of_products;
  const router_factors<S>& of_gates;
  const matrix_view<S>& grad_projection;
  const vector_view<S>& workspace;

  [[nodiscard]] index_t latent_dim() const { return of_gates.shape().hidden_dim; }
  /// Aᵀp or Aᵀq of one expert and term, L elements.
  [[nodiscard]] vector_view<S> lifted(index_t term, index_t expert, index_t which) const {
    const index_t slot = 2 * (term * of_products.shape().num_experts + expert) + which;
    return {workspace.data() + slot * latent_dim(), latent_dim()};
  }

  void check() const {
    const char* const what = "latent_vjp";
    const auto [n, f, d] = of_products.shape();
    const auto [gate_n, gate_f, l] = of_gates.shape();
    expect(n == gate_n && f == gate_f && of_products.terms() == of_gates.terms(), what, ": ",
           of_products.terms(), " factors of A P for [", n, ", ", f, ", ", d, "], ", of_gates.terms(),
           " of A for [", gate_n, ", ", gate_f, ", ", l, "]");
    expect(grad_projection.rows() == l && grad_projection.cols() == d, what, ": P is [L = ", l, ", D = ", d,
           "], its gradient is [", grad_projection.rows(), ", ", grad_projection.cols(), "]");
    const index_t scratch = latent_vjp_workspace(of_products, l);
    expect(workspace.is_contiguous() && workspace.size() >= scratch, what, ": the workspace has ",
           workspace.size(), " elements, not ", scratch);
    expect_apart(what,
                 {{"the factors of A", addresses(of_gates.elements())},
                  {"the gradient of P", addresses(grad_projection)},
                  {"the workspace", first_elements(workspace, scratch)}},
                 {{"the factors of A P", addresses(of_products.elements())}});
  }

  /// Ā = Ā′Pᵀ of one expert, and the lifts that P̄ is made of.
  template <class Gate, class Projection>
  void pull_expert(index_t i, Gate&& gate, Projection&& projection) const {
    const auto copy = [](const vector_view<S>& from, const vector_view<S>& to) {
      std::copy_n(from.data(), from.size(), to.data());
    };
    for (index_t term = 0; term < of_products.terms(); ++term) {
      const auto product = of_products.at(term, i);
      const auto own = of_gates.at(term, i);
      copy(product.projection, own.projection);
      copy(product.dual_projection, own.dual_projection);
      projection.project(product.dual_row, own.dual_row);
      projection.project(product.row, own.row);
      gate.lift(product.projection, lifted(term, i, 0));
      gate.lift(product.dual_projection, lifted(term, i, 1));
    }
  }

  /// Row l of P̄ = Σ AᵀĀ′, experts and terms in their order.
  void add_row(index_t l, bool accumulate) const {
    const auto out = grad_projection.row(l);
    for (index_t d = 0; !accumulate && d < out.size(); ++d) {
      out[d] = S{0};
    }
    for (index_t term = 0; term < of_products.terms(); ++term) {
      for (index_t i = 0; i < of_products.shape().num_experts; ++i) {
        const auto product = of_products.at(term, i);
        const S left = lifted(term, i, 0)[l];
        const S right = lifted(term, i, 1)[l];
        for (index_t d = 0; d < out.size(); ++d) {
          out[d] += left * product.dual_row[d] + right * product.row[d];
        }
      }
    }
  }
};

}  // namespace detail

/// With Ā′ = Σ p w̄ᵀ + q rᵀ the gradient to A P in factored form: Ā = Ā′Pᵀ for each expert, whose factors are
/// p, P w̄, q and P r, and P̄ = Σ_i A_iᵀĀ′_i, over all experts, in S.
///
/// gates(i), projections(i): operators that show A_i, [F, L], and P, [L, D], by project and lift, as gram()
/// does; P is asked of for each expert: tasks run at once. of_products: for {N, F, D}, from
/// router_rows_vjp_factored; of_gates: for {N, F, L}, as many terms, written (add_factors makes matrices of
/// them); grad_projection: [L, D], written or added to as `mode` says; workspace: latent_vjp_workspace
/// elements. What is written lies apart from all else.
///
/// A projection by P and a lift by A for each of the 2 N terms() vectors, and 2 N L D terms() products for P̄.
/// Nothing is allocated; one task an expert, then one a row of P̄; bitwise the same for every executor. An
/// expert without a step gives no gradient. Throws usage_error on shapes and overlap.
template <FactoredGramOperators Gates, FactoredGramOperators Projections, class Run = serial_executor,
          Accumulator S = scalar_of_operators<Gates>>
void latent_vjp(const Gates& gates, const Projections& projections,
                const std::type_identity_t<router_factors<S>>& of_products,
                const std::type_identity_t<router_factors<S>>& of_gates,
                const std::type_identity_t<matrix_view<S>>& grad_projection, gradient_mode mode,
                std::type_identity_t<vector_view<S>> workspace, const Run& executor = {}) {
  const detail::latent_call<S> call{of_products, of_gates, grad_projection, workspace};
  call.check();
  const bool accumulate = core::accumulates(mode);
  const auto [n, f, l] = of_gates.shape();
  for (index_t i = 0; i < n; ++i) {
    auto&& gate = gates(i);
    auto&& projection = projections(i);
    core::expect(static_cast<index_t>(gate.ffn_dim()) == f && static_cast<index_t>(gate.dimension()) == l &&
                     static_cast<index_t>(projection.ffn_dim()) == l &&
                     static_cast<index_t>(projection.dimension()) == of_products.shape().hidden_dim,
                 "latent_vjp: expert ", i, " is [", gate.ffn_dim(), ", ", gate.dimension(), "], P is [",
                 projection.ffn_dim(), ", ", projection.dimension(), "], the factors are for F = ", f,
                 ", L = ", l, ", D = ", of_products.shape().hidden_dim);
  }
  executor(n, [&](index_t i) { call.pull_expert(i, gates(i), projections(i)); });
  executor(l, [&](index_t row) { call.add_row(row, accumulate); });
}

MPIROUTER_END
