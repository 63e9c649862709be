// The fast backend: one read of A, over xsimd, for the instruction set that this file is compiled for.
#pragma once

#include <mpi_router/backend/reference.hpp>
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

template <class Lanes, class T>
[[nodiscard]] bool is_stored_by_rows(const matrix_view<T>& a) noexcept {
  return a.col_stride() == 1 && a.cols() >= Lanes::width;
}
template <class T>
[[nodiscard]] stored_rows<T> as_stored(const matrix_view<T>& a) noexcept {
  return {a.data(), a.rows(), a.cols(), a.row_stride()};
}

/// Stored rows at a time where columns are neighbours.
inline constexpr std::size_t panel_group = 4;

/// Whether kernels exist for storage T with sums in S: f64 in double, the others in float.
template <class T, class S>
inline constexpr bool has_kernels = std::is_same_v<S, accumulator_t<T>>;

/// Whether a gradient of element type G can be updated next to an A of element type T.
template <class T, class S, class G>
inline constexpr bool has_update =
    std::is_same_v<G, S> || scalar_traits<G>::format == scalar_traits<T>::format;

template <class... Views>
[[nodiscard]] bool contiguous(const Views&... v) noexcept {
  return (v.is_contiguous() && ...);
}

}  // namespace detail::kernels

/// Kernels that read A from memory once (DESIGN: rM = Σ_f ⟨a_f, r⟩ a_f), in registers of xsimd architecture
/// Arch.
///
/// Hidden-contiguous matrices ([N, F, D] and its fused and strided variants: unit column stride) go by stored
/// rows, ffn-contiguous ones ([N, D, F]: unit row stride) by panels of columns. bf16 and f16 are converted in
/// registers. Any extents and alignment; nothing outside the matrix is read. What has no kernel (a stored row
/// shorter than a cache line, no unit stride, vectors with gaps, sums in double of narrower weights) goes to
/// `reference`: the same function, slower.
///
/// One thread, no allocation, at most 16 KiB of stack. O(F·D). Deterministic: the order of the sums depends
/// on shape, layout and architecture alone. Products are not guarded against overflow, as in `reference`.
template <class Arch = xsimd::default_arch>
struct basic_simd {
  /// u = xM with M = AᵀA; returns the energy ‖Ax‖². A is [F, D], x and u have D elements.
  template <Scalar T, Accumulator S>
  S apply(matrix_view<const T> a, vector_view<const S> x, vector_view<S> u) const {
    if constexpr (detail::kernels::has_kernels<T, S>) {
      const detail::kernels::sweep<S, 1> work{{x.data()}, {}, u.data()};
      if (detail::kernels::contiguous(x, u)) {
        if (detail::kernels::is_stored_by_rows<lanes_of<T, S>>(a))
          return by_rows<none>(a, work, no_gradient<S>{});
        if (detail::kernels::is_stored_by_rows<lanes_of<T, S>>(a.transposed())) {
          return by_panels<none>(a.transposed(), work, no_gradient<S>{});
        }
      }
    }
    return reference{}.apply(a, x, u);
  }

  /// U = XM for a block of vectors in one read of A: X and U are [k, D], energies has k elements.
  template <Scalar T, Accumulator S>
  void apply_block(matrix_view<const T> a, matrix_view<const S> x, matrix_view<S> u,
                   vector_view<S> energies) const {
    detail::expect(
        x.rows() == u.rows() && x.rows() == energies.size() && x.cols() == a.cols() && u.cols() == a.cols(),
        "apply_block: A is [F = ", a.rows(), ", D = ", a.cols(), "], but X is [", x.rows(), ", ", x.cols(),
        "], U [", u.rows(), ", ", u.cols(), "] and there are ", energies.size(), " energies");
    detail::expect(!detail::overlap(x, u), "apply_block: X and U overlap");
    if constexpr (detail::kernels::has_kernels<T, S>) {
      if (x.col_stride() == 1 && u.col_stride() == 1) {
        const detail::kernels::vector_block<const S> from{x.data(), x.rows(), x.row_stride()};
        const detail::kernels::vector_block<S> to{u.data(), u.rows(), u.row_stride()};
        if (detail::kernels::is_stored_by_rows<lanes_of<T, S>>(a)) {
          detail::kernels::sweep_rows_block<lanes_of<T, S>, 4>(detail::kernels::as_stored(a), from, to,
                                                               energies.data(), energies.stride());
          return;
        }
        if (detail::kernels::is_stored_by_rows<lanes_of<T, S>>(a.transposed())) {
          detail::kernels::sweep_panels_block<lanes_of<T, S>, 4>(
              detail::kernels::as_stored(a.transposed()), from, to, energies.data(), energies.stride());
          return;
        }
      }
    }
    for (index_t j = 0; j < x.rows(); ++j) {
      energies[j] = apply<T, S>(a, x.row(j), u.row(j));
    }
  }

  /// The projection y = A x. x has D elements, y has F.
  template <Scalar T, Accumulator S>
  void project(matrix_view<const T> a, vector_view<const S> x, vector_view<S> y) const {
    multiply(a, x, y);
  }

  /// u = y A. y has F elements, u has D.
  template <Scalar T, Accumulator S>
  void lift(matrix_view<const T> a, vector_view<const S> y, vector_view<S> u) const {
    multiply(a.transposed(), y, u);
  }

  /// The one read that a backward needs: y = A p, w = A q, u = wA. p, q and u have D elements, y and w have
  /// F.
  template <Scalar T, Accumulator S>
  void pull_back(matrix_view<const T> a, vector_view<const S> p, vector_view<const S> q, vector_view<S> y,
                 vector_view<S> w, vector_view<S> u) const {
    expect_vectors(a, p, q, y, w, u);
    if constexpr (detail::kernels::has_kernels<T, S>) {
      if (sweep_both<none>(a, p, q, y, w, u, no_gradient<S>{})) return;
    }
    reference{}.project(a, p, y);
    reference{}.project(a, q, w);
    reference{}.lift(a, vector_view<const S>(w), u);
  }

  /// The same, and in that read the gradient, F × D, of any storage type: = or += y qᵀ + w pᵀ as `mode`, an
  /// enumeration with `write` and `accumulate`, says.
  template <Scalar T, Accumulator S, Scalar G, class Mode>
    requires requires { Mode::write, Mode::accumulate; }
  void pull_back(matrix_view<const T> a, vector_view<const S> p, vector_view<const S> q, vector_view<S> y,
                 vector_view<S> w, vector_view<S> u, matrix_view<G> gradient, Mode mode) const {
    expect_vectors(a, p, q, y, w, u);
    detail::expect(gradient.rows() == a.rows() && gradient.cols() == a.cols(),
                   "pull_back: A is [F = ", a.rows(), ", D = ", a.cols(), "], but the gradient is [",
                   gradient.rows(), ", ", gradient.cols(), "]");
    if constexpr (detail::kernels::has_kernels<T, S> && detail::kernels::has_update<T, S, G>) {
      if (mode == Mode::accumulate ? sweep_both<accumulate>(a, p, q, y, w, u, gradient)
                                   : sweep_both<write>(a, p, q, y, w, u, gradient)) {
        return;
      }
    }
    pull_back(a, p, q, y, w, u);
    for (index_t f = 0; f < a.rows(); ++f) {
      for (index_t d = 0; d < a.cols(); ++d) {
        const S change = y[f] * q[d] + w[f] * p[d];
        gradient(f, d) = narrow<G>(mode == Mode::accumulate ? widen<S>(gradient(f, d)) + change : change);
      }
    }
  }

 private:
  using update = detail::kernels::update;
  static constexpr update none = update::none;
  static constexpr update write = update::write;
  static constexpr update accumulate = update::accumulate;

  template <class S>
  using no_gradient = matrix_view<S>;
  template <class T, class S>
  using lanes_of = detail::kernels::lanes<scalar_traits<T>::format, S, Arch>;

  template <update Update, class T, class S, std::size_t Probes, class G>
  static S by_rows(const matrix_view<const T>& a, const detail::kernels::sweep<S, Probes>& work,
                   const matrix_view<G>& gradient) {
    const auto stored = detail::kernels::as_stored(a);
    const auto into = detail::kernels::as_stored(gradient);
    if (Probes == 1 && a.cols() * static_cast<index_t>(sizeof(T)) <= detail::kernels::short_row_bytes) {
      return detail::kernels::sweep_rows < lanes_of<T, S>, Probes == 1 ? 8 : 4, Update > (stored, work, into);
    }
    return detail::kernels::sweep_rows<lanes_of<T, S>, 4, Update>(stored, work, into);
  }
  template <update Update, class T, class S, std::size_t Probes, class G>
  static S by_panels(const matrix_view<const T>& stored, const detail::kernels::sweep<S, Probes>& work,
                     const matrix_view<G>& gradient) {
    return detail::kernels::sweep_panels<lanes_of<T, S>, detail::kernels::panel_group, Update>(
        detail::kernels::as_stored(stored), work, detail::kernels::as_stored(gradient));
  }

  /// False where there is no kernel for these strides.
  template <update Update, class T, class S, class G>
  static bool sweep_both(const matrix_view<const T>& a, const vector_view<const S>& p,
                         const vector_view<const S>& q, const vector_view<S>& y, const vector_view<S>& w,
                         const vector_view<S>& u, const matrix_view<G>& gradient) {
    const detail::kernels::sweep<S, 2> work{{p.data(), q.data()}, {y.data(), w.data()}, u.data()};
    if (!detail::kernels::contiguous(p, q, y, w, u)) return false;
    if (detail::kernels::is_stored_by_rows<lanes_of<T, S>>(a) &&
        (Update == none || gradient.col_stride() == 1)) {
      by_rows<Update>(a, work, gradient);
      return true;
    }
    if (detail::kernels::is_stored_by_rows<lanes_of<T, S>>(a.transposed()) &&
        (Update == none || gradient.row_stride() == 1)) {
      by_panels<Update>(a.transposed(), work, gradient.transposed());
      return true;
    }
    return false;
  }

  template <class T, class S>
  static void multiply(const matrix_view<const T>& a, const vector_view<const S>& x,
                       const vector_view<S>& y) {
    if constexpr (detail::kernels::has_kernels<T, S>) {
      if (detail::kernels::contiguous(x, y)) {
        if (detail::kernels::is_stored_by_rows<lanes_of<T, S>>(a)) {
          detail::kernels::project_rows<lanes_of<T, S>, 4>(detail::kernels::as_stored(a), x.data(), y.data());
          return;
        }
        if (detail::kernels::is_stored_by_rows<lanes_of<T, S>>(a.transposed())) {
          detail::kernels::lift_rows<lanes_of<T, S>, 4>(detail::kernels::as_stored(a.transposed()), x.data(),
                                                        y.data());
          return;
        }
      }
    }
    reference{}.project(a, x, y);
  }

  template <class T, class S>
  static void expect_vectors(const matrix_view<const T>& a, const vector_view<const S>& p,
                             const vector_view<const S>& q, const vector_view<S>& y, const vector_view<S>& w,
                             const vector_view<S>& u) {
    const index_t f = a.rows();
    const index_t d = a.cols();
    detail::expect(p.size() == d && q.size() == d && u.size() == d && y.size() == f && w.size() == f,
                   "pull_back: A is [F = ", f, ", D = ", d, "], but p, q and u have ", p.size(), ", ",
                   q.size(), " and ", u.size(), " elements, y and w ", y.size(), " and ", w.size());
  }
};

/// The architecture that the compiler was told of.
using simd = basic_simd<>;

MPIROUTER_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
