// What a score function is, for the host and for the GPU. A new one is a name, a struct and a line in
// with_score, all of them here.
//
//   is_exponential  the score is eˣ, of which only ratios mean something: logits are taken less the largest
//   is_bounded      whether the score of +∞ is finite
//   has_root        the score is factor · √radicand, with a radicand that loops may take the root of apart
//   factor          the score, or its factor
//   log_value       the logarithm of the score, right however far out the logit is
//   radicand        where there is a root
//   log_derivative  the derivative of the logarithm
//
// A score is monotone and not negative, and the derivative of its logarithm is finite where the logit is: so
// weights, scores over a sum of scores, and their gradients never divide by what may vanish. `Math`: exp(x ≤
// 0), log1p(0 ≤ e ≤ 1), log, abs, by_sign(x, negative, otherwise) of host or device, and `deep`, an |x| from
// which log(1 + e⁻ˣ) rounds to e⁻ˣ.
#pragma once

#include <mpi_router/core/error.hpp>

#include <string_view>

MPIROUTER_BEGIN_TYPES

/// How a logit becomes a score.
enum class score_function : unsigned char {
  softmax,      ///< over all experts, or over the selected ones (select_then_score)
  sigmoid,      ///< 1 / (1 + e^−x)
  sqrtsoftplus  ///< √log(1 + eˣ)
};

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(score_function s) noexcept {
  switch (s) {
    case score_function::softmax: return "softmax";
    case score_function::sigmoid: return "sigmoid";
    case score_function::sqrtsoftplus: return "sqrtsoftplus";
  }
  return "unknown";
}
namespace core {

/// False for what was cast from another integer.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool exists(score_function s) noexcept {
  return s <= score_function::sqrtsoftplus;
}

/// eˣ: over their sum, the softmax.
struct exponential_score {
  static constexpr bool is_exponential = true;
  static constexpr bool is_bounded = false;
  static constexpr bool has_root = false;
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S factor(S x) noexcept {
    return Math::exp(x);
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_value(S x) noexcept {
    return x;
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_derivative(S) noexcept {
    return S{1};
  }
};

/// 1 / (1 + e⁻ˣ).
struct sigmoid_score {
  static constexpr bool is_exponential = false;
  static constexpr bool is_bounded = true;
  static constexpr bool has_root = false;
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S factor(S x) noexcept {
    const S e = Math::exp(-Math::abs(x));
    return Math::by_sign(x, e, S{1}) / (S{1} + e);
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_value(S x) noexcept {
    return Math::by_sign(x, x, S{0}) - Math::log1p(Math::exp(-Math::abs(x)));
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_derivative(S x) noexcept {
    return factor<Math>(-x);
  }
};

/// √log(1 + eˣ), which is √eˣ from −`deep` down: the root of eˣ is above the smallest number where eˣ is not.
struct sqrtsoftplus_score {
  static constexpr bool is_exponential = false;
  static constexpr bool is_bounded = false;
  static constexpr bool has_root = true;
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S factor(S x) noexcept {
    return Math::by_sign(x + Math::deep(x), root_of_exp<Math>(x), S{1});
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S radicand(S x) noexcept {
    const S root = root_of_exp<Math>(x);
    return Math::by_sign(x + Math::deep(x), S{1}, Math::by_sign(x, S{0}, x) + Math::log1p(root * root));
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_value(S x) noexcept {
    return (x < -Math::deep(x) ? x : Math::log(softplus<Math>(x))) / S{2};
  }
  /// ½ sigmoid(x) / softplus(x), which tends to ½ where both vanish.
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_derivative(S x) noexcept {
    return x < -Math::deep(x) ? S{1} / S{2} : sigmoid_score::factor<Math>(x) / softplus<Math>(x) / S{2};
  }

 private:
  /// √e^−|x|.
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S root_of_exp(S x) noexcept {
    return Math::exp(-Math::abs(x) / S{2});
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S softplus(S x) noexcept {
    return Math::by_sign(x, S{0}, x) + Math::log1p(Math::exp(-Math::abs(x)));
  }
};

#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // the body is the caller's, host or device
#endif
/// body(score) for the score function of that name.
template <class Body>
MPIROUTER_HOST_DEVICE constexpr decltype(auto) with_score(score_function f, Body body) {
  switch (f) {
    case score_function::softmax: return body(exponential_score{});
    case score_function::sigmoid: return body(sigmoid_score{});
    case score_function::sqrtsoftplus: return body(sqrtsoftplus_score{});
  }
#if defined(__CUDA_ARCH__)
  __builtin_unreachable();
#else
  unknown_value("score_function", f);
#endif
}

}  // namespace core

MPIROUTER_END_TYPES
