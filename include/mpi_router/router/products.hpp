// The GEMMs around the router: tokens by rows, and the two of the backward. Plain loops over any view, about
// as fast as a good library on one core; hand in another GEMM to use your own BLAS.
#pragma once

#include <mpi_router/core/concepts.hpp>
#include <mpi_router/core/options.hpp>

#include <algorithm>
#include <array>
#include <cstring>

MPIROUTER_BEGIN

/// A GEMM: `multiply(a, b, c, mode)` sets c to a b, or adds a b to it. a is [m, k], b is [k, n], c is [m, n]
/// of S, any strides. The result may depend on the shapes and strides of the call and on nothing else, so
/// that it is the same for any number of threads: the callers cut their work by shape alone.
template <class P, class A, class B, class S>
concept MatrixProduct = requires(const P& product, matrix_view<const A> a, matrix_view<const B> b,
                                 matrix_view<S> c, gradient_mode mode) { product.multiply(a, b, c, mode); };

namespace detail {

/// A few contiguous elements of S that the compiler keeps in one register.
template <Accumulator S>
struct pack {
#if defined(__AVX512F__)
  static constexpr index_t bytes = 64;
#elif defined(__AVX__)
  static constexpr index_t bytes = 32;
#else
  static constexpr index_t bytes = 16;
#endif
  static constexpr index_t size = bytes / static_cast<index_t>(sizeof(S));
#if defined(__GNUC__)
  using type [[gnu::vector_size(bytes)]] = S;
  MPIROUTER_ALWAYS_INLINE static void add_product(type& sum, S a, const type& b) noexcept { sum += a * b; }
#else
  using type = std::array<S, size>;
  MPIROUTER_ALWAYS_INLINE static void add_product(type& sum, S a, const type& b) noexcept {
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i] += a * b[i];
    }
  }
#endif
};

}  // namespace detail

/// A GEMM by plain loops: tiles of the result in registers, panels of b packed on the stack. Any strides, any
/// storage types; sums in S, in runs of 128 terms. No allocation, one thread. Takes 18 KiB of stack with
/// registers of 16 bytes, 34 with 32 and 66 with 64 (AVX-512), and 2 more in double.
class plain_products {
 public:
  template <Scalar A, Scalar B, Accumulator S>
  void multiply(const matrix_view<const A>& a, const matrix_view<const B>& b, const matrix_view<S>& c,
                gradient_mode mode) const {
    detail::expect(a.cols() == b.rows() && a.rows() == c.rows() && b.cols() == c.cols(), "multiply: [",
                   a.rows(), ", ", a.cols(), "] times [", b.rows(), ", ", b.cols(), "] is not [", c.rows(),
                   ", ", c.cols(), "]");
    using t = tile<S>;
    if (!core::accumulates(mode)) {
      set_zero(c);
    }
    alignas(64) std::array<S, static_cast<std::size_t>(depth * panels * t::width)> packed;
    alignas(64) std::array<S, static_cast<std::size_t>(depth * height)> copy;
    static_assert(sizeof packed + sizeof copy <= std::size_t{68} * 1024, "as documented above");
    for (index_t k = 0; k < a.cols(); k += depth) {
      const index_t terms = std::min(depth, a.cols() - k);
      for (index_t j = 0; j < c.cols(); j += panels * t::width) {
        const index_t last = std::min(c.cols(), j + panels * t::width);
        for (index_t at = j; at < last; at += t::width) {
          pack_panel(b, k, terms, at, packed.data() + (at - j) * depth);
        }
        for (index_t i = 0; i < c.rows(); i += height) {
          const auto rows = rows_of(a, i, k, terms, copy.data());
          for (index_t at = j; at < last; at += t::width) {
            t::add(rows, packed.data() + (at - j) * depth, terms, c, i, at);
          }
        }
      }
    }
  }

 private:
  static constexpr index_t depth = 128;
  static constexpr index_t height = 4;
  static constexpr index_t panels = 4;

  /// `height` rows of contiguous elements, `stride` elements apart.
  template <class S>
  struct row_block {
    const S* data;
    index_t stride;
  };

  /// height × width elements of the result.
  template <class S>
  struct tile {
    using pack = detail::pack<S>;
    static constexpr index_t packs = 2;
    static constexpr index_t width = packs * pack::size;

    /// c(i.., j..) += rows times panel.
    static void add(row_block<S> rows, const S* panel, index_t terms, const matrix_view<S>& c, index_t i,
                    index_t j) noexcept {
      typename pack::type sum[height][packs] = {};
      const S* row[height];
      for (index_t m = 0; m < height; ++m) {
        row[m] = rows.data + m * rows.stride;
      }
      for (index_t k = 0; k < terms; ++k) {
        typename pack::type b[packs];
        std::memcpy(b, panel + k * width, sizeof b);
        for (index_t m = 0; m < height; ++m) {
          for (index_t n = 0; n < packs; ++n) {
            pack::add_product(sum[m][n], row[m][k], b[n]);
          }
        }
      }
      S out[static_cast<std::size_t>(height)][static_cast<std::size_t>(width)];
      std::memcpy(out, sum, sizeof out);
      const index_t m_count = std::min(height, c.rows() - i);
      const index_t n_count = std::min(width, c.cols() - j);
      for (index_t m = 0; m < m_count; ++m) {
        for (index_t n = 0; n < n_count; ++n) {
          c(i + m, j + n) += out[m][n];
        }
      }
    }
  };

  template <class S>
  static void set_zero(const matrix_view<S>& c) noexcept {
    for (index_t i = 0; i < c.rows(); ++i) {
      for (index_t j = 0; j < c.cols(); ++j) {
        c(i, j) = S{0};
      }
    }
  }

  /// b(k.., j..) as [terms][width], zeros beyond the last column.
  template <class B, class S>
  static void pack_panel(const matrix_view<const B>& b, index_t k, index_t terms, index_t j,
                         S* panel) noexcept {
    constexpr index_t width = tile<S>::width;
    const index_t n = std::min(width, b.cols() - j);
    for (index_t term = 0; term < terms; ++term) {
      for (index_t col = 0; col < width; ++col) {
        panel[term * width + col] = col < n ? widen<S>(b(k + term, j + col)) : S{0};
      }
    }
  }

  /// The rows in place where they are contiguous elements of S, otherwise a copy; zeros beyond the last row.
  template <class A, class S>
  static row_block<S> rows_of(const matrix_view<const A>& a, index_t i, index_t k, index_t terms,
                              S* copy) noexcept {
    const index_t m = std::min(height, a.rows() - i);
    if constexpr (std::same_as<A, S>) {
      if (m == height && a.col_stride() == 1) {
        return {a.data() + i * a.row_stride() + k, a.row_stride()};
      }
    }
    for (index_t term = 0; term < terms; ++term) {
      for (index_t row = 0; row < height; ++row) {
        copy[row * depth + term] = row < m ? widen<S>(a(i + row, k + term)) : S{0};
      }
    }
    return {copy, depth};
  }
};

MPIROUTER_END
