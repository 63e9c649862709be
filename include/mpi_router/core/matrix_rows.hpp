// A matrix seen row by row: what packed weights, a file or another library's decoder have to offer.
#pragma once

#include <mpi_router/core/concepts.hpp>
#include <mpi_router/core/operands.hpp>

#include <algorithm>
#include <array>
#include <cmath>
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
namespace detail {

/// An element as it is, or times 2^exponent in two halves, each of which S can hold.
template <Accumulator S>
struct unscaled_element {
  [[nodiscard]] S operator()(S x) const noexcept { return x; }
};
template <Accumulator S>
class scaled_element {
 public:
  explicit scaled_element(int exponent) noexcept
      : first_(std::ldexp(S{1}, exponent / 2)), second_(std::ldexp(S{1}, exponent - exponent / 2)) {}
  [[nodiscard]] S operator()(S x) const noexcept { return x * first_ * second_; }

 private:
  S first_;
  S second_;
};

// As many lanes as hide the latency of an addition; their number is fixed, so that a sum depends on the size
// alone and the compiler may vectorise it.
inline constexpr index_t row_lanes = 16;

/// Σ of the lanes, pairwise.
template <Accumulator S>
[[nodiscard]] S sum_of_lanes(std::array<S, static_cast<std::size_t>(row_lanes)>& lane) noexcept {
  for (std::size_t half = lane.size() / 2; half > 0; half /= 2) {
    for (std::size_t k = 0; k < half; ++k) {
      lane[k] += lane[k + half];
    }
  }
  return lane[0];
}

}  // namespace detail

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
    return gram(x, u, detail::unscaled_element<S>{}, detail::unscaled_element<S>{});
  }
  /// y = A x.
  void project(vector_view<const S> x, vector_view<S> y) const {
    check("project", x, dimension(), y, ffn_dim());
    for (index_t f = 0; f < ffn_dim(); ++f) {
      rows_.load_row(f, row_);
      y[f] = dot(x, detail::unscaled_element<S>{}, detail::unscaled_element<S>{});
    }
  }
  /// u = y A.
  void lift(vector_view<const S> y, vector_view<S> u) const {
    check("lift", y, ffn_dim(), u, dimension());
    clear(u);
    for (index_t f = 0; f < ffn_dim(); ++f) {
      rows_.load_row(f, row_);
      axpy(y[f], u, detail::unscaled_element<S>{});
    }
  }
  /// apply for elements whose squares leave the range of S: A and x are divided by powers of two near their
  /// largest magnitudes, for which the rows are decoded twice.
  scaled_energy<S> apply_scaled(vector_view<const S> x, vector_view<S> u) const {
    check("apply_scaled", x, dimension(), u, dimension());
    S largest_a{0};
    for (index_t f = 0; f < ffn_dim(); ++f) {
      rows_.load_row(f, row_);
      largest_a = std::max(largest_a, largest(vector_view<const Decoded>(row_, dimension())));
    }
    const int a_exponent = exponent_of(largest_a);
    const int x_exponent = exponent_of(largest(x));
    const S energy =
        gram(x, u, detail::scaled_element<S>(-a_exponent), detail::scaled_element<S>(-x_exponent));
    return {energy, 2 * a_exponent + x_exponent, 2 * (a_exponent + x_exponent)};
  }

 private:
  void check(const char* what, const vector_view<const S>& in, index_t in_size, const vector_view<S>& out,
             index_t out_size) const {
    core::expect_sizes(what, "the rows are", *this, in, in_size, out, out_size);
    const vector_view<Decoded> scratch(row_, dimension());
    core::expect(!core::overlap(in, out) && !core::overlap(in, scratch) && !core::overlap(out, scratch), what,
                 ": input, output and scratch overlap");
  }

  /// f(stride) with a stride that the compiler knows where the vector is contiguous.
  template <class View, class F>
  static auto with_stride(const View& v, const F& f) {
    return v.is_contiguous() ? f(std::integral_constant<index_t, 1>{}) : f(v.stride());
  }

  template <class LoadA, class LoadX>
  S gram(const vector_view<const S>& x, const vector_view<S>& u, const LoadA& load_a,
         const LoadX& load_x) const {
    clear(u);
    S energy{0};
    for (index_t f = 0; f < ffn_dim(); ++f) {
      rows_.load_row(f, row_);
      const S y = dot(x, load_a, load_x);
      axpy(y, u, load_a);
      energy += y * y;
    }
    return energy;
  }

  template <class LoadA, class LoadX>
  [[nodiscard]] S dot(const vector_view<const S>& x, const LoadA& load_a, const LoadX& load_x) const {
    return with_stride(x, [&, n = dimension(), row = row_](auto stride) {
      std::array<S, static_cast<std::size_t>(detail::row_lanes)> lane{};
      const auto term = [&](index_t i) { return load_a(widen<S>(row[i])) * load_x(x.data()[i * stride]); };
      const index_t whole = n - n % detail::row_lanes;
      for (index_t i = 0; i < whole; i += detail::row_lanes) {
        for (index_t k = 0; k < detail::row_lanes; ++k) {
          lane[static_cast<std::size_t>(k)] += term(i + k);
        }
      }
      for (index_t i = whole; i < n; ++i) {
        lane[static_cast<std::size_t>(i - whole)] += term(i);
      }
      return detail::sum_of_lanes(lane);
    });
  }

  template <class LoadA>
  void axpy(S y, const vector_view<S>& u, const LoadA& load_a) const {
    with_stride(u, [&, n = dimension(), row = row_, out = u.data()](auto stride) {
      for (index_t i = 0; i < n; ++i) {
        out[i * stride] += y * load_a(widen<S>(row[i]));
      }
    });
  }

  static void clear(const vector_view<S>& u) noexcept {
    for (index_t i = 0; i < u.size(); ++i) {
      u[i] = S{0};
    }
  }

  /// The largest finite magnitude; 0 where there is none.
  template <class T>
  [[nodiscard]] static S largest(const vector_view<const T>& v) noexcept {
    S most{0};
    for (index_t i = 0; i < v.size(); ++i) {
      const S magnitude = std::abs(widen<S>(v[i]));
      most = is_finite(magnitude) ? std::max(most, magnitude) : most;
    }
    return most;
  }
  [[nodiscard]] static int exponent_of(S magnitude) noexcept {
    return magnitude > S{0} ? std::ilogb(magnitude) : 0;
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
