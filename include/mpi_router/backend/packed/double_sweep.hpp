// One read of packed rows with sums in double, for images that prove something: codes and scales as they are,
// decoded in registers.
#pragma once

#include <mpi_router/backend/packed/group.hpp>
#include <mpi_router/backend/simd/rows.hpp>

#include <algorithm>
#include <limits>

MPIROUTER_BEGIN

namespace detail::kernels {

/// A few packed rows, projected on `Images` vectors of doubles and lifted to as many: value k · rows + g is
/// that of vector k and row g.
template <class View, class Arch, std::size_t Images>
class packed_group_in_double {
 public:
  using codes = packed_codes<View, Arch>;
  using wide = typename codes::wide;
  static constexpr std::size_t rows = 4;
  using projections = few<double, Images * rows>;

  /// The rows [first, first + here); missing ones repeat the first.
  MPIROUTER_ALWAYS_INLINE packed_group_in_double(const View& a, index_t first, index_t here) noexcept
      : a_(a) {
    for (std::size_t g = 0; g < rows; ++g) {
      number_[g] = first + (static_cast<index_t>(g) < here ? static_cast<index_t>(g) : 0);
      row_[g] = codes::row_of(a, number_[g]);
    }
  }

  /// The dot products of rows and x. Of a row with NaN they are NaN.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE projections
  project(const few<const double*, Images>& x) const noexcept {
    wide total[Images * rows];
    unroll<Images * rows>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { total[i] = wide(0.0); });
    projections rest{};
    for_each_block([&](index_t b, index_t first, index_t whole, index_t end) MPIROUTER_DETAIL_INLINE_LAMBDA {
      wide part[Images * rows];
      unroll<Images * rows>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { part[i] = wide(0.0); });
      for (index_t d = first; d < whole; d += step) {
        unroll<rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
          prefetch(row_[g].codes + d, packed_bytes_ahead);
          const auto w = codes::load_doubles(row_[g].codes + d);
          for_each_register([&](auto k, auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
            auto& sum = part[k * rows + g];
            sum = xsimd::fma(w[i], load_unaligned<wide>(x[k] + d + i * wide::size), sum);
          });
        });
      }
      unroll<Images * rows>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
        total[i] = xsimd::fma(part[i], wide(scale_of(i % rows, b)), total[i]);
      });
      for_each_left(whole, end, [&](std::size_t k, std::size_t g, index_t d, double weight) {
        rest[k * rows + g] += weight * x[k][d];
      });
    });
    const auto sums = sum_lanes_of(total);
    for (std::size_t i = 0; i < Images * rows; ++i) {
      rest[i] = codes::has_nan(a_, number_[i % rows]) ? std::numeric_limits<double>::quiet_NaN()
                                                      : rest[i] + sums[i];
    }
    return rest;
  }

  /// u += the rows, each times its y.
  MPIROUTER_ALWAYS_INLINE void lift(const projections& y, const few<double*, Images>& u) const noexcept {
    for_each_block([&](index_t b, index_t first, index_t whole, index_t end) MPIROUTER_DETAIL_INLINE_LAMBDA {
      wide factor[Images * rows];
      unroll<Images * rows>(
          [&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { factor[i] = wide(y[i] * scale_of(i % rows, b)); });
      for (index_t d = first; d < whole; d += step) {
        wide sum[Images * count];
        for_each_register([&](auto k, auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
          sum[k * count + i] = load_unaligned<wide>(u[k] + d + i * wide::size);
        });
        unroll<rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
          const auto w = codes::load_doubles(row_[g].codes + d);
          for_each_register([&](auto k, auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
            sum[k * count + i] = xsimd::fma(factor[k * rows + g], w[i], sum[k * count + i]);
          });
        });
        for_each_register([&](auto k, auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
          store_unaligned(u[k] + d + i * wide::size, sum[k * count + i]);
        });
      }
      for_each_left(whole, end, [&](std::size_t k, std::size_t g, index_t d, double weight) {
        u[k][d] += y[k * rows + g] * weight;
      });
    });
  }

 private:
  static constexpr std::size_t count = codes::doubles_at_once;
  static constexpr auto step = static_cast<index_t>(count * wide::size);

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE double scale_of(std::size_t g, index_t b) const noexcept {
    return double{scale_at(row_[g].scales, row_[g].type, b)} * double{codes::divisor};
  }
  /// at(k, i) of register i of a step, for each vector k.
  template <class At>
  MPIROUTER_ALWAYS_INLINE static void for_each_register(const At& at) noexcept {
    unroll<Images>([&](auto k) MPIROUTER_DETAIL_INLINE_LAMBDA {
      unroll<count>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { at(k, i); });
    });
  }
  /// at(b, first, whole, end): block b has the columns [first, end), and whole steps before `whole`.
  template <class At>
  MPIROUTER_ALWAYS_INLINE void for_each_block(const At& at) const noexcept {
    const index_t across = std::min(a_.block_cols, a_.cols);
    for (index_t b = 0, first = 0; first < a_.cols; ++b, first += across) {
      const index_t end = std::min(first + across, a_.cols);
      at(b, first, end - (end - first) % step, end);
    }
  }
  /// at(k, g, d, weight) of each vector, row and column in [first, end).
  template <class At>
  MPIROUTER_ALWAYS_INLINE void for_each_left(index_t first, index_t end, const At& at) const noexcept {
    for (std::size_t g = 0; g < rows; ++g) {
      for (index_t d = first; d < end; ++d) {
        const double weight = codes::at(a_, number_[g], d);
        for (std::size_t k = 0; k < Images; ++k) at(k, g, d, weight);
      }
    }
  }

  const View& a_;
  index_t number_[rows];
  typename codes::row row_[rows];
};

/// u[k] = x[k] M and their energies, with sums in double, in one read of the packed bytes.
template <class View, class Arch, std::size_t Images>
void packed_images_in_double(const View& a, const double* const* x, double* const* u,
                             double* energy) noexcept {
  using group = packed_group_in_double<View, Arch, Images>;
  constexpr auto size = static_cast<index_t>(group::rows);
  few<const double*, Images> from;
  few<double*, Images> to;
  for (std::size_t k = 0; k < Images; ++k) {
    from[k] = x[k];
    to[k] = u[k];
    fill_zero(u[k], a.cols);
    energy[k] = 0;
  }
  for (index_t first = 0; first < a.rows; first += size) {
    const index_t here = std::min(size, a.rows - first);
    const group rows(a, first, here);
    auto y = rows.project(from);
    for (std::size_t i = 0; i < Images * group::rows; ++i) {
      y[i] = static_cast<index_t>(i % group::rows) < here ? y[i] : 0;
      energy[i / group::rows] += y[i] * y[i];
    }
    rows.lift(y, to);
  }
}

}  // namespace detail::kernels

MPIROUTER_END
