// How the rows of all experts are multiplied, forward and backward: by a backend where gate matrices are
// dense, by operators of any kind. What the loops of the batched step are written over.
#pragma once

#include <mpi_router/backend/apply_experts.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/router/expect_rows.hpp>
#include <mpi_router/router/pullback.hpp>

MPIROUTER_BEGIN

namespace detail {

/// Dense gate matrices, multiplied by a backend.
template <Accumulator S, class T, class Backend>
struct dense_experts {
  using element = const std::remove_const_t<T>;
  const expert_batch_view<T>& experts;
  const Backend& backend;

  [[nodiscard]] const expert_shape& shape() const { return experts.shape(); }
  [[nodiscard]] index_t total() const { return experts.total_experts(); }
  /// Elements of scratch for partial images.
  [[nodiscard]] index_t partial() const { return apply_experts_workspace(shape()); }

  void expect_apart(const char* what, std::span<const named_range> written) const {
    expect_experts_apart(what, experts, written);
  }
  /// images_i = rows_i M_i, and the energies.
  template <class Run>
  void multiply(const matrix_view<const S>& rows, const matrix_view<S>& images,
                const vector_view<S>& energies, const vector_view<S>& scratch, const Run& executor) const {
    apply_experts(backend, experts, rows, images, energies, scratch, executor);
  }
  [[nodiscard]] row_image<S> measure(index_t i, const vector_view<const S>& row, const vector_view<S>& u,
                                     S energy) const {
    return measure_image(row, u, energy,
                         [&] { return reference{}.apply_scaled(matrix_view<element>(experts[i]), row, u); });
  }
  /// images_i = dual_row_i M_i, and the rest of the gradient to A_i, where an expert has a step.
  template <class Target, class Has, class Factors, class Run>
  void pull_back(const Target& target, bool is_last_step, const Has& has_step, const Factors& factors_of,
                 const matrix_view<S>& images, const vector_view<S>& scratch, const Run& executor) const {
    pull_experts<S>(experts, images, scratch, executor,
                    [&](index_t i, index_t first, index_t count, const vector_view<S>& image) {
                      if (has_step(i) && count > 0) {
                        const matrix_view<element> a = experts[i];
                        target.pull(backend, i, first, is_last_step, a.middle_rows(first, count),
                                    part_of(factors_of(i), first, count), image);
                      } else {
                        fill_zero(image);
                      }
                    });
  }
};

/// Operators of any kind, each expert one task.
template <GramOperators Operators>
class operator_experts {
 public:
  using S = scalar_of_operators<Operators>;

  /// Throws usage_error where an operator does not have the dimension D or, with F, not F neurons.
  operator_experts(const char* what, const Operators& operators, const expert_shape& extents)
      : operators_(operators), shape_(extents) {
    for (index_t i = 0; i < shape_.num_experts; ++i) {
      auto&& op = operators_(i);
      const auto d = static_cast<index_t>(op.dimension());
      expect(d == shape_.hidden_dim, what, ": operator ", i, " has dimension ", d, ", the router is [",
             shape_.num_experts, ", ", shape_.hidden_dim, "]");
      if constexpr (FactoredGramOperator<decltype(op)>) {
        const auto f = static_cast<index_t>(op.ffn_dim());
        expect(shape_.ffn_dim == 0 || f == shape_.ffn_dim, what, ": operator ", i, " has F = ", f,
               ", the factors have F = ", shape_.ffn_dim);
      }
    }
  }

  [[nodiscard]] const expert_shape& shape() const { return shape_; }
  [[nodiscard]] index_t total() const { return shape_.num_experts; }
  [[nodiscard]] index_t partial() const { return 0; }
  void expect_apart(const char*, std::span<const named_range>) const {}  // where they are, they know

  template <class Run>
  void multiply(const matrix_view<const S>& rows, const matrix_view<S>& images,
                const vector_view<S>& energies, const vector_view<S>&, const Run& executor) const {
    executor(shape_.num_experts, [&](index_t i) {
      auto&& op = operators_(i);
      energies[i] = static_cast<S>(op.apply(rows.row(i), images.row(i)));
    });
  }
  [[nodiscard]] row_image<S> measure(index_t i, const vector_view<const S>& row, const vector_view<S>& u,
                                     S energy) const {
    if constexpr (ScalableGramOperator<std::invoke_result_t<const Operators&, index_t>>) {
      return measure_image(row, u, energy, [&] {
        auto&& op = operators_(i);
        return op.apply_scaled(row, u);
      });
    } else {
      return measure_image(row, u, energy, never_again{});
    }
  }
  template <class Target, class Has, class Factors, class Run>
  void pull_back(const Target&, bool, const Has& has_step, const Factors& factors_of,
                 const matrix_view<S>& images, const vector_view<S>&, const Run& executor) const {
    executor(shape_.num_experts, [&](index_t i) {
      if constexpr (FactoredGramOperators<Operators>) {
        if (has_step(i)) {
          auto&& op = operators_(i);
          return detail::pull_back(op, factors_of(i), images.row(i));
        }
      }
      fill_zero(images.row(i));
    });
  }

 private:
  const Operators& operators_;
  expert_shape shape_;
};

/// One operator for each row of the router.
template <GramOperators Operators, class R>
[[nodiscard]] operator_experts<Operators> operators_of(const char* what, const Operators& operators,
                                                       const matrix_view<R>& router) {
  return {what, operators, {.num_experts = router.rows(), .ffn_dim = 0, .hidden_dim = router.cols()}};
}

}  // namespace detail

MPIROUTER_END
