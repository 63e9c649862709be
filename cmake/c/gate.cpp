// mpi_router_gate and its backward.
#include "gate_call.hpp"
#include "threads.hpp"

#include <mpi_router/router/gating_vjp.hpp>

namespace mpi_router_c {

gating_options options_of(const char* what, const mpi_router_gating_options& o) {
  core::expect(o.renormalize == 0 || o.renormalize == 1, what, ": renormalize is ", o.renormalize,
               ", not 0 or 1");
  return {
      .top_k = o.top_k,
      .score_function = enumerated(what, "score_function", o.score_function, score_function::sqrtsoftplus),
      .order = enumerated(what, "order", o.order, selection_order::select_then_score),
      .renormalize = o.renormalize != 0,
      .scaling_factor = o.scaling_factor,
      .n_group = o.n_group,
      .topk_group = o.topk_group,
      .group_score = enumerated(what, "group_score", o.group_score, mpi_router::group_score::max)};
}

namespace {

/// A matrix or vector of the type of the logits.
template <class Array>
const Array& like_logits(const char* what, const char* name, const Array* array,
                         const mpi_router_matrix& logits) {
  check(what, name, given(what, name, array));
  core::expect(array->dtype == logits.dtype, what, ": ", name, " is ", name_of(array->dtype), ", logits is ",
               name_of(logits.dtype));
  return *array;
}

const mpi_router_matrix& check_logits(const char* what, const mpi_router_matrix* logits,
                                      const gating_options& options) {
  check(what, "logits", given(what, "logits", logits));
  if (logits->dtype != MPIROUTER_F32 && logits->dtype != MPIROUTER_F64) {
    unsupported(what, ": logits is ", name_of(logits->dtype), ", and a gate takes f32 or f64");
  }
  core::check_gating(what, options, logits->shape[1]);
  return *logits;
}

std::span<const status> statuses_of(const char* what, const char* name, const std::uint8_t* statuses,
                                    index_t tokens) {
  for (index_t t = 0; statuses != nullptr && t < tokens; ++t) {
    // 1 and 2 are of rows alone: refused, so that a mask of 0 and 1 is not taken for its opposite.
    const bool is_of_a_token =
        statuses[t] == MPIROUTER_STATUS_OK ||
        (statuses[t] >= MPIROUTER_STATUS_NON_FINITE && statuses[t] <= MPIROUTER_STATUS_CLOSED_EXPERT);
    core::expect(is_of_a_token, what, ": ", name, " of token ", t, " is ", static_cast<int>(statuses[t]),
                 ", which is no status of a token: 0 counts, ", int{MPIROUTER_STATUS_MASKED}, " is masked");
  }
  return {reinterpret_cast<const status*>(statuses),
          statuses == nullptr ? 0 : static_cast<std::size_t>(tokens)};
}

template <Accumulator S>
vector_view<const S> bias_of(const char* what, const mpi_router_vector* bias,
                             const mpi_router_matrix& logits) {
  if (bias == nullptr) {
    return {};
  }
  const mpi_router_vector& b = like_logits(what, "selection_bias", bias, logits);
  core::expect(b.size == logits.shape[1], what, ": selection_bias has ", b.size, " elements, logits is ",
               logits.shape[1], " experts wide");
  return view_of<const S>(b);
}

template <Accumulator S>
struct gate_scratch {
  explicit gate_scratch(const mpi_router_matrix& logits)
      : size(gating_workspace(logits.shape[0], logits.shape[1])),
        memory(new S[static_cast<std::size_t>(size)]) {}
  [[nodiscard]] vector_view<S> view() const { return {memory.get(), size}; }

  index_t size;
  std::unique_ptr<S[]> memory;
};

/// body(std::type_identity<S>) for the type of the logits.
template <class Body>
void with_sums_of(const mpi_router_matrix& logits, const Body& body) {
  logits.dtype == MPIROUTER_F64 ? body(std::type_identity<double>{}) : body(std::type_identity<float>{});
}

}  // namespace
}  // namespace mpi_router_c

using namespace mpi_router_c;

extern "C" {

mpi_router_gating_options mpi_router_default_gating_options(std::int64_t top_k) {
  return {.top_k = top_k,
          .score_function = MPIROUTER_SOFTMAX,
          .order = MPIROUTER_SCORE_THEN_SELECT,
          .renormalize = top_k > 1 ? 1 : 0,
          .group_score = MPIROUTER_GROUP_TOP2_SUM,
          .scaling_factor = 1,
          .n_group = 1,
          .topk_group = 1};
}

mpi_router_code mpi_router_gate(const mpi_router_matrix* logits, const mpi_router_gating_options* options,
                                const mpi_router_vector* selection_bias, const std::uint8_t* mask,
                                const mpi_router_matrix* weights, std::int32_t* experts,
                                std::uint8_t* statuses, const mpi_router_threads* threads) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_gate";
    const gating_options o = mpi_router_c::options_of(what, given(what, "options", options));
    const mpi_router_matrix& in = check_logits(what, logits, o);
    const mpi_router_matrix& out = like_logits(what, "weights", weights, in);
    const index_t tokens = in.shape[0];
    expect_shape(what, "weights", out, tokens, o.top_k, "[T, K]");
    expect_distinct(what, "weights", out);
    core::expect(experts != nullptr || tokens == 0, what, ": experts is null");
    const auto counted = statuses_of(what, "mask", mask, tokens);
    with_sums_of(in, [&]<class S>(std::type_identity<S>) {
      const auto bias = bias_of<S>(what, selection_bias, in);
      const gate_scratch<S> scratch(in);
      const gate_output<S> told{.weights = view_of<S>(out),
                                .experts = {experts, static_cast<std::size_t>(tokens * o.top_k)},
                                .statuses = {reinterpret_cast<status*>(statuses),
                                             statuses == nullptr ? 0 : static_cast<std::size_t>(tokens)}};
      gate<S>(view_of<const S>(in), o, bias, told, scratch.view(), callback_executor(threads), counted);
    });
  });
}

mpi_router_code mpi_router_gate_vjp(const mpi_router_matrix* logits, const mpi_router_gating_options* options,
                                    const mpi_router_vector* selection_bias, const std::int32_t* experts,
                                    const std::uint8_t* statuses, const mpi_router_matrix* grad_weights,
                                    const mpi_router_matrix* grad_logits, std::int32_t mode,
                                    const mpi_router_threads* threads) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_gate_vjp";
    const gating_options o = mpi_router_c::options_of(what, given(what, "options", options));
    const mpi_router_matrix& in = check_logits(what, logits, o);
    const mpi_router_matrix& from = like_logits(what, "grad_weights", grad_weights, in);
    const mpi_router_matrix& to = like_logits(what, "grad_logits", grad_logits, in);
    const index_t tokens = in.shape[0];
    expect_shape(what, "grad_weights", from, tokens, o.top_k, "[T, K]");
    expect_shape(what, "grad_logits", to, tokens, in.shape[1], "[T, N]");
    expect_distinct(what, "grad_logits", to);
    core::expect(experts != nullptr || tokens == 0, what, ": experts is null");
    const auto counted = statuses_of(what, "statuses", statuses, tokens);
    const gradient_mode how = enumerated(what, "mode", mode, gradient_mode::accumulate);
    with_sums_of(in, [&]<class S>(std::type_identity<S>) {
      const auto bias = bias_of<S>(what, selection_bias, in);
      const gate_scratch<S> scratch(in);
      gate_vjp<S>(view_of<const S>(in), o, {experts, static_cast<std::size_t>(tokens * o.top_k)},
                  view_of<const S>(from), view_of<S>(to), how, scratch.view(), callback_executor(threads),
                  counted, bias);
    });
  });
}

}  // extern "C"
