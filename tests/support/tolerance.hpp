// The one table of tolerances. A test that needs another bound says why, next to it.
#pragma once

#include <mpi_router/core/scalar.hpp>

#include <cmath>
#include <cstdint>

namespace test_support {

/// Bounds for values that are stored in one type and summed in its accumulator. All relative.
struct tolerances {
  double storage;     ///< one rounding to the storage type: half its epsilon
  double arithmetic;  ///< a sum of some thousand products, in the accumulator, of exact inputs
  double identity;    ///< two ways to compute one thing, each a few such sums and a normalisation
  double recorded;    ///< against values recorded in f64, of data of moderate size
};

[[nodiscard]] constexpr tolerances tolerances_of(mpi_router::storage_format format) noexcept {
  const auto bits = mpi_router::core::bit_layout(format).significand_bits;
  const double storage = 0.5 / static_cast<double>(std::uint64_t{1} << bits);
  if (format == mpi_router::storage_format::f64) {
    return {.storage = storage, .arithmetic = 1e-13, .identity = 1e-12, .recorded = 1e-12};
  }
  return {.storage = storage, .arithmetic = 5e-6, .identity = 2e-5, .recorded = 2e-6};
}

/// The row of the table for element type T. Where results are stored in T, add `storage`.
template <mpi_router::Scalar T>
inline constexpr tolerances tolerance = tolerances_of(mpi_router::storage_traits<T>::format);

/// |a - b| <= relative · max(scale, |a|, |b|); false if either is not a number.
[[nodiscard]] inline bool close(double a, double b, double relative, double scale = 0) {
  return std::abs(a - b) <= relative * std::fmax(scale, std::fmax(std::abs(a), std::abs(b))) || a == b;
}

/// Relative distance of two vectors in the norm: ‖a − b‖ / ‖b‖, or ‖a − b‖ where b is zero. NaN if any
/// element is.
template <class A, class B>
[[nodiscard]] double relative_distance(const A& a, const B& b) {
  double difference = 0;
  double norm = 0;
  for (mpi_router::index_t i = 0; i < static_cast<mpi_router::index_t>(b.size()); ++i) {
    const auto k = static_cast<decltype(b.size())>(i);
    const double x = static_cast<double>(a[static_cast<decltype(a.size())>(i)]);
    const double y = static_cast<double>(b[k]);
    difference = std::hypot(difference, x - y);
    norm = std::hypot(norm, y);
  }
  return norm > 0 ? difference / norm : difference;
}

}  // namespace test_support
