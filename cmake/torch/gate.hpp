// The operators of the gate.
#pragma once

#include "rows.hpp"

#include <ATen/ops/zeros_like.h>

namespace mpi_router_torch {

/// Logits [T, N] of a type that a gate takes, and what goes with them.
inline void expect_logits(const char* what, const Tensor& logits, const optional<Tensor>& bias,
                          std::int64_t top_k) {
  expect_axes(what, "logits", logits, 2, "[T, N]");
  TORCH_CHECK_TYPE(logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kDouble, what,
                   ": logits is ", words(logits), ", not Float or Double");
  TORCH_CHECK(top_k >= 1 && top_k <= extent(logits, 1), what, ": top_k is ", top_k, " and logits is ",
              words(logits), ", [T, N]");
  if (bias.has_value()) {
    TORCH_CHECK(bias->dim() == 1 && extent(*bias, 0) == extent(logits, 1) &&
                    bias->scalar_type() == logits.scalar_type(),
                what, ": selection_bias is ", words(*bias), " and logits is ", words(logits));
    expect_device(what, "selection_bias", *bias, logits);
  }
}

inline void expect_mask(const char* what, const Tensor& logits, const optional<Tensor>& mask) {
  if (mask.has_value()) {
    TORCH_CHECK(
        mask->dim() == 1 && mask->sym_size(0) == logits.sym_size(0) && mask->scalar_type() == at::kBool, what,
        ": mask is ", words(*mask), ", not the Bool [T] of logits, ", words(logits));
    expect_device(what, "mask", *mask, logits);
  }
}

/// What a gate told of the same logits, and the gradient that came for it.
inline void expect_told(const char* what, const Tensor& logits, const Tensor& experts, const Tensor& statuses,
                        const Tensor& grad_weights, std::int64_t top_k) {
  const auto matches = [&](const Tensor& t, at::ScalarType type, bool has_k) {
    return t.scalar_type() == type && t.dim() == (has_k ? 2 : 1) && t.sym_size(0) == logits.sym_size(0) &&
           (!has_k || extent(t, 1) == top_k);
  };
  TORCH_CHECK(matches(experts, at::kLong, true) && matches(statuses, at::kByte, false) &&
                  matches(grad_weights, logits.scalar_type(), true),
              what, ": experts is ", words(experts), ", statuses is ", words(statuses), ", grad_weights is ",
              words(grad_weights), "; they do not go with logits, ", words(logits), ", and top_k ", top_k);
  expect_device(what, "experts", experts, logits);
  expect_device(what, "statuses", statuses, logits);
  expect_device(what, "grad_weights", grad_weights, logits);
}

inline std::tuple<Tensor, Tensor, Tensor> empty_choice(const Tensor& logits, std::int64_t top_k,
                                                       at::ScalarType ids) {
  const auto shape = {logits.sym_size(0), c10::SymInt(top_k)};
  return {at::empty_symint(shape, logits.options()), at::empty_symint(shape, logits.options().dtype(ids)),
          bytes_beside(logits, logits.sym_size(0))};
}

/// The struct of a bias, or null.
class bias_of {
 public:
  bias_of(const char* what, const optional<Tensor>& bias) : is_given_(bias.has_value()) {
    if (is_given_) {
      vector_ = vector_of(what, "selection_bias", *bias);
    }
  }
  [[nodiscard]] const mpi_router_vector* get() const { return is_given_ ? &vector_ : nullptr; }

 private:
  bool is_given_;
  mpi_router_vector vector_{};
};

template <class... Options>
struct gate_on_device {
  static std::tuple<Tensor, Tensor, Tensor> gate(const Tensor& logits, std::int64_t top_k,
                                                 const optional<Tensor>& selection_bias,
                                                 const optional<Tensor>& mask, Options... options) {
    constexpr const char* what = "mpi_router::gate";
    expect_logits(what, logits, selection_bias, top_k);
    expect_mask(what, logits, mask);
    const auto o = gating_of(top_k, options...);
    const auto [weights, experts, statuses] = empty_choice(logits, top_k, at::kInt);
    Tensor masked;
    if (mask.has_value()) {
      masked = mask->logical_not().to(at::kByte).mul_(MPIROUTER_STATUS_MASKED).contiguous();
    }
    const bias_of bias(what, selection_bias);
    const auto in = matrix_of(what, "logits", logits);
    const auto out = matrix_of(what, "weights", weights);
    const auto* counted = masked.defined() ? masked.data_ptr<std::uint8_t>() : nullptr;
    auto* ids = experts.data_ptr<std::int32_t>();
    auto* told = statuses.data_ptr<std::uint8_t>();
    if (logits.is_cuda()) {
      gpu::gate(logits, in, o, bias.get(), counted, out, ids, told);
    } else {
      must(mpi_router_gate(&in, &o, bias.get(), counted, &out, ids, told, threads(logits.numel())));
    }
    return {weights, experts.to(at::kLong), statuses};
  }
  static Tensor gate_vjp(const Tensor& logits, const Tensor& experts, const Tensor& statuses,
                         const Tensor& grad_weights, const optional<Tensor>& selection_bias,
                         std::int64_t top_k, Options... options) {
    constexpr const char* what = "mpi_router::gate_vjp";
    expect_logits(what, logits, selection_bias, top_k);
    expect_told(what, logits, experts, statuses, grad_weights, top_k);
    TORCH_CHECK_NOT_IMPLEMENTED(!logits.is_cuda(), what, ": logits is ", words(logits),
                                ", and a gate has its gradient on the host alone");
    const auto o = gating_of(top_k, options...);
    const Tensor grad_logits = contiguous_like(logits);
    const Tensor ids = experts.to(at::kInt).contiguous();
    const Tensor told = statuses.contiguous();
    const bias_of bias(what, selection_bias);
    const auto in = matrix_of(what, "logits", logits);
    const auto from = matrix_of(what, "grad_weights", grad_weights);
    const auto to = matrix_of(what, "grad_logits", grad_logits);
    must(mpi_router_gate_vjp(&in, &o, bias.get(), ids.data_ptr<std::int32_t>(), told.data_ptr<std::uint8_t>(),
                             &from, &to, MPIROUTER_WRITE, threads(logits.numel())));
    return grad_logits;
  }
};

template <class... Options>
struct gate_by_shape {
  static std::tuple<Tensor, Tensor, Tensor> gate(const Tensor& logits, std::int64_t top_k,
                                                 const optional<Tensor>& selection_bias,
                                                 const optional<Tensor>& mask, Options... options) {
    constexpr const char* what = "mpi_router::gate";
    expect_logits(what, logits, selection_bias, top_k);
    expect_mask(what, logits, mask);
    static_cast<void>(gating_of(top_k, options...));
    return empty_choice(logits, top_k, at::kLong);
  }
  static Tensor gate_vjp(const Tensor& logits, const Tensor& experts, const Tensor& statuses,
                         const Tensor& grad_weights, const optional<Tensor>& selection_bias,
                         std::int64_t top_k, Options... options) {
    constexpr const char* what = "mpi_router::gate_vjp";
    expect_logits(what, logits, selection_bias, top_k);
    expect_told(what, logits, experts, statuses, grad_weights, top_k);
    static_cast<void>(gating_of(top_k, options...));
    return contiguous_like(logits);
  }
};

template <template <class...> class Kernels>
using for_gate = Kernels<text, text, optional<bool>, text, double, std::int64_t, std::int64_t>;
using schema_gate = for_gate<gate_by_shape>;

inline auto gate_operator() {
  static const auto op = operator_named<decltype(schema_gate::gate)>("mpi_router::gate");
  return op;
}
inline auto gate_vjp_operator() {
  static const auto op = operator_named<decltype(schema_gate::gate_vjp)>("mpi_router::gate_vjp");
  return op;
}

/// The gate as autograd sees it: weights have a gradient to the logits, the choice has none.
template <class... Options>
struct gate_with_gradient {
  struct choice : torch::autograd::Function<choice> {
    static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                  const Tensor& logits, std::int64_t top_k,
                                                  const optional<Tensor>& selection_bias,
                                                  const optional<Tensor>& mask, Options... options) {
      const at::AutoDispatchBelowADInplaceOrView below;
      const auto [weights, experts, statuses] =
          gate_operator().call(logits, top_k, selection_bias, mask, options...);
      context->save_for_backward({logits, experts, statuses, selection_bias.value_or(Tensor())});
      context->mark_non_differentiable({experts, statuses});
      keep(*context, top_k, options...);
      return {weights, experts, statuses};
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                   const torch::autograd::variable_list& grads) {
      const auto saved = context->get_saved_variables();
      const auto& kept = context->saved_data;
      torch::autograd::variable_list to(4 + sizeof...(Options));
      if (context->needs_input_grad(0)) {
        to[0] = gate_vjp_operator().call(
            saved[0], saved[1], saved[2], grads[0],
            saved[3].defined() ? optional<Tensor>(saved[3]) : optional<Tensor>(), kept.at("top_k").toInt(),
            kept.at("score_function").toStringView(), kept.at("order").toStringView(),
            kept.at("renormalize").toOptional<bool>(), kept.at("group_score").toStringView(),
            kept.at("scaling_factor").toDouble(), kept.at("n_group").toInt(), kept.at("topk_group").toInt());
      }
      return to;
    }
    static void keep(torch::autograd::AutogradContext& context, std::int64_t top_k, text score_function,
                     text order, optional<bool> renormalize, text group_score, double scaling_factor,
                     std::int64_t n_group, std::int64_t topk_group) {
      context.saved_data["top_k"] = top_k;
      context.saved_data["score_function"] = score_function;
      context.saved_data["order"] = order;
      context.saved_data["renormalize"] = renormalize;
      context.saved_data["group_score"] = group_score;
      context.saved_data["scaling_factor"] = scaling_factor;
      context.saved_data["n_group"] = n_group;
      context.saved_data["topk_group"] = topk_group;
    }
  };
  static std::tuple<Tensor, Tensor, Tensor> gate(const Tensor& logits, std::int64_t top_k,
                                                 const optional<Tensor>& selection_bias,
                                                 const optional<Tensor>& mask, Options... options) {
    expect_no_tangent("mpi_router::gate", logits);
    if (at::GradMode::is_enabled() && logits.requires_grad()) {
      TORCH_CHECK_NOT_IMPLEMENTED(!logits.is_cuda(), "mpi_router::gate: logits is ", words(logits),
                                  " and requires a gradient, which a gate has on the host alone");
      const auto out = choice::apply(logits, top_k, selection_bias, mask, options...);
      return {out[0], out[1], out[2]};
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    return gate_operator().call(logits, top_k, selection_bias, mask, options...);
  }
};

}  // namespace mpi_router_torch
