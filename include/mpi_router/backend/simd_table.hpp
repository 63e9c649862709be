// The table of kernels of one element type and instruction set.
#pragma once

#include <mpi_router/backend/kernel_table.hpp>
#include <mpi_router/backend/simd_block.hpp>
#include <mpi_router/backend/simd_panels.hpp>
#include <mpi_router/backend/simd_rows.hpp>

// g++ 12 believes that its own AVX-512 headers use what they leave undefined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

MPIROUTER_BEGIN

namespace detail::kernels {

/// Stored rows of at most this many bytes are taken eight at a time, longer ones four: a group should fit the
/// first cache, and short rows want more of them per horizontal sum.
inline constexpr index_t short_row_bytes = 4096;

template <storage_format Format>
struct stored_as;
template <>
struct stored_as<storage_format::f64> {
  using type = double;
};
template <>
struct stored_as<storage_format::f32> {
  using type = float;
};
template <>
struct stored_as<storage_format::bf16> {
  using type = bf16;
};
template <>
struct stored_as<storage_format::f16> {
  using type = f16;
};

/// Kernels for weights of a storage format on an xsimd architecture. Never inlined across: each is one
/// symbol.
template <storage_format Format, class Arch>
struct kernels_of {
  using T = typename stored_as<Format>::type;
  using S = accumulator_t<T>;
  using lanes = kernels::lanes<Format, S, Arch>;

  [[nodiscard]] static stored_rows<const T> rows_of(const core::stored_matrix& a) noexcept {
    return {static_cast<const T*>(a.data), a.rows, a.cols, a.stride};
  }

  template <update Update, std::size_t Probes, class G>
  static S sweep_stored(const core::stored_matrix& a, const sweep<S, Probes>& work,
                        const stored_rows<G>& gradient) noexcept {
    const auto stored = rows_of(a);
    if (!a.by_neurons) return sweep_panels<lanes, 4, Update>(stored, work, gradient);
    if constexpr (Probes == 1) {
      if (a.cols * static_cast<index_t>(sizeof(T)) <= short_row_bytes) {
        return sweep_rows<lanes, 8, Update>(stored, work, gradient);
      }
    }
    return sweep_rows<lanes, 4, Update>(stored, work, gradient);
  }

  static S apply(const core::stored_matrix& a, const S* x, S* u) noexcept {
    return sweep_stored<update::none>(a, sweep<S, 1>{{x}, {}, u}, stored_rows<S>{});
  }

  static void pull_back(const core::stored_matrix& a, const core::pull_back_work<S>& w) noexcept {
    const sweep<S, 2> work{{w.p, w.q}, {w.y, w.w}, w.u};
    const auto into = [&](auto* gradient) {
      const stored_rows<std::remove_pointer_t<decltype(gradient)>> to{gradient, a.rows, a.cols,
                                                                      w.gradient_stride};
      if (w.accumulate) {
        sweep_stored<update::accumulate>(a, work, to);
      } else {
        sweep_stored<update::write>(a, work, to);
      }
    };
    if (w.element == core::gradient_element::none) {
      sweep_stored<update::none>(a, work, stored_rows<S>{});
    } else if (std::is_same_v<T, S> || w.element == core::gradient_element::sum) {
      into(static_cast<S*>(w.gradient));
    } else {
      into(static_cast<T*>(w.gradient));
    }
  }

  static void apply_block(const core::stored_matrix& a, const core::block_work<S>& w) noexcept {
    const vector_block<const S> x{w.x, w.count, w.x_stride};
    const vector_block<S> u{w.u, w.count, w.u_stride};
    if (a.by_neurons) {
      sweep_rows_block<lanes, 4>(rows_of(a), x, u, w.energy, w.energy_stride);
    } else {
      sweep_panels_block<lanes, 4>(rows_of(a), x, u, w.energy, w.energy_stride);
    }
  }

  static void dots(const core::stored_matrix& a, const S* x, S* y) noexcept {
    project_rows<lanes, 4>(rows_of(a), x, y);
  }
  static void axpys(const core::stored_matrix& a, const S* y, S* u) noexcept {
    lift_rows<lanes, 4>(rows_of(a), y, u);
  }

  static constexpr core::kernel_table<S> table{.shortest_run = lanes::width,
                                               .apply = apply,
                                               .pull_back = pull_back,
                                               .apply_block = apply_block,
                                               .dots = dots,
                                               .axpys = axpys};
};

}  // namespace detail::kernels

MPIROUTER_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
