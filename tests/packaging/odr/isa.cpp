// Compiled once for each instruction set, as FUNCTION. Returns the name of the namespace that computed, so
// that a mixture shows.
#include <mpi_router/mpi_router.hpp>

#include <array>
#include <vector>

#define TEXT_OF_(x) #x
#define TEXT_OF(x) TEXT_OF_(x)

const char* FUNCTION(const float* a, mpi_router::index_t ffn_dim, mpi_router::index_t hidden_dim,
                     const float* row, float* out);

namespace {

// Extents are not known to the compiler and every function is called more than once, so that inlining is not
// the cheapest choice.
template <class T>
void step(const T* a, mpi_router::index_t ffn_dim, mpi_router::index_t hidden_dim, const float* row,
          float* out) {
  using mpi_router::vector_view;
  const mpi_router::expert_shape shape{.num_experts = 1, .ffn_dim = ffn_dim, .hidden_dim = hidden_dim};
  for (const auto& experts : {mpi_router::experts_nfd(a, shape), mpi_router::experts_ndf(a, shape)}) {
    const auto all = experts[0];
    const auto shard =
        experts[0].transposed().middle_rows(1, hidden_dim - 1).middle_cols(0, ffn_dim - 1).transposed();
    mpi_router::power_step(mpi_router::gram(all), vector_view(row, hidden_dim), vector_view(out, hidden_dim),
                           1.0F);
    mpi_router::power_step(mpi_router::gram(shard), vector_view(row, hidden_dim - 1),
                           vector_view(out, hidden_dim - 1), 1.0F);
  }
  const auto fd = mpi_router::gate_fd(a, ffn_dim, hidden_dim);
  const auto df = mpi_router::gate_df(a, hidden_dim, ffn_dim);
  mpi_router::power_step(mpi_router::gram(df), vector_view(row, hidden_dim), vector_view(out, hidden_dim),
                         1.0F);
  mpi_router::power_step(mpi_router::gram(fd), vector_view(row, hidden_dim), vector_view(out, hidden_dim),
                         1.0F);
}

using mpi_router::index_t;

/// The batched step and its backward, and the factors of it; `statuses` by name.
std::size_t rows_and_back(const float* a, const mpi_router::expert_shape& shape, const float* row) {
  mpi_router::router_options options{.steps = 2, .through = mpi_router::differentiate::last};
  options.radius = mpi_router::router_radius::scale_free(4);
  const auto experts = mpi_router::experts_nfd(a, shape);
  const auto router = mpi_router::row_major(row, shape.num_experts, shape.hidden_dim);
  const auto size = [](index_t n) { return static_cast<std::size_t>(n); };
  std::vector<float> rows(size(shape.hidden_dim));
  std::vector<float> gradient(rows.size());
  std::vector<float> tape(size(mpi_router::router_tape_size(shape, options)));
  std::vector<float> factors(size(mpi_router::router_factors<float>::size(shape, options)));
  std::vector<float> workspace(
      size(std::max(mpi_router::router_rows_workspace(shape), mpi_router::router_rows_vjp_workspace(shape))));
  std::vector<mpi_router::status> statuses(1);
  const auto out = mpi_router::row_major(rows.data(), 1, shape.hidden_dim);
  const auto grad = mpi_router::row_major(gradient.data(), 1, shape.hidden_dim);
  mpi_router::router_rows(experts, router, out, options, workspace, {.statuses = statuses, .tape = tape});
  const mpi_router::router_factors<float> into(factors, shape, options);
  mpi_router::router_rows_vjp_factored(experts, router, tape, out, options, grad, into,
                                       mpi_router::gradient_mode::write, workspace);
  std::vector<float> to_experts(size(shape.ffn_dim * shape.hidden_dim));
  mpi_router::add_factors(into, mpi_router::experts_nfd(to_experts.data(), shape),
                          mpi_router::gradient_mode::write);
  return mpi_router::to_string(statuses[0]).size();
}

/// The gate, its losses, loads and dispatch lists of `count` experts' logits, for one token.
double gate_and_losses(const float* x, index_t count) {
  const auto logits = mpi_router::row_major(x, 1, count);
  mpi_router::gating_options options{.top_k = 2, .n_group = 1};
  std::vector<float> workspace(static_cast<std::size_t>(mpi_router::gating_workspace(1, count) +
                                                        mpi_router::balance_workspace(1, count, 1)));
  std::array<float, 2> weights{};
  std::array<mpi_router::expert_id, 2> ids{};
  std::vector<float> gradient(static_cast<std::size_t>(count));
  const auto grad = mpi_router::row_major(gradient.data(), 1, count);
  double sum = options == mpi_router::gating_options{} ? 1 : 0;
  for (const auto score : {mpi_router::score_function::softmax, mpi_router::score_function::sigmoid,
                           mpi_router::score_function::sqrtsoftplus}) {
    options.score_function = score;
    mpi_router::gate<float>(logits, options, {}, {mpi_router::row_major(weights.data(), 1, 2), ids},
                            workspace);
    mpi_router::gate_vjp<float>(logits, options, ids, mpi_router::row_major(weights.data(), 1, 2), grad,
                                mpi_router::gradient_mode::accumulate, workspace);
    sum += mpi_router::balance_loss<float>(logits, score, ids, 2, 1, workspace);
    sum += mpi_router::z_loss<float>(logits, workspace);
  }
  std::vector<index_t> load(static_cast<std::size_t>(count));
  std::vector<index_t> total(load.size());
  mpi_router::count_load(ids, 2, {}, load);
  mpi_router::load_tracker tracker(total);
  tracker.add(load);
  tracker.merge(tracker);
  mpi_router::alignment_statistics alignment;
  alignment.add(sum, 2, 3, 0.5);
  alignment.merge(alignment);
  std::vector<index_t> offsets(load.size() + 1);
  std::array<index_t, 2> tokens{};
  mpi_router::build_dispatch(ids, 2, {}, {offsets, tokens});
  return tracker.global_entropy() + tracker.global_violation() + tracker.batch_entropy().variance() +
         alignment.spectral.sample_deviation();
}

/// Many steps, and steps with a length.
float many_steps(const float* a, index_t ffn_dim, index_t hidden_dim, const float* row) {
  const auto op = mpi_router::gram(mpi_router::gate_fd(a, ffn_dim, hidden_dim));
  std::vector<float> iterate(row, row + hidden_dim);
  std::vector<float> workspace(2 * iterate.size());
  mpi_router::iteration_options<float> options{.max_steps = 3};
  options.acceleration = mpi_router::momentum<float>::estimated();
  const auto result = mpi_router::power_iteration(op, iterate, workspace, options);
  const mpi_router::vector_view<float> residual(workspace.data(), hidden_dim);
  const auto at = mpi_router::rayleigh(op, iterate, residual);
  const auto step = mpi_router::steepest_ascent_step(op, iterate, residual, 1.0F, 0.5F);
  return result.last.rayleigh + mpi_router::adaptive_step_length(at).geodesic + step.cosine;
}

}  // namespace

const char* FUNCTION(const float* a, mpi_router::index_t ffn_dim, mpi_router::index_t hidden_dim,
                     const float* row, float* out) {
  const double all = gate_and_losses(a, hidden_dim) + many_steps(a, ffn_dim, hidden_dim, row) +
                     static_cast<double>(rows_and_back(a, {1, ffn_dim, hidden_dim}, row));
  out[0] = static_cast<float>(all);  // the steps below write over it
  std::vector<mpi_router::bf16> brain(static_cast<std::size_t>(ffn_dim * hidden_dim));
  std::vector<mpi_router::f16> half(brain.size());
  for (std::size_t i = 0; i < brain.size(); ++i) {
    brain[i] = mpi_router::bf16(a[i]);
    half[i] = mpi_router::f16(a[i]);
  }
  step(brain.data(), ffn_dim, hidden_dim, row, out);
  step(half.data(), ffn_dim, hidden_dim, row, out);
  step(a, ffn_dim, hidden_dim, row, out);
  return TEXT_OF(MPIROUTER_ISA_NAMESPACE);
}
