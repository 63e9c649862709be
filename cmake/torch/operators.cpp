// mpi_router::torch: the schema, its kernels, and the functions of mpi_router/torch/router.hpp. One
// translation unit, for libtorch's headers take long; the types are those of the C interface, which it stands
// on.
#include <mpi_router/torch/router.hpp>

#include "gate.hpp"
#include "rows.hpp"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <string>

using namespace mpi_router_torch;

namespace {

constexpr const char* rows_options =
    "float radius=4., str radius_rule=\"scale_free\", str degenerate=\"zero\", int total_experts=0, int "
    "steps=1, str through=\"all\"";
constexpr const char* gate_options =
    "str score_function=\"softmax\", str order=\"score_then_select\", bool? renormalize=None, str "
    "group_score=\"top2_sum\", float scaling_factor=1., int n_group=1, int topk_group=1";

template <class Rows, class Gate>
void implement(torch::Library& m) {
  m.impl("router_rows", &Rows::rows);
  m.impl("router_rows_with_tape", &Rows::rows_with_tape);
  m.impl("router_rows_vjp", &Rows::rows_vjp);
  m.impl("router_rows_vjp_accumulate", &Rows::accumulate);
  m.impl("gate", &Gate::gate);
  m.impl("gate_vjp", &Gate::gate_vjp);
}

optional<Tensor> given(const Tensor& t) { return t.defined() ? optional<Tensor>(t) : optional<Tensor>(); }

}  // namespace

TORCH_LIBRARY(mpi_router, m) {
  const auto define = [&m](const std::string& arguments, const char* options, const char* results) {
    m.def((arguments + ", *, " + options + ") -> " + results).c_str());
  };
  define("router_rows(Tensor experts, Tensor router", rows_options, "(Tensor rows, Tensor statuses)");
  define("router_rows_with_tape(Tensor experts, Tensor router", rows_options,
         "(Tensor rows, Tensor statuses, Tensor tape)");
  define(
      "router_rows_vjp(Tensor experts, Tensor router, Tensor tape, Tensor grad_rows, bool "
      "wants_router=True, bool wants_experts=True",
      rows_options, "(Tensor grad_router, Tensor grad_experts)");
  define(
      "router_rows_vjp_accumulate(Tensor experts, Tensor router, Tensor tape, Tensor grad_rows, "
      "Tensor(a!) grad_experts",
      rows_options, "Tensor");
  define("gate(Tensor logits, int top_k, Tensor? selection_bias=None, Tensor? mask=None", gate_options,
         "(Tensor weights, Tensor experts, Tensor statuses)");
  define(
      "gate_vjp(Tensor logits, Tensor experts, Tensor statuses, Tensor grad_weights, Tensor? "
      "selection_bias, int top_k",
      gate_options, "Tensor");
}

TORCH_LIBRARY_IMPL(mpi_router, CPU, m) { implement<for_rows<rows_on_device>, for_gate<gate_on_device>>(m); }
TORCH_LIBRARY_IMPL(mpi_router, CUDA, m) { implement<for_rows<rows_on_device>, for_gate<gate_on_device>>(m); }
TORCH_LIBRARY_IMPL(mpi_router, Meta, m) { implement<for_rows<rows_by_shape>, for_gate<gate_by_shape>>(m); }

TORCH_LIBRARY_IMPL(mpi_router, Autograd, m) {
  m.impl("router_rows", &for_rows<rows_with_gradient>::rows);
  m.impl("gate", &for_gate<gate_with_gradient>::gate);
  // These have no gradient, and say so in a backward that asks for one.
  for (const char* name :
       {"router_rows_with_tape", "router_rows_vjp", "router_rows_vjp_accumulate", "gate_vjp"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

namespace mpi_router {

std::tuple<Tensor, Tensor> router_rows(const Tensor& experts, const Tensor& router,
                                       const mpi_router_options& options) {
  return with_arguments(options, [&](auto... o) { return rows_operator().call(experts, router, o...); });
}

std::tuple<Tensor, Tensor, Tensor> router_rows_with_tape(const Tensor& experts, const Tensor& router,
                                                         const mpi_router_options& options) {
  return with_arguments(options,
                        [&](auto... o) { return rows_with_tape_operator().call(experts, router, o...); });
}

std::tuple<Tensor, Tensor> router_rows_vjp(const Tensor& experts, const Tensor& router, const Tensor& tape,
                                           const Tensor& grad_rows, const mpi_router_options& options,
                                           bool wants_router, bool wants_experts) {
  return with_arguments(options, [&](auto... o) {
    return rows_vjp_operator().call(experts, router, tape, grad_rows, wants_router, wants_experts, o...);
  });
}

Tensor router_rows_vjp_accumulate(const Tensor& experts, const Tensor& router, const Tensor& tape,
                                  const Tensor& grad_rows, const Tensor& grad_experts,
                                  const mpi_router_options& options) {
  return with_arguments(options, [&](auto... o) {
    return accumulate_operator().call(experts, router, tape, grad_rows, grad_experts, o...);
  });
}

std::tuple<Tensor, Tensor, Tensor> gate(const Tensor& logits, const mpi_router_gating_options& options,
                                        const Tensor& selection_bias, const Tensor& mask) {
  return with_arguments(options, [&](std::int64_t top_k, auto... o) {
    return gate_operator().call(logits, top_k, given(selection_bias), given(mask), o...);
  });
}

Tensor gate_vjp(const Tensor& logits, const Tensor& experts, const Tensor& statuses,
                const Tensor& grad_weights, const mpi_router_gating_options& options,
                const Tensor& selection_bias) {
  return with_arguments(options, [&](std::int64_t top_k, auto... o) {
    return gate_vjp_operator().call(logits, experts, statuses, grad_weights, given(selection_bias), top_k,
                                    o...);
  });
}

}  // namespace mpi_router
