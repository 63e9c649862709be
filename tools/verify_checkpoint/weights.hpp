// What is read of a layer, in double, and what multiplies it.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/io/moe/visit.hpp>
#if defined(VERIFY_CHECKPOINT_DISPATCH)
#include <mpi_router/backend/runtime_dispatch.hpp>
#elif defined(VERIFY_CHECKPOINT_SIMD)
#include <mpi_router/backend/simd.hpp>
#endif

namespace verify {

using mpi_router::index_t;
using mpi_router::moe_layer;
using gate_matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// The one-read kernels where they are to be had.
#if defined(VERIFY_CHECKPOINT_DISPATCH)
using kernels = mpi_router::dispatch;
#elif defined(VERIFY_CHECKPOINT_SIMD)
using kernels = mpi_router::simd;
#else
using kernels = mpi_router::reference;
#endif

/// M = AᵀA. Holds a view of A.
[[nodiscard]] inline auto gate_operator(const gate_matrix& a) { return mpi_router::gram(a, kernels{}); }

/// A matrix in double.
template <class Stored>
[[nodiscard]] gate_matrix widened(const Stored& stored) {
  gate_matrix a(stored.rows(), stored.cols());
  for (index_t f = 0; f < a.rows(); ++f) {
    for (index_t d = 0; d < a.cols(); ++d) {
      a(f, d) = mpi_router::widen<double>(stored(f, d));
    }
  }
  return a;
}

/// The gate matrix A of one expert, [F, D]; A P where the experts see a latent.
[[nodiscard]] inline gate_matrix read_gate(const moe_layer& layer, index_t expert) {
  const auto& block = layer.gates[static_cast<std::size_t>(expert)];
  gate_matrix a = mpi_router::visit_gate<double>(block, [](const auto& stored) { return widened(stored); });
  if (layer.latent == nullptr) {
    return a;
  }
  return a * mpi_router::visit_latent<double>(layer, [](const auto& stored) { return widened(stored); });
}

/// The router's row for one expert.
[[nodiscard]] inline Eigen::VectorXd read_row(const moe_layer& layer, index_t expert) {
  return mpi_router::visit_router_row<double>(layer, expert, [&](const auto& stored) {
    Eigen::VectorXd row(stored.size());
    for (index_t d = 0; d < row.size(); ++d) {
      row[d] = mpi_router::widen<double>(stored[d]);
    }
    return row;
  });
}

}  // namespace verify
