// A matrix seen row by row: what packed weights, a file or another library's decoder have to offer.
#pragma once

#include <mpi_router/core/operands.hpp>
#include <mpi_router/core/vector_loops.hpp>

#include <span>
#include <utility>

MPIROUTER_BEGIN_TYPES

/// A matrix [rows(), cols()] whose rows are decoded one at a time: `load_row(f, out)` writes the cols()
/// elements of row f, 0 <= f < rows(), to out. Any number of threads may do so at once; nothing is allocated.
template <class M>
concept MatrixRows = requires(const std::remove_cvref_t<M>& m, index_t f, float* out) {
  { m.rows() } -> std::convertible_to<index_t>;
  { m.cols() } -> std::convertible_to<index_t>;
  m.load_row(f, out);
};

/// Rows that can be decoded to T as well.
template <class M, class T>
concept MatrixRowsIn =
    MatrixRows<M> && requires(const std::remove_cvref_t<M>& m, index_t f, T* out) { m.load_row(f, out); };

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
/// M = AᵀA of a matrix A [F, D] that is seen row by row. A model of GramOperator, FactoredGramOperator and
/// ScalableGramOperator. Build it with gram_of_rows(). It holds a copy of `Rows` (a few spans, for packed
/// weights) and a view of the caller's row of D floats or doubles, into which rows are decoded: one operator
/// a thread. apply, project and lift: O(F·D), each row decoded once, so the packed bytes are read once; sums
/// in S, in an order that depends on the shape alone. All throw usage_error on sizes, and where input, output
/// and the row of scratch overlap.
template <MatrixRows Rows, Accumulator S = float, Accumulator Decoded = float>
  requires MatrixRowsIn<Rows, Decoded> && (sizeof(Decoded) <= sizeof(S))
class rows_operator {
 public:
  using scalar = S;

  /// Throws usage_error where `scratch` does not have D elements.
  rows_operator(Rows rows, std::span<Decoded> scratch) : rows_(std::move(rows)), row_(scratch.data()) {
    core::expect(static_cast<index_t>(scratch.size()) == dimension(), "gram_of_rows: the rows have ",
                 dimension(), " elements, the scratch ", scratch.size());
  }

  [[nodiscard]] const Rows& rows() const noexcept { return rows_; }
  [[nodiscard]] index_t dimension() const { return rows_.cols(); }
  [[nodiscard]] index_t ffn_dim() const { return rows_.rows(); }

  /// u = xM = Σ_f ⟨a_f, x⟩ a_f, returns xMxᵀ = Σ_f ⟨a_f, x⟩².
  S apply(vector_view<const S> x, vector_view<S> u) const {
    check("apply", x, dimension(), u, dimension());
    return gram(x, u, detail::as_stored{}, detail::as_stored{});
  }
  /// y = A x.
  void project(vector_view<const S> x, vector_view<S> y) const {
    check("project", x, dimension(), y, ffn_dim());
    for (index_t f = 0; f < ffn_dim(); ++f) {
      y[f] = dot(row(f), x, detail::as_stored{}, detail::as_stored{});
    }
  }
  /// u = y A.
  void lift(vector_view<const S> y, vector_view<S> u) const {
    check("lift", y, ffn_dim(), u, dimension());
    detail::fill_zero(u);
    for (index_t f = 0; f < ffn_dim(); ++f) {
      detail::axpy(y[f], row(f), u, detail::as_stored{});
    }
  }
  /// apply for elements whose squares leave the range of S: A and x are divided by powers of two near their
  /// largest magnitudes, for which the rows are decoded twice.
  scaled_energy<S> apply_scaled(vector_view<const S> x, vector_view<S> u) const {
    check("apply_scaled", x, dimension(), u, dimension());
    detail::largest_magnitude<S> largest_a;
    for (index_t f = 0; f < ffn_dim(); ++f) {
      largest_a.see(row(f));
    }
    const int a_exponent = largest_a.exponent();
    return detail::scaled_gram<S>(a_exponent, x, [&](int x_exponent) {
      return gram(x, u, detail::power_of_two<S>(-a_exponent), detail::power_of_two<S>(-x_exponent));
    });
  }

 private:
  void check(const char* what, const vector_view<const S>& in, index_t in_size, const vector_view<S>& out,
             index_t out_size) const {
    core::expect_sizes(what, "the rows are", *this, in, in_size, out, out_size);
    const vector_view<Decoded> scratch(row_, dimension());
    core::expect(!core::overlap(in, out) && !core::overlap(in, scratch) && !core::overlap(out, scratch), what,
                 ": input, output and scratch overlap");
  }

  /// Row f, decoded.
  [[nodiscard]] vector_view<const Decoded> row(index_t f) const {
    rows_.load_row(f, row_);
    return {row_, dimension()};
  }
  // As many lanes as hide the latency of an addition.
  template <class LoadA, class LoadX>
  [[nodiscard]] static S dot(const vector_view<const Decoded>& a, const vector_view<const S>& x,
                             const LoadA& load_a, const LoadX& load_x) {
    return detail::dot<S, 16>(a, x, load_a, load_x);
  }

  template <class LoadA, class LoadX>
  S gram(const vector_view<const S>& x, const vector_view<S>& u, const LoadA& load_a,
         const LoadX& load_x) const {
    detail::fill_zero(u);
    S energy{0};
    for (index_t f = 0; f < ffn_dim(); ++f) {
      const auto a = row(f);
      const S y = dot(a, x, load_a, load_x);
      detail::axpy(y, a, u, load_a);
      energy += y * y;
    }
    return energy;
  }

  Rows rows_;
  Decoded* row_;
};

/// The operator of M = AᵀA, A [F, D] by its rows, with sums in S; `scratch` is the caller's, with D floats.
/// Throws usage_error where it does not. Rows that decode to double too, as packed weights do, are seen
/// unrounded where sums are double and the scratch is of doubles.
///
///   std::vector<float> scratch(weights.cols());
///   auto op = gram_of_rows<double>(weights, scratch);
template <Accumulator S = float, MatrixRows Rows>
[[nodiscard]] rows_operator<Rows, S> gram_of_rows(Rows rows, std::span<float> scratch) {
  return {std::move(rows), scratch};
}
/// The same of rows that are decoded exactly, to double.
template <std::same_as<double> S = double, MatrixRowsIn<double> Rows>
[[nodiscard]] rows_operator<Rows, S, double> gram_of_rows(Rows rows, std::span<double> scratch) {
  return {std::move(rows), scratch};
}

MPIROUTER_END
