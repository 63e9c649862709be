// What is asked of the gate matrix of one expert, whether it lies in memory or stays packed in the file.
#pragma once

#include "analyse.hpp"
#include "weights.hpp"

#include <mpi_router/io/moe/packed_gates.hpp>
#include <mpi_router/verify/any_operator.hpp>
#include <mpi_router/verify/expert_direction.hpp>
#include <mpi_router/verify/gram_in_double.hpp>
#if defined(VERIFY_CHECKPOINT_DISPATCH)
#include <mpi_router/backend/packed_dispatch.hpp>
#elif defined(VERIFY_CHECKPOINT_SIMD)
#include <mpi_router/backend/packed.hpp>
#endif

namespace verify {

using mpi_router::course_options;
using mpi_router::direction_source;
using mpi_router::expert_direction;
using mpi_router::packed_gate;

/// The direction of a matrix in memory.
template <class T>
[[nodiscard]] expert_direction direction_of(const mpi_router::matrix_view<const T>& a,
                                            mpi_router::vector_view<const double> start,
                                            direction_source source, const course_options& course) {
  return mpi_router::find_expert_direction(a, start, source, kernels{}, course);
}

/// use(op, fast) with M in double and as it is searched.
[[nodiscard]] auto with_operators(const packed_gate& a, const auto& use) {
#if defined(VERIFY_CHECKPOINT_DISPATCH) || defined(VERIFY_CHECKPOINT_SIMD)
  return std::visit(
      [&](const auto& v) {
        auto fast = gram(v, kernels{});
        return use(mpi_router::gram_in_double(a, fast, kernels{}), fast);
      },
      *a.view());
#else
  auto op = mpi_router::gram_in_double(a, kernels{});
  return use(op, op);
#endif
}

/// Of one that stays packed: searched by kernels that decode in registers, proven by the exact products of
/// codes and scales.
[[nodiscard]] inline expert_direction direction_of(const packed_gate& a,
                                                   mpi_router::vector_view<const double> start,
                                                   direction_source, const course_options& course) {
  return with_operators(
      a, [&](auto&& op, auto&& fast) { return mpi_router::find_expert_direction(op, fast, start, course); });
}

/// M in double.
[[nodiscard]] auto operator_in_double(const auto& a) { return mpi_router::gram_in_double(a, kernels{}); }
[[nodiscard]] inline auto operator_in_double(const packed_gate& a) {
  return with_operators(a, [](auto&& op, auto&&) {
    using type = std::remove_cvref_t<decltype(op)>;
    return mpi_router::any_operator<double>(std::make_shared<type>(std::forward<decltype(op)>(op)));
  });
}

/// What is measured of one expert where it stays packed: one large matrix that is not decomposed, in a format
/// that there are kernels for. Smaller ones are decoded to double, which costs no more and proves more.
[[nodiscard]] inline std::optional<packed_gate> kept_packed(const moe_layer& layer, index_t expert,
                                                            spectrum_choice spectrum) {
  const auto* gate = only_block(layer, expert);
  if (gate == nullptr || layer.latent != nullptr || !is_large(gate->ffn_dim, gate->hidden_dim) ||
      decomposes(spectrum, gate->ffn_dim, gate->hidden_dim) ||
      std::min(gate->ffn_dim, gate->hidden_dim) <= mpi_router::certify_options{}.rigorous_up_to) {
    return std::nullopt;
  }
  auto packed = mpi_router::packed_gate_of(*gate);
  return packed && packed->view() ? packed : std::nullopt;
}

}  // namespace verify
