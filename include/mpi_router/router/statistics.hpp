// Running statistics that merge: over experts, layers, batches, threads, ranks.
#pragma once

#include <mpi_router/core/scalar.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

MPIROUTER_BEGIN_TYPES

/// Count, mean, variance and range of a stream of numbers (Welford), in double. `merge` joins two streams
/// (Chan et al. 1979): statistics gathered apart, by threads or ranks, join in any grouping up to rounding,
/// and bitwise the same when they are joined in the same order. A plain value: send its five numbers as they
/// are.
struct running_statistics {
  index_t count = 0;
  double mean = 0;
  double squares = 0;  ///< Σ (x − mean)²
  double min = std::numeric_limits<double>::max();
  double max = std::numeric_limits<double>::lowest();

  MPIROUTER_ALWAYS_INLINE void add(double x) noexcept { merge({1, x, 0, x, x}); }
  MPIROUTER_ALWAYS_INLINE void merge(const running_statistics& other) noexcept {
    if (other.count == 0) {
      return;
    }
    const double n = static_cast<double>(count);
    const double m = static_cast<double>(other.count);
    const double apart = other.mean - mean;
    mean += apart * (m / (n + m));
    squares += other.squares + apart * apart * (n * m / (n + m));
    min = std::min(min, other.min);
    max = std::max(max, other.max);
    count += other.count;
  }
  /// Of the numbers seen: divided by count. 0 for fewer than two.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE double variance() const noexcept {
    return count > 1 ? squares / static_cast<double>(count) : 0.0;
  }
  /// Of what they are a sample of: divided by count − 1.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE double sample_deviation() const noexcept {
    return count > 1 ? std::sqrt(squares / static_cast<double>(count - 1)) : 0.0;
  }
};

/// How close router rows are to the principal directions of their experts (λ of Eq. 11, and the cosine): one
/// `add` an expert, whenever it is measured.
struct alignment_statistics {
  running_statistics spectral;   ///< λ with σ₁: ‖rW_g‖ / (‖r‖ σ₁)
  running_statistics frobenius;  ///< λ with ‖W_g‖_F
  running_statistics
      cosine;  ///< |cos| of the angle between the row and the principal direction, or of the last step

  /// rayleigh: ρ of the row; sigma_1 and frobenius_norm of its gate matrix; cosine: as measured.
  MPIROUTER_ALWAYS_INLINE void add(double rayleigh, double sigma_1, double frobenius_norm,
                                   double cosine_of_row) noexcept {
    spectral.add(std::sqrt(rayleigh) / sigma_1);
    frobenius.add(std::sqrt(rayleigh) / frobenius_norm);
    cosine.add(std::abs(cosine_of_row));
  }
  MPIROUTER_ALWAYS_INLINE void merge(const alignment_statistics& other) noexcept {
    spectral.merge(other.spectral);
    frobenius.merge(other.frobenius);
    cosine.merge(other.cosine);
  }
};

MPIROUTER_END_TYPES
