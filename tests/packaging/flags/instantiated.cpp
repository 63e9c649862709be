// The host library instantiated for every element type, so that the warnings of its templates show. Never
// run.
#include <mpi_router/backend/runtime_dispatch.hpp>
#include <mpi_router/io/moe_layers.hpp>
#include <mpi_router/io/safetensors.hpp>
#include <mpi_router/mpi_router.hpp>

#include <array>
#include <vector>

using namespace mpi_router;

// clang-format off
template class mpi_router::vector_view<const float>;
template class mpi_router::matrix_view<const float>;
template class mpi_router::expert_batch_view<const float>;
template class mpi_router::expert_batch_view<const float, device_space>;
template class mpi_router::router_factors<double>;
// clang-format on

template <class T>
void experts_of(T* data, T* const* table, const expert_shape& shape) {
  const std::array all{experts_nfd(data, shape),
                       experts_ndf(data, shape),
                       experts_n2fd_concatenated(data, shape),
                       experts_n2fd_interleaved(data, shape),
                       experts_nd2f_concatenated(data, shape),
                       experts_nd2f_interleaved(data, shape),
                       experts_strided(data, shape, {.expert = 1, .ffn = 1, .hidden = 1}),
                       experts_fd_pointers(table, shape),
                       experts_df_pointers(table, shape)};
  core::for_each_range(all[0].middle_experts(0, 1), [](const core::address_range&) {});
}

template <class Op, class S = scalar_of<Op>>
void steps_of(Op op, vector_view<S> x, vector_view<S> y, vector_view<S> z) {
  saved_norm<S> saved;
  const vector_view<const S> in(x);
  power_step(op, in, y, S{1}, degenerate_row::keep, saved);
  stateful_power_step(op, x, y, S{1});
  power_step_vjp(op, in, saved, in, S{1}, y, z);
  if constexpr (FactoredGramOperator<Op>) {
    power_step_vjp(op, in, in, saved, in, S{1}, y, rank2_factors<S>{x, y, x, y});
  }
  power_iteration(op, x, y, {.acceleration = momentum<S>::estimated()},
                  [](const auto& r, auto) { return r.step < 2; });
  rayleigh(op, in, y);
  steepest_ascent_step(op, in, y, S{1}, S{1});
  adaptive_ascent_step(op, in, y, S{1});
  project_to_tangent<S>(in, in, y);
  static_cast<void>(geodesic_distance<S>(in, line_angle<S>(in, in) > 0 ? in : vector_view<const S>(y)));
}

template <class T, class Backend, class S = accumulator_t<T>>
void rows_of(T* data, S* numbers, const expert_shape& shape, const Backend& backend) {
  const auto experts = experts_nfd(data, shape);
  const auto rows = row_major(numbers, shape.num_experts, shape.hidden_dim);
  const auto stored = row_major(data, shape.num_experts, shape.hidden_dim);
  const vector_view<S> work(numbers, 1);
  router_rows(experts, stored, rows, {}, work, {}, backend);
  stateful_router_rows(experts, stored, {}, work, {}, backend);
  router_rows_vjp(experts, rows, work, stored, {}, rows, experts, gradient_mode::write, work, backend);
  router_rows_vjp(experts, stored, work, rows, {}, stored, experts_ndf(numbers, shape), gradient_mode::write,
                  work, backend);
  const router_factors<S> factors(work, shape, {});
  router_rows_vjp_factored(experts, rows, work, rows, {}, rows, factors, gradient_mode::write, work, backend);
  router_rows_vjp_detached(experts, rows, work, rows, {}, rows, gradient_mode::write, work, backend);
  add_factors(factors, experts, gradient_mode::accumulate);
  steps_of(gram(experts[0], backend), work, work, work);
}

template <class S, class X>
void gate_of(const matrix_view<S>& m, const matrix_view<X>& tokens, vector_view<S> work) {
  std::array<expert_id, 2> ids{};
  std::array<status, 2> statuses{};
  const gating_options options;
  const gate_output<S> out{m, ids, statuses};
  gate<S>(m, options, {}, out, work);
  router_logits(tokens, m, m);
  route(tokens, m, options, {}, m, out, work);
  gate_vjp<S>(m, options, ids, m, m, gradient_mode::write, work);
  router_logits_vjp<X, S>(tokens, m, m, m, m, gradient_mode::write);
  for (const auto score : {score_function::softmax, score_function::sigmoid}) {
    static_cast<void>(balance_loss<S>(m, score, ids, 2, 1, work));
    balance_loss_vjp<S>(m, score, ids, 2, 1, S{1}, m, gradient_mode::write, work);
    std::array<index_t, 2> load{};
    static_cast<void>(global_balance_loss<S>(m, score, load, work));
    global_balance_loss_vjp<S>(m, score, load, S{1}, m, gradient_mode::write, work);
    update_expert_bias<S>(load, S{1}, work);
  }
  static_cast<void>(z_loss<S>(m, work));
  z_loss_vjp<S>(m, S{1}, m, gradient_mode::write);
}

template <class T, class Backend>
void all_of(T* data, accumulator_t<T>* numbers, const expert_shape& shape, const Backend& backend) {
  experts_of(data, &data, shape);
  rows_of(data, numbers, shape, backend);
  gate_of(row_major(numbers, 1, 1), row_major(data, 1, 1), vector_view(numbers, 1));
}

void instantiate(double* numbers, float* floats, bf16* brains, f16* halves, const expert_shape& shape);
void instantiate(double* numbers, float* floats, bf16* brains, f16* halves, const expert_shape& shape) {
  all_of(numbers, numbers, shape, reference{});
  all_of(floats, floats, shape, dispatch{});
  all_of(brains, floats, shape, dispatch{});
  all_of(halves, floats, shape, reference{});
  const safetensors_file file("x");
  static_cast<void>(file.at("x").load<float>());
  const checkpoint files("x");
  for (const auto& layer : find_moe_layers(files)) {
    visit_router(layer, [](const auto&) {});
    visit_experts(layer, [](const auto&) {});
    visit_gate(layer.gates[0], [](const auto&) {});
  }
  steps_of(gram_operator<double>(1, [](auto, auto) { return 0.0; }), vector_view(numbers, 1),
           vector_view(numbers, 1), vector_view(numbers, 1));
}
