// How one step is pulled back through the experts: what a backend may offer for it, where the gradient goes,
// and how the work is cut. What router_rows_vjp.hpp is made of.
#pragma once

#include <mpi_router/backend/apply_experts.hpp>
#include <mpi_router/backend/dense.hpp>
#include <mpi_router/manifold/power_step_vjp.hpp>
#include <mpi_router/router/router_factors.hpp>

MPIROUTER_BEGIN

/// A backend with the one read that the backward needs: y = A p, w = A q and u = wA.
template <class B, class T, class S>
concept PullbackBackend =
    DenseBackend<B, T, S> && requires(const B& backend, matrix_view<const T> a, vector_view<const S> in,
                                      vector_view<S> out) { backend.pull_back(a, in, in, out, out, out); };

/// A backend whose read also writes or adds y qᵀ + w pᵀ to a gradient of element type G as it goes.
template <class B, class T, class S, class G>
concept AccumulatingBackend =
    PullbackBackend<B, T, S> && requires(const B& backend, matrix_view<const T> a, vector_view<const S> in,
                                         vector_view<S> out, matrix_view<G> gradient, gradient_mode mode) {
      backend.pull_back(a, in, in, out, out, out, gradient, mode);
    };

namespace detail {

/// y = A p, w = A q, u = wA: one read of A where the backend has it, three where not.
template <Accumulator S, class T, class Backend>
void pull_back(const Backend& backend, const matrix_view<const T>& a, const rank2_factors<S>& factors,
               const vector_view<S>& image) {
  if constexpr (PullbackBackend<Backend, T, S>) {
    const vector_view<const S> p(factors.row);
    const vector_view<const S> q(factors.dual_row);
    backend.pull_back(a, p, q, factors.projection, factors.dual_projection, image);
  } else {
    const dense_operator<T, S, Backend> op(a, backend);
    pull_back(op, factors, image);
  }
}

/// The gradient goes into matrices, a batch or whatever gives one for each expert; the factors live in
/// scratch.
template <Accumulator S, class G, class Gradient = expert_batch_view<G>>
struct into_matrices {
  const Gradient& gradient;
  gradient_mode mode;

  [[nodiscard]] rank2_factors<S> factors(index_t, index_t, const rank2_factors<S>& scratch) const {
    return scratch;
  }
  /// f(range) for the memory that is written.
  template <class F>
  void for_each_range(const F& f) const {
    detail::for_each_range(gradient, f);
  }
  /// The neurons [first, first + a.rows()) of an expert; f and image are theirs.
  template <class T, class Backend>
  void pull(const Backend& backend, index_t expert, index_t first, bool is_last_step,
            const matrix_view<const T>& a, const rank2_factors<S>& f, const vector_view<S>& image) const {
    const matrix_view<G> to = gradient[expert].middle_rows(first, a.rows());
    const gradient_mode at = is_last_step ? mode : gradient_mode::accumulate;
    if constexpr (AccumulatingBackend<Backend, T, S, G>) {
      backend.pull_back(a, vector_view<const S>(f.row), vector_view<const S>(f.dual_row), f.projection,
                        f.dual_projection, image, to, at);
    } else {
      pull_back<S>(backend, a, f, image);
      add_rank2<S>(f, to, at);
    }
  }
  void degenerate(index_t expert, bool is_last_step, const rank2_factors<S>& zeros) const {
    if (is_last_step && mode == gradient_mode::write) {
      add_rank2<S>(zeros, gradient[expert], mode);
    }
  }
};

/// The gradient stays in factors, which are the caller's.
template <Accumulator S>
struct into_factors {
  const router_factors<S>& all;

  [[nodiscard]] rank2_factors<S> factors(index_t term, index_t expert, const rank2_factors<S>&) const {
    return all.at(term, expert);
  }
  template <class F>
  void for_each_range(const F& f) const {
    f(addresses(all.elements()));
  }
  template <class T, class Backend>
  void pull(const Backend& backend, index_t, index_t, bool, const matrix_view<const T>& a,
            const rank2_factors<S>& f, const vector_view<S>& image) const {
    pull_back<S>(backend, a, f, image);
  }
  void degenerate(index_t, bool, const rank2_factors<S>&) const {}
};

/// The factors of a block of neurons of an expert.
template <Accumulator S>
[[nodiscard]] rank2_factors<S> part_of(const rank2_factors<S>& f, index_t first, index_t count) {
  const auto part = [&](const vector_view<S>& v) { return vector_view<S>(v.data() + first, count); };
  return {part(f.projection), f.dual_row, part(f.dual_projection), f.row};
}

/// images[i] = Σ over blocks of neurons of what pull(i, first, count, image) writes, for all experts: the
/// blocks of apply_experts, their partial images added in order. Many experts are not cut: the bits of one
/// may differ from those that it has in a smaller batch.
template <Accumulator S, class Experts, class Pull, class Run>
void pull_experts(const Experts& experts, const matrix_view<S>& images, const vector_view<S>& workspace,
                  const Run& executor, const Pull& pull) {
  const expert_shape shape = experts.shape();
  const index_t n = shape.num_experts;
  const index_t unit = block_unit(experts.strides());
  const index_t blocks = n >= many_experts ? 1 : blocks_of(shape, unit);
  if (blocks == 1) {
    executor(n, [&](index_t i) { pull(i, index_t{0}, shape.ffn_dim, images.row(i)); });
    return;
  }
  const partial_sums<S> partial{workspace.data(), shape.hidden_dim};
  executor(n * blocks, [&](index_t task) {
    const index_t first = block_start(shape, unit, task % blocks);
    const index_t end = block_start(shape, unit, task % blocks + 1);
    pull(task / blocks, first, end - first, partial.image(task));
  });
  executor(n, [&](index_t i) {
    fill_zero(images.row(i));
    for (index_t task = i * blocks; task < (i + 1) * blocks; ++task) {
      add_to(images.row(i), partial.image(task));
    }
  });
}

}  // namespace detail

MPIROUTER_END
