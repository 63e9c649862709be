// Numbers and norms with their scale taken out, so that the method works wherever its input can be stored.
#pragma once

#include <mpi_router/core/concepts.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

MPIROUTER_BEGIN
namespace detail {

/// value · 2^exponent.
template <Accumulator S>
struct scaled {
  S value{0};
  int exponent = 0;

  [[nodiscard]] S unscaled() const noexcept { return std::ldexp(value, exponent); }
  friend scaled operator*(scaled a, scaled b) noexcept {
    return {a.value * b.value, a.exponent + b.exponent};
  }
  friend scaled operator/(scaled a, scaled b) noexcept {
    return {a.value / b.value, a.exponent - b.exponent};
  }
};

/// Multiplies by a scaled number; its power of two is applied in two halves, so that it may itself be out of
/// range.
template <Accumulator S>
class scaler {
 public:
  explicit scaler(scaled<S> factor) noexcept
      : first_(std::ldexp(factor.value, factor.exponent / 2)),
        second_(std::ldexp(S{1}, factor.exponent - factor.exponent / 2)) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S operator()(S x) const noexcept { return x * first_ * second_; }

 private:
  S first_;
  S second_;
};

/// The bits of the largest magnitude: NaN and infinity come out above every number, also under -ffast-math.
template <Accumulator S>
[[nodiscard]] auto largest_magnitude_bits(const vector_view<const S>& x) noexcept {
  using bits = std::conditional_t<std::same_as<S, float>, std::uint32_t, std::uint64_t>;
  constexpr bits magnitude = static_cast<bits>(~bits{0}) >> 1;
  bits largest{0};
  if (x.is_contiguous()) {
    const S* data = x.data();
    for (index_t i = 0; i < x.size(); ++i) {
      largest = std::max(largest, std::bit_cast<bits>(data[i]) & magnitude);
    }
  } else {
    for (index_t i = 0; i < x.size(); ++i) {
      largest = std::max(largest, std::bit_cast<bits>(x[i]) & magnitude);
    }
  }
  return largest;
}

/// Σ f(i) over [0, n) in eight fixed lanes.
template <Accumulator S, class Term>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S sum_terms(index_t n, Term term) noexcept {
  std::array<S, 8> lane{};
  const index_t whole = n - n % 8;
  for (index_t i = 0; i < whole; i += 8) {
    for (index_t k = 0; k < 8; ++k) {
      lane[static_cast<std::size_t>(k)] += term(i + k);
    }
  }
  for (index_t i = whole; i < n; ++i) {
    lane[static_cast<std::size_t>(i - whole)] += term(i);
  }
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

enum class magnitude : unsigned char { zero, finite, non_finite };

/// ‖x‖ with its scale taken out: value in [1, 2√n) for a finite x that is not zero.
template <Accumulator S>
struct scaled_norm {
  scaled<S> norm;
  magnitude kind = magnitude::zero;
};

template <Accumulator S>
[[nodiscard]] scaled_norm<S> norm(const vector_view<const S>& x) noexcept {
  const auto largest = std::bit_cast<S>(largest_magnitude_bits(x));
  if (!is_finite(largest)) {
    return {{largest, 0}, magnitude::non_finite};
  }
  if (std::bit_cast<decltype(largest_magnitude_bits(x))>(largest) == 0) {
    return {};
  }
  const int exponent = std::ilogb(largest);
  const scaler<S> scale({S{1}, -exponent});
  const S squares = x.is_contiguous() ? sum_terms<S>(x.size(),
                                                     [&, data = x.data()](index_t i) {
                                                       const S value = scale(data[i]);
                                                       return value * value;
                                                     })
                                      : sum_terms<S>(x.size(), [&](index_t i) {
                                          const S value = scale(x[i]);
                                          return value * value;
                                        });
  return {{std::sqrt(squares), exponent}, magnitude::finite};
}

/// out = factor · x; out may be x itself.
template <Accumulator S>
void scale_into(const vector_view<const S>& x, const vector_view<S>& out, scaled<S> factor) noexcept {
  const scaler<S> scale(factor);
  for (index_t i = 0; i < x.size(); ++i) {
    out[i] = scale(x[i]);
  }
}

}  // namespace detail
MPIROUTER_END
