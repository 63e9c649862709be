// The table of kernels of one element type and instruction set.
#pragma once

#include <mpi_router/backend/kernel_table.hpp>

// g++ 12 believes that its own AVX-512 headers use what they leave undefined: this holds for
// all of the kernels, which come in here.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <mpi_router/backend/simd/double_lanes.hpp>
#include <mpi_router/backend/simd/panels.hpp>
#include <mpi_router/backend/simd/rows.hpp>

MPIROUTER_BEGIN

namespace detail::kernels {

/// Stored rows at a time: the vectors that they share are walked once for all of them.
inline constexpr std::size_t rows_at_a_time = 8;
/// The same where a backward has too few registers for eight, and where eight rows, a page or more apart,
/// evict each other from the L1, while four stay with the vectors: with AVX-512, 16-bit rows of up to so many
/// bytes, without, rows of f32 and f64.
inline constexpr std::size_t few_rows_at_a_time = 4;
inline constexpr index_t short_row = 4096;
/// Bytes of a matrix that is likely to be in cache.
inline constexpr index_t small_matrix = index_t{1} << 17;

/// Kernels for weights of a storage format on an xsimd architecture. Never inlined across: each is one
/// symbol.
template <storage_format Format, class Arch>
struct kernels_of {
  using S = core::sums_of<Format>;
  using T = stored_element<Format>;
  using lanes = kernels::lanes<Format, S, Arch>;

  static constexpr bool many_registers = sizeof(typename lanes::batch) == 64;
  /// The same of a panel that is walked by columns: with few registers a few at a time, and it has to fit in
  /// the L1.
  static constexpr index_t small_panel = many_registers ? small_matrix : index_t{1} << 14;

  [[nodiscard]] static stored_rows<const T> rows_of(const core::stored_matrix& a) noexcept {
    return {static_cast<const T*>(a.data), a.rows, a.cols, a.stride};
  }

  template <std::size_t Probes, class G>
  static S sweep_stored(const core::stored_matrix& a, const sweep<S, Probes>& work,
                        const gradient_rows<G>& gradient) noexcept {
    const auto stored = rows_of(a);
    if (!a.by_neurons) {
      return sweep_panels<lanes, rows_at_a_time>(stored, work, gradient);
    }
    if constexpr (!many_registers && (Probes == 2 || sizeof(T) > 2)) {
      return sweep_rows<lanes, few_rows_at_a_time>(stored, work, gradient);
    } else {
      if constexpr (Probes == 1 && sizeof(T) == 2 && many_registers) {
        if (a.cols * index_t{sizeof(T)} <= short_row) {
          return sweep_rows<lanes, few_rows_at_a_time>(stored, work, gradient);
        }
      }
      return sweep_rows<lanes, rows_at_a_time>(stored, work, gradient);
    }
  }

  static S apply(const core::stored_matrix& a, const S* x, S* u) noexcept {
    const sweep<S, 1> work{{x}, {}, u};
    const index_t bytes = a.rows * a.cols * static_cast<index_t>(sizeof(T));
    if (a.by_neurons && bytes <= small_matrix) {
      return sweep_rows<lanes, rows_at_a_time, source::cache>(rows_of(a), work, gradient_rows<S>{});
    }
    if (!a.by_neurons && bytes <= small_panel && a.cols <= panel_width<S>) {
      return sweep_panel_in_cache<lanes, many_registers ? rows_at_a_time : few_rows_at_a_time>(rows_of(a), x,
                                                                                               u);
    }
    return sweep_stored(a, work, gradient_rows<S>{});
  }

  static void apply_two(const core::stored_matrix& a, const S* const* x, S* const* u, S* energy) noexcept {
    sweep_two<lanes, few_rows_at_a_time>(rows_of(a), few<const S*, 2>{{x[0], x[1]}}, few<S*, 2>{{u[0], u[1]}},
                                         energy);
  }

  static void pull_back(const core::stored_matrix& a, const core::pull_back_work<S>& w) noexcept {
    const sweep<S, 2> work{{w.p, w.q}, {w.y, w.w}, w.u};
    const auto sweep_into = [&]<class G>(G* gradient) {
      const stored_rows<G> to{gradient, a.rows, a.cols, w.gradient_stride};
      sweep_stored(a, work, gradient_rows<G>{to, w.accumulate});
    };
    switch (w.element) {
      case core::gradient_element::none: return sweep_into(static_cast<S*>(nullptr));
      case core::gradient_element::sum: return sweep_into(static_cast<S*>(w.gradient));
      case core::gradient_element::weight: return sweep_into(static_cast<T*>(w.gradient));
    }
  }

  static void dots(const core::stored_matrix& a, const S* x, S* y) noexcept {
    project_rows<lanes, 4>(rows_of(a), x, y);
  }
  static void axpys(const core::stored_matrix& a, const S* y, S* u) noexcept {
    lift_rows<lanes, 4>(rows_of(a), y, u);
  }

  static double apply_in_double(const core::stored_matrix& a, const double* x, double* u) noexcept
    requires widens_to_double<Format>
  {
    using wide = kernels::lanes<Format, double, Arch>;
    static_assert(wide::width <= lanes::width);
    const sweep<double, 1> work{{x}, {}, u};
    return sweep_rows<wide, few_rows_at_a_time>(rows_of(a), work, gradient_rows<double>{});
  }
  static void apply_two_in_double(const core::stored_matrix& a, const double* const* x, double* const* u,
                                  double* energy) noexcept
    requires widens_to_double<Format>
  {
    sweep_two<kernels::lanes<Format, double, Arch>, few_rows_at_a_time>(
        rows_of(a), few<const double*, 2>{{x[0], x[1]}}, few<double*, 2>{{u[0], u[1]}}, energy);
  }
  [[nodiscard]] static constexpr auto in_double() {
    if constexpr (widens_to_double<Format>) {
      return &kernels_of::apply_in_double;
    } else {
      return nullptr;
    }
  }
  [[nodiscard]] static constexpr auto two_in_double() {
    if constexpr (widens_to_double<Format>) {
      return &kernels_of::apply_two_in_double;
    } else {
      return nullptr;
    }
  }

  static constexpr core::kernel_table<S> table{.shortest_run = lanes::width,
                                               .apply = apply,
                                               .apply_two = apply_two,
                                               .pull_back = pull_back,
                                               .dots = dots,
                                               .axpys = axpys,
                                               .apply_in_double = in_double(),
                                               .apply_two_in_double = two_in_double()};
};

}  // namespace detail::kernels

MPIROUTER_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
