// One case of one element type: all contenders on the same data.
#pragma once

#include "data.hpp"
#include "floors.hpp"
#include "peers.hpp"

#include <mpi_router/backend/apply_experts.hpp>
#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/backend/executors.hpp>
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/manifold/power_step_vjp.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <memory>
#include <type_traits>

namespace bench {

/// The type by which Eigen knows T.
template <class T>
struct eigen_scalar {
  using type = T;
};
template <>
struct eigen_scalar<mpi_router::bf16> {
  using type = Eigen::bfloat16;
};
template <>
struct eigen_scalar<mpi_router::f16> {
  using type = Eigen::half;
};

/// As people write it: y = A r, u = Aᵀ y; a 16-bit A with vectors of its own type. Empty backward for 16
/// bits.
template <class T>
std::optional<contender> eigen(const problem<T>& p) {
  using E = typename eigen_scalar<T>::type;
  using matrix = Eigen::Matrix<E, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  if (p.what.work == work_kind::backward && sizeof(T) == 2) return std::nullopt;
  const auto& s = p.what.shape;
  const auto cast = [](const auto& b, index_t rows, index_t cols) {
    return Eigen::Map<const Eigen::Matrix<mpi_router::accumulator_t<T>, Eigen::Dynamic, Eigen::Dynamic>>(
               b.data(), rows, cols)
        .template cast<E>()
        .eval();
  };
  using columns = Eigen::Matrix<E, Eigen::Dynamic, Eigen::Dynamic>;  // one column an expert
  auto r = std::make_shared<columns>(cast(p.rows, s.hidden_dim, s.num_experts));
  auto z = std::make_shared<columns>(cast(p.duals, s.hidden_dim, s.num_experts));
  auto y = std::make_shared<columns>(s.ffn_dim, s.num_experts);
  auto w = std::make_shared<columns>(s.ffn_dim, s.num_experts);
  auto u = std::make_shared<columns>(s.hidden_dim, s.num_experts);
  return contender{"Eigen", [=, &p] {
                     const index_t f = p.what.shape.ffn_dim;
                     const index_t d = p.what.shape.hidden_dim;
                     for_each_expert(p.what.shape.num_experts, p.what.threads, [&](index_t i) {
                       const auto at = [&](const void* base) {
                         return static_cast<const E*>(base) + i * f * d;
                       };
                       const index_t rows = p.what.by_rows ? f : d;
                       const index_t cols = p.what.by_rows ? d : f;
                       const Eigen::Map<const matrix> a(at(p.weights.data()), rows, cols);
                       const auto forward = [&](const auto& m, const auto& mt) {
                         y->col(i).noalias() = m * r->col(i);
                         if (p.what.work == work_kind::forward) {
                           u->col(i).noalias() = mt * y->col(i);
                           return;
                         }
                         w->col(i).noalias() = m * z->col(i);
                         u->col(i).noalias() = mt * w->col(i);
                       };
                       if (p.what.by_rows) {
                         forward(a, a.transpose());
                       } else {
                         forward(a.transpose(), a);
                       }
                       if constexpr (sizeof(T) > 2) {
                         if (p.what.work == work_kind::backward) {
                           Eigen::Map<matrix> g(p.gradient.data() + i * f * d, rows, cols);
                           if (p.what.by_rows) {
                             g.noalias() += y->col(i) * z->col(i).transpose();
                             g.noalias() += w->col(i) * r->col(i).transpose();
                           } else {
                             g.noalias() += z->col(i) * y->col(i).transpose();
                             g.noalias() += r->col(i) * w->col(i).transpose();
                           }
                         }
                       }
                     });
                   }};
}

template <class T>
contender ours(const problem<T>& p) {
  using S = mpi_router::accumulator_t<T>;
  const auto workspace = std::make_shared<std::vector<S>>(
      static_cast<std::size_t>(mpi_router::apply_experts_workspace(p.what.shape)));
  const auto energies = std::make_shared<std::vector<S>>(static_cast<std::size_t>(p.what.shape.num_experts));
  return {"ours", [=, &p] {
            const index_t n = p.what.shape.num_experts;
            const index_t f = p.what.shape.ffn_dim;
            const index_t d = p.what.shape.hidden_dim;
            const T* weights = p.weights.data();
            const auto experts = p.what.by_rows ? mpi_router::experts_nfd(weights, p.what.shape)
                                                : mpi_router::experts_ndf(weights, p.what.shape);
            const mpi_router::simd backend;
            if (p.what.work == work_kind::forward) {
              const auto run = [&](const auto& executor) {
                mpi_router::apply_experts(backend, experts, mpi_router::row_major(p.rows.data(), n, d),
                                          mpi_router::row_major(p.images.data(), n, d),
                                          mpi_router::vector_view<S>(*energies),
                                          mpi_router::vector_view<S>(*workspace), executor);
              };
              p.what.threads == 1 ? run(mpi_router::serial_executor{})
                                  : run(mpi_router::openmp_executor{p.what.threads});
              return;
            }
            const auto gradients = p.what.by_rows ? mpi_router::experts_nfd(p.gradient.data(), p.what.shape)
                                                  : mpi_router::experts_ndf(p.gradient.data(), p.what.shape);
            for_each_expert(n, p.what.threads, [&](index_t i) {
              const auto row = [&](const buffer<S>& b, index_t size) {
                return mpi_router::vector_view<S>(b.data() + i * size, size);
              };
              backend.pull_back(experts[i], mpi_router::vector_view<const S>(row(p.rows, d)),
                                mpi_router::vector_view<const S>(row(p.duals, d)), row(p.projections, f),
                                row(p.dual_projections, f), row(p.images, d), gradients[i],
                                mpi_router::gradient_mode::accumulate);
            });
          }};
}

template <class T>
timings run_case(const bench_case& c, int repetitions, double seconds) {
  const problem<T> p(c);
  const auto row_bytes =
      static_cast<std::size_t>(c.by_rows ? c.shape.hidden_dim : c.shape.ffn_dim) * sizeof(T);
  std::vector<contender> all = c.work == work_kind::forward
                                   ? read_floors(p.weights.data(), p.weights.bytes(), row_bytes, c.threads)
                                   : [&] {
                                       if constexpr (std::is_same_v<mpi_router::accumulator_t<T>, float>) {
                                         return update_floors(p.weights.data(), p.weights.bytes(), sizeof(T),
                                                              p.gradient.data(), c.threads);
                                       }
                                       return std::vector<contender>{};
                                     }();
  const std::size_t floors = all.size();
  all.push_back(ours(p));
  const auto add = [&](std::optional<contender> peer) -> std::size_t {
    if (!peer) return 0;
    all.push_back(std::move(*peer));
    return all.size() - 1;
  };
  const std::size_t at_eigen = add(eigen(p));
  const std::size_t at_blas = add(openblas(p));
  const std::size_t at_torch = add(libtorch(c, p.weights.data(), p.rows.data()));
  const std::vector<double> t = medians(all, repetitions, seconds);
  const auto of = [&](std::size_t i) { return i == 0 ? std::nullopt : std::optional<double>(t[i]); };
  timings out;
  out.floor = *std::min_element(t.begin(), t.begin() + static_cast<std::ptrdiff_t>(floors));
  out.ours = t[floors];
  out.eigen = of(at_eigen);
  out.openblas = of(at_blas);
  out.libtorch = of(at_torch);
  return out;
}

}  // namespace bench
