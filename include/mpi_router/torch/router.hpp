// mpi_router for libtorch: the rows of a router, their gradients and the gate over at::Tensor, in whatever
// layout and type tensors have, differentiable. Link mpi_router::torch, which is compiled once for all types;
// a program that includes this compiles as C++17 or newer, whatever its libtorch asks for, and takes nothing
// else of the library. docs/guide-torch.md has a whole program.
//
// The functions call the operators mpi_router::router_rows, … of the dispatcher, those that Python and
// TorchScript see as torch.ops.mpi_router. They run on at::parallel_for, or on the current stream of the
// tensors' GPU where the C interface was built with CUDA, and throw c10::Error where a TORCH_CHECK would,
// naming shapes and types. Results are the same, bit for bit, for any number of threads.
#pragma once

#include <mpi_router/c/mpi_router.h>

#include <ATen/core/Tensor.h>

#include <tuple>

namespace mpi_router {

/// What the step is taken with by default: rows of length 4/√N, and a row that has no step becomes zero, as
/// in torch.nn.functional.normalize. (In C and C++ it keeps the old row by default.)
inline mpi_router_options torch_options() {
  mpi_router_options options = mpi_router_default_options();
  options.degenerate = MPIROUTER_DEGENERATE_ZERO;
  return options;
}

/// (rows [N, D], statuses [N]): row i is C r_i M_i/|r_i M_i| with M_i = A_iᵀA_i, options.steps times (Eq. 4,
/// 5); the router stays as it is. Differentiable once, with respect to both; what requires no gradient costs
/// none.
///
/// experts: [N, F, D], any view, D the length of a token (of weights stored [N, D, F] the transpose); router:
/// [N, D]. Double, Float, BFloat16 or Half, a router of Double only with experts of Double. rows: contiguous,
/// of the type of the router. statuses: uint8, MPIROUTER_STATUS_…. With MPIROUTER_DEGENERATE_ZERO a row
/// that is zero, or whose image is, becomes zero and gets no gradient, and one that is not finite becomes
/// NaN. One read of the experts a step; the gradient is saved in N (D + 2) numbers a step.
std::tuple<at::Tensor, at::Tensor> router_rows(const at::Tensor& experts, const at::Tensor& router,
                                               const mpi_router_options& options = torch_options());

/// (rows, statuses, tape): the same for those who call the backward themselves; not differentiable. tape:
/// bytes that mean something to the functions below alone.
std::tuple<at::Tensor, at::Tensor, at::Tensor> router_rows_with_tape(
    const at::Tensor& experts, const at::Tensor& router, const mpi_router_options& options = torch_options());

/// (grad_router, grad_experts) from grad_rows [N, D], with experts, router, tape and options as the forward
/// had them; each in the type and, where that is dense, the layout of what it is the gradient of. One that is
/// not wanted is an empty tensor. One read of the experts and one write of their gradient a step.
std::tuple<at::Tensor, at::Tensor> router_rows_vjp(const at::Tensor& experts, const at::Tensor& router,
                                                   const at::Tensor& tape, const at::Tensor& grad_rows,
                                                   const mpi_router_options& options = torch_options(),
                                                   bool wants_router = true, bool wants_experts = true);

/// grad_router; the gradient to the experts is added to `grad_experts` [N, F, D], in any layout, of their
/// type or Float (Megatron's main_grad).
at::Tensor router_rows_vjp_accumulate(const at::Tensor& experts, const at::Tensor& router,
                                      const at::Tensor& tape, const at::Tensor& grad_rows,
                                      const at::Tensor& grad_experts,
                                      const mpi_router_options& options = torch_options());

/// (weights [T, K], experts [T, K], statuses [T]): K experts of each token and their weights (Eq. 6).
/// Differentiable once, on the host, with respect to the logits; the choice of experts is constant.
///
/// logits: [T, N], Float or Double; selection_bias: [N] of their type, or an undefined tensor: added to what
/// experts are selected by; mask: [T] of Bool, true for tokens that count, or undefined. weights: of the type
/// of the logits; experts: int64, best first, -1 where there is none; statuses: uint8.
std::tuple<at::Tensor, at::Tensor, at::Tensor> gate(const at::Tensor& logits,
                                                    const mpi_router_gating_options& options,
                                                    const at::Tensor& selection_bias = {},
                                                    const at::Tensor& mask = {});

/// grad_logits [T, N] from grad_weights [T, K], with experts and statuses as the gate told them.
at::Tensor gate_vjp(const at::Tensor& logits, const at::Tensor& experts, const at::Tensor& statuses,
                    const at::Tensor& grad_weights, const mpi_router_gating_options& options,
                    const at::Tensor& selection_bias = {});

}  // namespace mpi_router
