// A dense gate matrix as an operator: the view says where A is, the backend says who multiplies.
#pragma once

#include <mpi_router/backend/reference.hpp>
#include <mpi_router/core/concepts.hpp>
#include <mpi_router/core/operands.hpp>

#include <array>
#include <cstddef>

MPIROUTER_BEGIN

/// M = AᵀA of one dense gate matrix, never formed. A model of GramOperator, FactoredGramOperator and
/// ScalableGramOperator. Build it with gram(). Holds the view, not the data.
///
/// `T` is the storage type of A, `S` the type of the vectors and of the sums, `Backend` the kernels.
template <Scalar T, Accumulator S = accumulator_t<T>, class Backend = reference>
  requires DenseBackend<Backend, T, S>
class dense_operator {
 public:
  using scalar = S;

  explicit dense_operator(matrix_view<const T> a, Backend backend = {}) : a_(a), backend_(backend) {}

  [[nodiscard]] const matrix_view<const T>& matrix() const noexcept { return a_; }
  [[nodiscard]] index_t dimension() const noexcept { return a_.cols(); }
  [[nodiscard]] index_t ffn_dim() const noexcept { return a_.rows(); }

  /// u = xM, returns xMxᵀ. O(F·D), one read of A. Throws usage_error where x or u does not have D elements,
  /// or they overlap.
  S apply(vector_view<const S> x, vector_view<S> u) const {
    detail::expect_operands("apply", *this, x, dimension(), u, dimension());
    return backend_.apply(a_, x, u);
  }
  /// Whether apply_two reads A once.
  [[nodiscard]] bool shares_reads() const {
    if constexpr (requires { backend_.template shares_reads<S>(a_); }) {
      return backend_.template shares_reads<S>(a_);
    } else {
      return false;
    }
  }
  /// Two images, and their energies: one read of A where the backend has it, else two. O(F·D). Throws
  /// usage_error where one of the four does not have D elements, or what is written overlaps another.
  std::array<S, 2> apply_two(const std::array<vector_view<const S>, 2>& x,
                             const std::array<vector_view<S>, 2>& u) const {
    for (std::size_t k = 0; k < 2; ++k) {
      detail::expect_operands("apply_two", *this, x[k], dimension(), u[k], dimension());
      detail::expect(!detail::overlap(x[1 - k], u[k]), "apply_two: input ", 1 - k, " and output ", k,
                     " overlap");
    }
    detail::expect(!detail::overlap(u[0], u[1]), "apply_two: the outputs overlap");
    if constexpr (requires { backend_.apply_two(a_, x, u); }) {
      return backend_.apply_two(a_, x, u);
    } else {
      return {backend_.apply(a_, x[0], u[0]), backend_.apply(a_, x[1], u[1])};
    }
  }
  /// y = A x.
  void project(vector_view<const S> x, vector_view<S> y) const {
    detail::expect_operands("project", *this, x, dimension(), y, ffn_dim());
    backend_.project(a_, x, y);
  }
  /// u = y A.
  void lift(vector_view<const S> y, vector_view<S> u) const {
    detail::expect_operands("lift", *this, y, ffn_dim(), u, dimension());
    backend_.lift(a_, y, u);
  }
  /// apply for elements whose squares leave the range of S: two reads of A by the reference loops.
  scaled_energy<S> apply_scaled(vector_view<const S> x, vector_view<S> u) const {
    detail::expect_operands("apply_scaled", *this, x, dimension(), u, dimension());
    return reference{}.apply_scaled(a_, x, u);
  }

 private:
  matrix_view<const T> a_;
  [[no_unique_address]] Backend backend_;
};

/// The operator of one gate matrix A, [F, D]. Sums are taken in accumulator_t<T>; `gram<double>(a)` takes
/// them in double whatever the storage.
template <class S = void, Scalar T, class Backend = reference>
  requires std::is_void_v<S> || Accumulator<S>
[[nodiscard]] auto gram(const matrix_view<T>& a, Backend backend = {}) {
  using sums = std::conditional_t<std::is_void_v<S>, accumulator_t<T>, S>;
  return dense_operator<std::remove_const_t<T>, sums, Backend>(a, backend);
}

MPIROUTER_END
