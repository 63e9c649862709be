// Choices that host and GPU share: stated once, with one default each.
#pragma once

#include <mpi_router/core/error.hpp>

#include <cmath>

MPIROUTER_BEGIN_TYPES

/// Whether a gradient replaces what its buffer held or is added to it.
enum class gradient_mode : unsigned char { write, accumulate };

namespace core {

/// Whether what is there already counts. Throws usage_error where the mode is neither of the two.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool accumulates(gradient_mode mode) {
  switch (mode) {
    case gradient_mode::write: return false;
    case gradient_mode::accumulate: return true;
  }
  unknown_value("gradient_mode", mode);
}

}  // namespace core

/// The radius C of the sphere that the rows r′ lie on: a plain number is C itself, scale_free gives C′/√N
/// (Eq. 7). By default C′ = 4, about the paper's.
class router_radius {
 public:
  constexpr router_radius() = default;
  MPIROUTER_ALWAYS_INLINE constexpr router_radius(double c) noexcept : value_(c), is_scale_free_(false) {}

  /// C = C′/√N, so that the logits keep their size when the number of experts changes. N counts the experts
  /// of all ranks: say total_experts where a call is given only some of them. Where it is 0, N is what the
  /// view knows (expert_batch_view::total_experts).
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr router_radius scale_free(double c_prime,
                                                                                  index_t total_experts = 0) {
    core::expect(total_experts >= 0, "router_radius: ", total_experts, " experts in all");
    router_radius radius(c_prime);
    radius.is_scale_free_ = true;
    radius.total_experts_ = total_experts;
    return radius;
  }
  /// C itself.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr router_radius fixed(double c) noexcept {
    return {c};
  }

  /// C, for a call whose view knows of `num_experts` experts. Throws usage_error where total_experts is less.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE double of(index_t num_experts) const {
    if (!is_scale_free_) {
      return value_;
    }
    core::expect(total_experts_ == 0 || total_experts_ >= num_experts, "router_radius: ", total_experts_,
                 " experts in all, where the call has ", num_experts);
    return value_ / std::sqrt(static_cast<double>(total_experts_ > 0 ? total_experts_ : num_experts));
  }

 private:
  double value_ = 4;
  bool is_scale_free_ = true;
  index_t total_experts_ = 0;
};

/// Through which steps the gradient reaches the gate matrices. The gradient to the router rows always goes
/// through all steps; where A is left out, M is a constant (detached) there.
enum class differentiate : unsigned char {
  all,   ///< A of every step: the exact gradient, as the authors' code has it
  last,  ///< A of the last step only
  none   ///< M detached everywhere: no gradient to A
};

/// How the batched step is taken.
struct router_options {
  router_radius radius{};
  index_t steps = 1;                                 ///< power steps from the rows given, each retracted
  degenerate_row degenerate = degenerate_row::keep;  ///< what a row without a step becomes
  differentiate through = differentiate::all;        ///< used by the backward
};

MPIROUTER_END_TYPES
