// The null model of λ: its limits for an untrained Gaussian matrix.
#pragma once

#include <mpi_router/core/error.hpp>

#include <cmath>

MPIROUTER_BEGIN_TYPES

/// λ (spectral) that a random row has against a random A, before and after one step, as F and D grow with q =
/// D/F held. The entries of A are independent, identically distributed, of mean 0, and have a finite fourth
/// moment: without it σ₁² has no such limit (Bai & Yin). λ alone is no certificate: one step lifts it to
/// about 0.8 on such a matrix, whose principal direction is still nearly orthogonal to the row.
struct null_alignment {
  double stored;    ///< 1 / (1 + √q)
  double one_step;  ///< √((1 + 3q + q²) / ((1 + q)(1 + √q)²))
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// The null of λ for a gate matrix [F, D]. From the moments of the Marchenko–Pastur law: σ₁² → F(1 + √q)²,
/// and tr(M)/D, tr(M³)/tr(M²) give ρ before and after the step. Throws usage_error unless both are positive.
[[nodiscard]] inline null_alignment null_model(index_t ffn_dim, index_t hidden_dim) {
  core::expect(ffn_dim > 0 && hidden_dim > 0, "null_model: the gate matrix is [", ffn_dim, ", ", hidden_dim,
               "]");
  const double q = static_cast<double>(hidden_dim) / static_cast<double>(ffn_dim);
  const double edge = 1 + std::sqrt(q);
  return {1 / edge, std::sqrt((1 + 3 * q + q * q) / (1 + q)) / edge};
}

MPIROUTER_END
