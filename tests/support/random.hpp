// Random data that is the same on every machine: the engine is fixed by the standard, and its numbers are
// turned into values by integer arithmetic here, for the distributions of <random> differ between libraries.
#pragma once

#include <mpi_router/core/scalar.hpp>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace test_support {

using mpi_router::index_t;

class random_source {
 public:
  explicit random_source(std::uint64_t seed) : engine_(seed) {}

  /// Uniform in [0, 1), a multiple of 2^-53.
  [[nodiscard]] double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  [[nodiscard]] double uniform(double low, double high) { return low + (high - low) * uniform(); }

  /// A whole number in [low, high]; the bias of the remainder does not matter to a test.
  [[nodiscard]] index_t integer(index_t low, index_t high) {
    return low + static_cast<index_t>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }

  /// Mean 0, variance 1, and nearly normal: the sum of twelve uniform numbers (so never beyond ±6).
  [[nodiscard]] double normal() {
    std::int64_t sum = 0;
    for (int draw = 0; draw < 6; ++draw) {
      const std::uint64_t bits = engine_();
      sum += static_cast<std::int64_t>(bits & 0xffffffffU) + static_cast<std::int64_t>(bits >> 32);
    }
    return static_cast<double>(sum - 6 * 0xffffffffLL) * 0x1p-32;
  }

 private:
  std::mt19937_64 engine_;
};

/// `size` nearly normal values, rounded to T.
template <mpi_router::Scalar T>
[[nodiscard]] std::vector<T> random_vector(random_source& random, index_t size, double scale = 1) {
  std::vector<T> out(static_cast<std::size_t>(size));
  for (T& x : out) {
    x = mpi_router::narrow<T>(static_cast<mpi_router::accumulator_t<T>>(scale * random.normal()));
  }
  return out;
}

/// rows × cols nearly normal values, row after row.
template <mpi_router::Scalar T>
[[nodiscard]] std::vector<T> random_matrix(random_source& random, index_t rows, index_t cols,
                                           double scale = 1) {
  return random_vector<T>(random, rows * cols, scale);
}

/// `count` orthonormal vectors of `size` elements, one after the other. count <= size.
[[nodiscard]] inline std::vector<double> random_orthonormal(random_source& random, index_t count,
                                                            index_t size) {
  std::vector<double> q = random_vector<double>(random, count * size);
  for (index_t i = 0; i < count; ++i) {
    double* row = q.data() + i * size;
    for (int pass = 0; pass < 2; ++pass) {  // Gram-Schmidt, twice: orthogonal to rounding
      for (index_t j = 0; j < i; ++j) {
        const double* other = q.data() + j * size;
        double dot = 0;
        for (index_t k = 0; k < size; ++k) dot += row[k] * other[k];
        for (index_t k = 0; k < size; ++k) row[k] -= dot * other[k];
      }
    }
    double square = 0;
    for (index_t k = 0; k < size; ++k) square += row[k] * row[k];
    for (index_t k = 0; k < size; ++k) row[k] /= std::sqrt(square);
  }
  return q;
}

/// A matrix whose singular values and directions are known.
struct spectral_matrix {
  index_t ffn_dim;
  index_t hidden_dim;
  std::vector<double> sigma;       ///< the singular values, as given
  std::vector<double> directions;  ///< right singular directions, sigma.size() × hidden_dim, row after row
  std::vector<double> a;           ///< A, ffn_dim × hidden_dim, row after row
};

/// A = Σ σ_k u_k v_kᵀ with random orthonormal u_k and v_k; at most min(F, D) values.
[[nodiscard]] inline spectral_matrix random_with_spectrum(random_source& random, index_t ffn_dim,
                                                          index_t hidden_dim, std::vector<double> sigma) {
  const auto rank = static_cast<index_t>(sigma.size());
  const std::vector<double> left = random_orthonormal(random, rank, ffn_dim);
  spectral_matrix out{ffn_dim, hidden_dim, std::move(sigma), random_orthonormal(random, rank, hidden_dim),
                      std::vector<double>(static_cast<std::size_t>(ffn_dim * hidden_dim), 0.0)};
  for (index_t k = 0; k < rank; ++k) {
    for (index_t f = 0; f < ffn_dim; ++f) {
      const double weight =
          out.sigma[static_cast<std::size_t>(k)] * left[static_cast<std::size_t>(k * ffn_dim + f)];
      for (index_t d = 0; d < hidden_dim; ++d) {
        out.a[static_cast<std::size_t>(f * hidden_dim + d)] +=
            weight * out.directions[static_cast<std::size_t>(k * hidden_dim + d)];
      }
    }
  }
  return out;
}

}  // namespace test_support
