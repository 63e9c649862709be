// Loops over the elements of vectors, which the plain operators share. Sums are taken in an order that
// depends on the size alone.
#pragma once

#include <mpi_router/core/concepts.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

MPIROUTER_BEGIN

namespace detail {

/// 2^exponent as a product of two finite factors, so that it may lie outside the range of S.
template <Accumulator S>
struct power_of_two {
  S first;
  S second;
  explicit power_of_two(int exponent)
      : first(std::ldexp(S{1}, exponent / 2)), second(std::ldexp(S{1}, exponent - exponent / 2)) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S operator()(S x) const noexcept { return x * first * second; }
};

struct as_stored {
  template <Accumulator S>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S operator()(S x) const noexcept {
    return x;
  }
};

template <Accumulator S>
void fill_zero(const vector_view<S>& u) noexcept {
  for (index_t i = 0; i < u.size(); ++i) {
    u[i] = S{0};
  }
}

/// out = in, rounded where out is stored in fewer bits than S.
template <Accumulator S, class T, class O>
void copy_into(const vector_view<T>& in, const vector_view<O>& out) noexcept {
  for (index_t i = 0; i < in.size(); ++i) {
    out[i] = narrow<O>(widen<S>(in[i]));
  }
}

/// Σ over [0, n) in a power of two of lanes, which are added pairwise: add(sum, i) adds term i. Fixed lanes:
/// the compiler may vectorise without being allowed to reorder, and the rounding error grows with n / Lanes.
template <Accumulator S, std::size_t Lanes = 8, class Add>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S sum_in_lanes(index_t n, const Add& add) noexcept {
  std::array<S, Lanes> lane{};
  const index_t whole = n - n % index_t{Lanes};
  for (index_t i = 0; i < whole; i += index_t{Lanes}) {
    for (std::size_t k = 0; k < Lanes; ++k) {
      add(lane[k], i + static_cast<index_t>(k));
    }
  }
  for (index_t i = whole; i < n; ++i) {
    add(lane[static_cast<std::size_t>(i - whole)], i);
  }
  for (std::size_t half = Lanes / 2; half > 0; half /= 2) {
    for (std::size_t k = 0; k < half; ++k) {
      lane[k] += lane[k + half];
    }
  }
  return lane[0];
}

/// Σ term(i) over [0, n).
template <Accumulator S, class Term>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S sum_terms(index_t n, const Term& term) noexcept {
  return sum_in_lanes<S>(n, [&](S& sum, index_t i) { sum += term(i); });
}

/// f(stride of v, stride of w), which the compiler knows where both are contiguous.
template <class V, class W, class F>
MPIROUTER_ALWAYS_INLINE auto with_strides(const V& v, const W& w, const F& f) noexcept {
  constexpr std::integral_constant<index_t, 1> one;
  return v.is_contiguous() && w.is_contiguous() ? f(one, one) : f(v.stride(), w.stride());
}

/// ⟨load(a), load_x(x)⟩.
template <Accumulator S, std::size_t Lanes = 8, class T, class Load, class LoadX>
[[nodiscard]] S dot(const vector_view<const T>& a, const vector_view<const S>& x, const Load& load,
                    const LoadX& load_x) noexcept {
  return with_strides(a, x, [&](auto stride_a, auto stride_x) {
    return sum_in_lanes<S, Lanes>(a.size(), [&](S& sum, index_t i) {
      sum += load(widen<S>(a.data()[i * stride_a])) * load_x(x.data()[i * stride_x]);
    });
  });
}

/// u += alpha · load(a).
template <Accumulator S, class T, class Load>
void axpy(S alpha, const vector_view<const T>& a, const vector_view<S>& u, const Load& load) noexcept {
  with_strides(a, u, [&](auto stride_a, auto stride_u) {
    for (index_t i = 0; i < a.size(); ++i) {
      u.data()[i * stride_u] += alpha * load(widen<S>(a.data()[i * stride_a]));
    }
  });
}

/// The largest finite magnitude of the elements that it has seen.
template <Accumulator S>
class largest_magnitude {
 public:
  MPIROUTER_ALWAYS_INLINE void see(S x) noexcept {
    const S magnitude = std::abs(x);
    if (is_finite(magnitude)) {
      largest_ = std::max(largest_, magnitude);
    }
  }
  template <class T>
  void see(const vector_view<const T>& v) noexcept {
    for (index_t i = 0; i < v.size(); ++i) {
      see(widen<S>(v[i]));
    }
  }
  /// Whether there was none but zeros.
  [[nodiscard]] bool is_zero() const noexcept { return largest_ == S{0}; }
  /// In the sense of std::ilogb; 0 where there is none but zeros.
  [[nodiscard]] int exponent() const noexcept { return largest_ > S{0} ? std::ilogb(largest_) : 0; }

 private:
  S largest_{0};
};

/// Below this the squares that went into a sum may have lost bits to underflow.
template <Accumulator S>
inline constexpr S smallest_safe =
    std::numeric_limits<S>::min() / (std::numeric_limits<S>::epsilon() * std::numeric_limits<S>::epsilon());

/// apply_scaled of an A whose elements are divided by 2^a_exponent: gram(e) multiplies x / 2^e, writes the
/// image and returns the energy. Where x lies so nearly across all that A sees that these are lost although
/// x is not, it is called once more, with a larger x.
template <Accumulator S, class Gram>
[[nodiscard]] scaled_energy<S> scaled_gram(int a_exponent, const vector_view<const S>& x, const Gram& gram) {
  using limits = std::numeric_limits<S>;
  // So much that squares of what was below smallest_safe are far below the largest number.
  constexpr int larger = (limits::max_exponent - limits::min_exponent - 2 * limits::digits - 5) / 2;
  largest_magnitude<S> largest_x;
  largest_x.see(x);
  int x_exponent = largest_x.exponent();
  S energy = gram(x_exponent);
  if (energy <= smallest_safe<S> && !largest_x.is_zero()) {
    x_exponent -= larger;
    energy = gram(x_exponent);
  }
  return {energy, 2 * a_exponent + x_exponent, 2 * (a_exponent + x_exponent)};
}

}  // namespace detail

MPIROUTER_END
