// A layer with everything that a call takes and gives, whole and in parts.
#pragma once

#include "any_communicator.hpp"
#include "parts.hpp"

#include <mpi_router/distributed/sharded_rows.hpp>
#include <mpi_router/distributed/sharded_rows_vjp.hpp>

#include <support/tolerance.hpp>

#include <algorithm>
#include <cstring>
#include <optional>

namespace test_support {

using namespace mpi_router;

inline std::size_t size_of(index_t n) { return static_cast<std::size_t>(n); }

/// Weights, router and gradient of the rows of a layer; every rank draws the same.
template <class T, class R>
struct whole_layer {
  expert_shape shape;
  std::vector<T> weights;
  std::vector<R> router, grad_rows;
  whole_layer(const expert_shape& s, std::uint64_t seed, double scale = 1) : shape(s) {
    random_source random(seed);
    weights = random_vector<T>(random, s.num_experts * s.ffn_dim * s.hidden_dim, scale);
    router = random_vector<R>(random, s.num_experts * s.hidden_dim);
    grad_rows = random_vector<R>(random, s.num_experts * s.hidden_dim);
  }
  [[nodiscard]] auto matrix(const std::vector<R>& v) const {
    return row_major(v.data(), shape.num_experts, shape.hidden_dim);
  }
  [[nodiscard]] auto matrix(std::vector<R>& v) const {
    return row_major(v.data(), shape.num_experts, shape.hidden_dim);
  }
};

/// What a forward and a backward give, the same on every rank; and the gradient to the weights that are here.
template <class R, class S>
struct results {
  std::vector<R> rows, grad_router;
  std::vector<status> statuses;
  std::vector<S> rayleigh, cosine, residual, energy, row_norm, image_norm, tape;
  results(const expert_shape& s, const router_options& options)
      : rows(size_of(s.num_experts * s.hidden_dim)),
        grad_router(rows.size()),
        statuses(size_of(s.num_experts)),
        rayleigh(size_of(s.num_experts)),
        cosine(rayleigh),
        residual(rayleigh),
        energy(rayleigh),
        row_norm(rayleigh),
        image_norm(rayleigh),
        tape(size_of(router_tape_size(s, options))) {}
  [[nodiscard]] router_by_products<S> told() {
    return {statuses, rayleigh, cosine, tape, residual, energy, row_norm, image_norm};
  }
};

template <class V>
[[nodiscard]] bool same_bits(const V& a, const V& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(typename V::value_type)) == 0);
}
template <class R, class S>
[[nodiscard]] bool same_bits(const results<R, S>& a, const results<R, S>& b) {
  return same_bits(a.rows, b.rows) && same_bits(a.grad_router, b.grad_router) && a.statuses == b.statuses &&
         same_bits(a.rayleigh, b.rayleigh) && same_bits(a.cosine, b.cosine) && same_bits(a.tape, b.tape) &&
         same_bits(a.residual, b.residual) && same_bits(a.energy, b.energy) &&
         same_bits(a.image_norm, b.image_norm);
}
template <class V>
[[nodiscard]] std::vector<double> wide(const V& v) {
  std::vector<double> out;
  for (const auto& x : v) out.push_back(widen<double>(x));
  return out;
}

/// "" where a is near b, else what is said of them.
template <class V, class W>
[[nodiscard]] std::string apart(const char* what, const V& a, const W& b, double bound) {
  const double distance = relative_distance(wide(a), wide(b));
  return distance <= bound ? ""
                           : std::string(what) + " off by " + std::to_string(distance / bound) + " bounds; ";
}

/// The layer on one rank, by router_rows and router_rows_vjp.
template <class T, class R, class S = router_scalar_t<T, R>>
void run_whole(const whole_layer<T, R>& layer, const router_options& options, results<R, S>& out,
               std::vector<T>& grad_weights) {
  const auto experts = experts_nfd(layer.weights.data(), layer.shape);
  std::vector<S> workspace(size_of(router_rows_vjp_workspace(layer.shape)));
  router_rows(experts, layer.matrix(layer.router), layer.matrix(out.rows), options, workspace, out.told());
  router_rows_vjp(experts, layer.matrix(layer.router), out.tape, layer.matrix(layer.grad_rows), options,
                  layer.matrix(out.grad_router), experts_nfd(grad_weights.data(), layer.shape),
                  gradient_mode::accumulate, workspace);
}

/// The same by parts, whose gradient is added to `gradient`.
template <class Comm, class T, class R, class Shard, class Gradient, class S = router_scalar_t<T, R>,
          class Run = serial_executor>
void run_sharded(const Comm& comm, const whole_layer<T, R>& layer, const Shard& shard,
                 const Gradient& gradient, const router_options& options, results<R, S>& out,
                 index_t most = 0, const Run& executor = {}) {
  const sharded_layer forward{shard, layer.matrix(layer.router), layer.matrix(out.rows)};
  std::vector<S> workspace(size_of(sharded_router_rows_workspace(forward, comm.size(), most)));
  sharded_router_rows(comm, forward, options, workspace, out.told(), reference{}, executor);
  const sharded_layer_vjp backward{shard, layer.matrix(layer.router), layer.matrix(layer.grad_rows),
                                   layer.matrix(out.grad_router), gradient};
  workspace.assign(size_of(sharded_router_rows_vjp_workspace(backward, comm.size(), most)), S{0});
  sharded_router_rows_vjp(comm, backward, out.tape, options, tokens_of_rows::same_on_all_ranks,
                          gradient_mode::accumulate, workspace, reference{}, executor);
}

/// What differs between the whole and its parts.
template <class R, class S>
[[nodiscard]] std::string difference(const results<R, S>& parts, const results<R, S>& whole, double bound) {
  const double stored = bound + 2 * tolerance<R>.storage;
  std::string said = apart("rows", parts.rows, whole.rows, stored) +
                     apart("grad_router", parts.grad_router, whole.grad_router, 10 * stored) +
                     apart("rayleigh", parts.rayleigh, whole.rayleigh, bound) +
                     apart("cosine", parts.cosine, whole.cosine, bound) +
                     apart("energy", parts.energy, whole.energy, bound) +
                     apart("image_norm", parts.image_norm, whole.image_norm, bound) +
                     apart("residual", parts.residual, whole.residual, 10 * bound);
  return said + (parts.statuses == whole.statuses ? "" : "statuses differ; ");
}

/// Bounds of sums in S in another order; of f64, what the project asks for.
template <class S>
inline constexpr double reordered = std::same_as<S, double> ? 1e-14 : 5e-6;

}  // namespace test_support
