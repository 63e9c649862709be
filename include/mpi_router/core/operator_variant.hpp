// One of several operators, which one is known when the program runs.
#pragma once

#include <mpi_router/core/concepts.hpp>

#include <utility>
#include <variant>

MPIROUTER_BEGIN

/// M = AᵀA by one of the operators Ops, all of one scalar: a model of GramOperator, FactoredGramOperator and
/// ScalableGramOperator, as each of them. Costs, errors and determinism are those of the one that it holds.
template <FactoredGramOperator... Ops>
  requires(ScalableGramOperator<Ops> && ...)
class operator_variant {
 public:
  using alternatives = std::variant<Ops...>;
  using scalar = scalar_of<std::variant_alternative_t<0, alternatives>>;
  static_assert((std::same_as<scalar_of<Ops>, scalar> && ...));

  template <class Op>
    requires(std::same_as<Op, Ops> || ...)
  explicit operator_variant(Op op) : op_(std::move(op)) {}

  /// The operator itself, for std::visit.
  [[nodiscard]] const alternatives& held() const noexcept { return op_; }
  [[nodiscard]] index_t dimension() const {
    return std::visit([](const auto& op) { return static_cast<index_t>(op.dimension()); }, op_);
  }
  [[nodiscard]] index_t ffn_dim() const {
    return std::visit([](const auto& op) { return static_cast<index_t>(op.ffn_dim()); }, op_);
  }
  scalar apply(vector_view<const scalar> x, vector_view<scalar> u) const {
    return std::visit([&](const auto& op) { return op.apply(x, u); }, op_);
  }
  void project(vector_view<const scalar> x, vector_view<scalar> y) const {
    std::visit([&](const auto& op) { op.project(x, y); }, op_);
  }
  void lift(vector_view<const scalar> y, vector_view<scalar> u) const {
    std::visit([&](const auto& op) { op.lift(y, u); }, op_);
  }
  scaled_energy<scalar> apply_scaled(vector_view<const scalar> x, vector_view<scalar> u) const {
    return std::visit([&](const auto& op) { return op.apply_scaled(x, u); }, op_);
  }

 private:
  alternatives op_;
};

MPIROUTER_END
