// The operators of the step: on a device, by shapes alone (Meta), and with a gradient.
#pragma once

#include "arrays.hpp"
#include "gpu.hpp"
#include "options.hpp"
#include "run.hpp"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>
#include <tuple>

namespace mpi_router_torch {

/// An operator of this library, as the dispatcher has it.
template <class Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

/// Bytes of a tape that holds one of either device: a shape must not depend on where a tensor is, nor on
/// whether the C library was built for GPUs, for programs are saved with it.
inline std::int64_t tape_bytes(const char* what, const Tensor& experts, const mpi_router_options& o) {
  mpi_router_experts e{nullptr,
                       nullptr,
                       dtype_of(what, "experts", experts),
                       MPIROUTER_HOST,
                       {extent(experts, 0), extent(experts, 1), extent(experts, 2)},
                       {0, 0, 0}};
  std::int64_t on_host = 0;
  std::int64_t on_gpu = 0;
  must(mpi_router_tape_size(&e, &o, &on_host));
  if (o.steps == 1) {  // on a GPU there is no tape of several
    e.device = MPIROUTER_CUDA;
    must(mpi_router_tape_size(&e, &o, &on_gpu));
  }
  return std::max(on_host, on_gpu);
}

/// A tensor like another, contiguous.
inline Tensor contiguous_like(const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); }
inline Tensor bytes_beside(const Tensor& t, const c10::SymInt& size) {
  return at::empty_symint({size}, t.options().dtype(at::kByte));
}

/// What the operators give, not filled in.
inline std::tuple<Tensor, Tensor> empty_rows(const Tensor& router) {
  return {contiguous_like(router), bytes_beside(router, router.sym_size(0))};
}
inline Tensor empty_tape(const char* what, const Tensor& experts, const mpi_router_options& o) {
  return bytes_beside(experts, tape_bytes(what, experts, o));
}
inline Tensor empty_gradient(const Tensor& t, bool wanted) {
  return wanted ? at::empty_like(t) : at::empty_symint({0}, t.options());
}

inline void expect_tape(const char* what, const Tensor& experts, const mpi_router_options& o,
                        const Tensor& tape) {
  const std::int64_t bytes = tape_bytes(what, experts, o);
  TORCH_CHECK(
      tape.scalar_type() == at::kByte && tape.dim() == 1 && extent(tape, 0) == bytes && tape.is_contiguous(),
      what, ": tape is ", words(tape), ", not the Byte [", bytes, "] that the forward of experts, ",
      words(experts), ", gave with these options");
  expect_device(what, "tape", tape, experts);
}

/// What the backward is given, except gradients.
inline void expect_backward(const char* what, const Tensor& experts, const Tensor& router, const Tensor& tape,
                            const Tensor& grad_rows, const mpi_router_options& o) {
  expect_router(what, experts, router);
  expect_rows(what, "grad_rows", grad_rows, experts);
  static_cast<void>(dtype_of(what, "grad_rows", grad_rows));
  expect_tape(what, experts, o, tape);
}

inline void step(const char* what, const Tensor& experts, const Tensor& router, const mpi_router_options& o,
                 const Tensor& rows, const Tensor& statuses, const mpi_router_buffer* tape) {
  const auto e = experts_of(what, "experts", experts);
  const auto r = matrix_of(what, "router", router);
  const auto out = matrix_of(what, "rows", rows);
  mpi_router_by_products told{};
  told.statuses = statuses.data_ptr<std::uint8_t>();
  if (experts.is_cuda()) {
    gpu::rows(experts, e, r, o, out, told, tape);
  } else {
    must(mpi_router_rows(&e, &r, &o, &out, &told, tape, threads(experts.numel())));
  }
  if (o.degenerate == MPIROUTER_DEGENERATE_ZERO) {  // NaN goes on, as through normalize: zeros would hide it
    rows.masked_fill_(statuses.eq(MPIROUTER_STATUS_NON_FINITE).unsqueeze(1),
                      std::numeric_limits<double>::quiet_NaN());
  }
}

/// grad_router is written, grad_experts written or added to.
inline void pull_back(const char* what, const Tensor& experts, const Tensor& router,
                      const mpi_router_options& o, const Tensor& tape, const Tensor& grad_rows,
                      const Tensor& grad_router, const Tensor* grad_experts, std::int32_t mode) {
  const auto e = experts_of(what, "experts", experts);
  const auto r = matrix_of(what, "router", router);
  const auto saved = buffer_of(tape);
  const auto from = matrix_of(what, "grad_rows", grad_rows);
  const auto to_router = matrix_of(what, "grad_router", grad_router);
  mpi_router_experts to_experts{};
  if (grad_experts != nullptr) {
    to_experts = experts_of(what, "grad_experts", *grad_experts);
  }
  if (experts.is_cuda()) {
    gpu::rows_vjp(experts, e, r, o, saved, from, to_router, grad_experts ? &to_experts : nullptr, mode);
  } else if (grad_experts != nullptr) {
    if (mode == MPIROUTER_ACCUMULATE) {
      grad_router.zero_();  // on the host the mode is of both
    }
    must(mpi_router_rows_vjp(&e, &r, &o, &saved, &from, &to_router, &to_experts, mode,
                             threads(experts.numel())));
  } else {
    must(mpi_router_rows_vjp_detached(&e, &r, &o, &saved, &from, &to_router, mode, threads(experts.numel())));
  }
}

/// The kernels on a device; Options are those of the schema.
template <class... Options>
struct rows_on_device {
  static std::tuple<Tensor, Tensor> rows(const Tensor& experts, const Tensor& router, Options... options) {
    constexpr const char* what = "mpi_router::router_rows";
    expect_router(what, experts, router);
    const auto [out, statuses] = empty_rows(router);
    step(what, experts, router, options_of(options...), out, statuses, nullptr);
    return {out, statuses};
  }
  static std::tuple<Tensor, Tensor, Tensor> rows_with_tape(const Tensor& experts, const Tensor& router,
                                                           Options... options) {
    constexpr const char* what = "mpi_router::router_rows_with_tape";
    expect_router(what, experts, router);
    const auto o = options_of(options...);
    const auto [out, statuses] = empty_rows(router);
    const Tensor tape = empty_tape(what, experts, o);
    const auto saved = buffer_of(tape);
    step(what, experts, router, o, out, statuses, &saved);
    return {out, statuses, tape};
  }
  static std::tuple<Tensor, Tensor> rows_vjp(const Tensor& experts, const Tensor& router, const Tensor& tape,
                                             const Tensor& grad_rows, bool wants_router, bool wants_experts,
                                             Options... options) {
    constexpr const char* what = "mpi_router::router_rows_vjp";
    const auto o = options_of(options...);
    expect_backward(what, experts, router, tape, grad_rows, o);
    const Tensor grad_experts = empty_gradient(experts, wants_experts);
    const Tensor grad_router = empty_gradient(router, true);
    if (wants_router || wants_experts) {
      pull_back(what, experts, router, o, tape, grad_rows, grad_router,
                wants_experts ? &grad_experts : nullptr, MPIROUTER_WRITE);
    }
    return {wants_router ? grad_router : empty_gradient(router, false), grad_experts};
  }
  static Tensor accumulate(const Tensor& experts, const Tensor& router, const Tensor& tape,
                           const Tensor& grad_rows, const Tensor& grad_experts, Options... options) {
    constexpr const char* what = "mpi_router::router_rows_vjp_accumulate";
    const auto o = options_of(options...);
    expect_backward(what, experts, router, tape, grad_rows, o);
    TORCH_CHECK(grad_experts.sizes() == experts.sizes(), what, ": grad_experts is ", words(grad_experts),
                " and experts is ", words(experts));
    expect_device(what, "grad_experts", grad_experts, experts);
    const Tensor grad_router = empty_gradient(router, true);
    pull_back(what, experts, router, o, tape, grad_rows, grad_router, &grad_experts, MPIROUTER_ACCUMULATE);
    if (!grad_experts.is_inference()) {
      torch::autograd::impl::bump_version(grad_experts);  // so that autograd notices where it was saved
    }
    return grad_router;
  }
};

/// Shapes, types and mistakes, without elements.
template <class... Options>
struct rows_by_shape {
  static std::tuple<Tensor, Tensor> rows(const Tensor& experts, const Tensor& router, Options... options) {
    expect_router("mpi_router::router_rows", experts, router);
    static_cast<void>(options_of(options...));
    return empty_rows(router);
  }
  static std::tuple<Tensor, Tensor, Tensor> rows_with_tape(const Tensor& experts, const Tensor& router,
                                                           Options... options) {
    constexpr const char* what = "mpi_router::router_rows_with_tape";
    expect_router(what, experts, router);
    return std::tuple_cat(empty_rows(router), std::tuple(empty_tape(what, experts, options_of(options...))));
  }
  static std::tuple<Tensor, Tensor> rows_vjp(const Tensor& experts, const Tensor& router, const Tensor& tape,
                                             const Tensor& grad_rows, bool wants_router, bool wants_experts,
                                             Options... options) {
    expect_backward("mpi_router::router_rows_vjp", experts, router, tape, grad_rows, options_of(options...));
    return {empty_gradient(router, wants_router), empty_gradient(experts, wants_experts)};
  }
  static Tensor accumulate(const Tensor& experts, const Tensor& router, const Tensor& tape,
                           const Tensor& grad_rows, const Tensor&, Options... options) {
    expect_backward("mpi_router::router_rows_vjp_accumulate", experts, router, tape, grad_rows,
                    options_of(options...));
    return empty_gradient(router, true);
  }
};

/// Kernels for the options of the schema.
template <template <class...> class Kernels>
using for_rows = Kernels<double, text, text, std::int64_t, std::int64_t, text>;
using schema_rows = for_rows<rows_by_shape>;

inline auto rows_operator() {
  static const auto op = operator_named<decltype(schema_rows::rows)>("mpi_router::router_rows");
  return op;
}
inline auto rows_with_tape_operator() {
  static const auto op =
      operator_named<decltype(schema_rows::rows_with_tape)>("mpi_router::router_rows_with_tape");
  return op;
}
inline auto rows_vjp_operator() {
  static const auto op = operator_named<decltype(schema_rows::rows_vjp)>("mpi_router::router_rows_vjp");
  return op;
}
inline auto accumulate_operator() {
  static const auto op =
      operator_named<decltype(schema_rows::accumulate)>("mpi_router::router_rows_vjp_accumulate");
  return op;
}

/// router_rows as autograd sees it: the tape is kept, and made only, where there will be a backward.
template <class... Options>
struct rows_with_gradient {
  struct step : torch::autograd::Function<step> {
    static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                  const Tensor& experts, const Tensor& router,
                                                  Options... options) {
      const at::AutoDispatchBelowADInplaceOrView below;
      const auto [rows, statuses, tape] = rows_with_tape_operator().call(experts, router, options...);
      context->save_for_backward({experts, router, tape});
      context->mark_non_differentiable({statuses});
      keep(*context, options...);
      return {rows, statuses};
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                   const torch::autograd::variable_list& grads) {
      const auto saved = context->get_saved_variables();
      const auto& kept = context->saved_data;
      const text through = kept.at("through").toStringView();
      const bool wants_experts = context->needs_input_grad(0) && through != text("none");
      const bool wants_router = context->needs_input_grad(1);
      const auto [grad_router, grad_experts] = rows_vjp_operator().call(
          saved[0], saved[1], saved[2], grads[0], wants_router, wants_experts, kept.at("radius").toDouble(),
          kept.at("radius_rule").toStringView(), kept.at("degenerate").toStringView(),
          kept.at("total_experts").toInt(), kept.at("steps").toInt(), through);
      torch::autograd::variable_list to(2 + sizeof...(Options));
      to[0] = wants_experts ? grad_experts : Tensor();
      to[1] = wants_router ? grad_router : Tensor();
      return to;
    }
    static void keep(torch::autograd::AutogradContext& context, double radius, text radius_rule,
                     text degenerate, std::int64_t total_experts, std::int64_t steps, text through) {
      context.saved_data["radius"] = radius;
      context.saved_data["radius_rule"] = radius_rule;
      context.saved_data["degenerate"] = degenerate;
      context.saved_data["total_experts"] = total_experts;
      context.saved_data["steps"] = steps;
      context.saved_data["through"] = through;
    }
  };
  static std::tuple<Tensor, Tensor> rows(const Tensor& experts, const Tensor& router, Options... options) {
    expect_no_tangent("mpi_router::router_rows", experts);
    expect_no_tangent("mpi_router::router_rows", router);
    if (at::GradMode::is_enabled() && (experts.requires_grad() || router.requires_grad())) {
      expect_router("mpi_router::router_rows", experts, router);  // under the name that was called
      const auto out = step::apply(experts, router, options...);
      return {out[0], out[1]};
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    return rows_operator().call(experts, router, options...);
  }
};

}  // namespace mpi_router_torch
