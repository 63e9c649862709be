// What is read of a layer, in double, and what multiplies it.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/io/moe/visit.hpp>
#if defined(VERIFY_CHECKPOINT_DISPATCH)
#include <mpi_router/backend/runtime_dispatch.hpp>
#elif defined(VERIFY_CHECKPOINT_SIMD)
#include <mpi_router/backend/simd.hpp>
#endif

#include <algorithm>
#include <cmath>

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

/// What is measured of one expert, where it is one matrix as it is stored; null where it is a sum.
[[nodiscard]] inline const mpi_router::gate_block* only_block(const moe_layer& layer, index_t expert) {
  const auto e = static_cast<std::size_t>(expert);
  if (layer.measured.empty()) {
    return &layer.gates[e];
  }
  const auto& first = layer.measured.front();
  return layer.measured.size() == 1 && first.weight == 1 ? &first.blocks[e] : nullptr;
}

/// The rows of the parts that are measured, one below the other: [√α A; √β U; √γ Wᵀ].
[[nodiscard]] inline gate_matrix read_stacked(const moe_layer& layer, index_t expert) {
  const auto e = static_cast<std::size_t>(expert);
  index_t rows = 0;
  for (const auto& part : layer.measured) {
    rows += part.blocks[e].ffn_dim;
  }
  gate_matrix a(rows, layer.measured.front().blocks[e].hidden_dim);
  rows = 0;
  for (const auto& part : layer.measured) {
    const auto& block = part.blocks[e];
    mpi_router::visit_gate<double>(block, [&](const auto& stored) {
      a.middleRows(rows, block.ffn_dim) = std::sqrt(part.weight) * widened(stored);
    });
    rows += block.ffn_dim;
  }
  return a;
}

/// A P, in S, of what an expert does to the latent, A [F, L]. Columns of P, [L, D], are widened some at a
/// time: beside A P there is never more than A and such a panel.
template <class S>
[[nodiscard]] Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> times_latent(
    const moe_layer& layer, const gate_matrix& a) {
  constexpr index_t panel = 256;
  Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> out(a.rows(), layer.hidden_dim);
  mpi_router::visit_latent<S>(layer, [&](const auto& p) {
    for (index_t begin = 0; begin < p.cols(); begin += panel) {
      gate_matrix part(p.rows(), std::min(panel, p.cols() - begin));
      for (index_t l = 0; l < part.rows(); ++l) {
        for (index_t d = 0; d < part.cols(); ++d) {
          part(l, d) = mpi_router::widen<double>(p(l, begin + d));
        }
      }
      out.middleCols(begin, part.cols()) = (a * part).template cast<S>();
    }
  });
  return out;
}

/// What is measured of one expert, [F, D], or [F, L] where the experts see a latent.
[[nodiscard]] inline gate_matrix read_matrix(const moe_layer& layer, index_t expert) {
  const auto* block = only_block(layer, expert);
  return block == nullptr
             ? read_stacked(layer, expert)
             : mpi_router::visit_gate<double>(*block, [](const auto& stored) { return widened(stored); });
}

/// The gate matrix A of one expert, [F, D], or what is measured in its place; A P where the experts see a
/// latent.
[[nodiscard]] inline gate_matrix read_gate(const moe_layer& layer, index_t expert) {
  gate_matrix a = read_matrix(layer, expert);
  return layer.latent == nullptr ? a : times_latent<double>(layer, a);
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
