// A backend over kernels that read A from memory once: which matrices they take, and what becomes of the
// others.
//
// Where the kernels come from is a parameter: compiled in (simd.hpp) or chosen at run time
// (runtime_dispatch.hpp).
#pragma once

#include <mpi_router/backend/kernel_table.hpp>
#include <mpi_router/backend/reference.hpp>

#include <array>
#include <type_traits>

MPIROUTER_BEGIN

/// Kernels that read A from memory once. `Kernels` gives a core::kernel_table for each storage format that it
/// `has`.
///
/// Hidden-contiguous matrices ([N, F, D] and its fused and strided variants: unit column stride) go by stored
/// rows, ffn-contiguous ones ([N, D, F]: unit row stride) by panels of columns; what is narrower than float
/// is converted in registers. Any extents and addresses; no read outside. What has no kernel (no unit stride,
/// fewer contiguous elements than fill a register or two, strided vectors, sums in double of narrower weights
/// except the images of hidden-contiguous bf16, f16 and f32 with AVX2 and F16C) goes to `reference`: the
/// same function, slower.
///
/// One thread, no allocation, at most 36 KiB of stack. O(F·D). Deterministic: the order of the sums depends
/// on shape, layout and instruction set alone. Products are not guarded against overflow, as in `reference`.
template <class Kernels>
class one_read_backend {
 public:
  constexpr one_read_backend() = default;
  explicit constexpr one_read_backend(Kernels kernels) : kernels_(kernels) {}

  [[nodiscard]] constexpr const Kernels& kernels() const noexcept { return kernels_; }

  /// u = xM with M = AᵀA; returns the energy ‖Ax‖². A is [F, D], x and u have D elements.
  template <Scalar T, Accumulator S>
  S apply(matrix_view<const T> a, vector_view<const S> x, vector_view<S> u) const {
    if constexpr (has_kernels<T, S>) {
      if (const auto stored = stored_as<T>(a); stored.data != nullptr && contiguous(x, u)) {
        return table<T>().apply(stored, x.data(), u.data());
      }
    } else if constexpr (std::is_same_v<S, double>) {
      if (sums_in_double(a) && contiguous(x, u)) {
        return table<T>().apply_in_double(stored_as<T>(a), x.data(), u.data());
      }
    }
    return reference{}.apply(a, x, u);
  }

  /// Whether apply in double reads this A, which is stored in fewer bits, once: bf16, f16 and f32, by stored
  /// rows, where the instruction set has AVX2 and F16C.
  template <Scalar T>
  [[nodiscard]] bool sums_in_double(matrix_view<const T> a) const {
    if constexpr (widens<T>) {
      return table<T>().apply_in_double != nullptr && stored_as<T>(a).by_neurons &&
             stored_as<T>(a).data != nullptr;
    } else {
      return false;
    }
  }

  /// Whether apply_two of contiguous vectors reads this A once: by stored rows, with sums in its accumulator,
  /// or in double where sums_in_double says so.
  template <Accumulator S, Scalar T>
  [[nodiscard]] bool shares_reads(matrix_view<const T> a) const {
    if constexpr (has_kernels<T, S>) {
      const auto stored = stored_as<T>(a);
      return table<T>().apply_two != nullptr && stored.data != nullptr && stored.by_neurons;
    } else if constexpr (std::is_same_v<S, double> && widens<T>) {
      return table<T>().apply_two_in_double != nullptr && sums_in_double(a);
    } else {
      return false;
    }
  }

  /// u[k] = x[k] M and their energies: one read of A where shares_reads says so, else two.
  template <Scalar T, Accumulator S>
  std::array<S, 2> apply_two(matrix_view<const T> a, const std::array<vector_view<const S>, 2>& x,
                             const std::array<vector_view<S>, 2>& u) const {
    if constexpr (has_kernels<T, S>) {
      const auto stored = stored_as<T>(a);
      if (shares_reads<S>(a) && contiguous(x[0], x[1], u[0], u[1])) {
        const S* const from[] = {x[0].data(), x[1].data()};
        S* const to[] = {u[0].data(), u[1].data()};
        std::array<S, 2> energy{};
        table<T>().apply_two(stored, from, to, energy.data());
        return energy;
      }
    } else if constexpr (std::is_same_v<S, double> && widens<T>) {
      if (shares_reads<S>(a) && contiguous(x[0], x[1], u[0], u[1])) {
        const double* const from[] = {x[0].data(), x[1].data()};
        double* const to[] = {u[0].data(), u[1].data()};
        std::array<double, 2> energy{};
        table<T>().apply_two_in_double(stored_as<T>(a), from, to, energy.data());
        return energy;
      }
    }
    return {apply(a, x[0], u[0]), apply(a, x[1], u[1])};
  }

  /// The projection y = A x. x has D elements, y has F.
  template <Scalar T, Accumulator S>
  void project(matrix_view<const T> a, vector_view<const S> x, vector_view<S> y) const {
    if constexpr (has_kernels<T, S>) {
      if (const auto stored = stored_as<T>(a); stored.data != nullptr && contiguous(x, y)) {
        (stored.by_neurons ? table<T>().dots : table<T>().axpys)(stored, x.data(), y.data());
        return;
      }
    }
    reference{}.project(a, x, y);
  }

  /// u = y A. y has F elements, u has D.
  template <Scalar T, Accumulator S>
  void lift(matrix_view<const T> a, vector_view<const S> y, vector_view<S> u) const {
    project(a.transposed(), y, u);
  }

  /// The one read that a backward needs: y = A p, w = A q, u = wA. p, q and u have D elements, y and w have
  /// F. Throws usage_error on shapes that do not fit.
  template <Scalar T, Accumulator S>
  void pull_back(matrix_view<const T> a, vector_view<const S> p, vector_view<const S> q, vector_view<S> y,
                 vector_view<S> w, vector_view<S> u) const {
    expect_vectors(a, p, q, y, w, u);
    if constexpr (has_kernels<T, S>) {
      if (const auto stored = stored_as<T>(a); stored.data != nullptr && contiguous(p, q, y, w, u)) {
        table<T>().pull_back(stored,
                             {.p = p.data(), .q = q.data(), .y = y.data(), .w = w.data(), .u = u.data()});
        return;
      }
    }
    reference{}.project(a, p, y);
    reference{}.project(a, q, w);
    reference{}.lift(a, vector_view<const S>(w), u);
  }

  /// The same, and in that read the gradient, F × D, of any storage type: = or += y qᵀ + w pᵀ as `mode`, an
  /// enumeration with `write` and `accumulate`, says.
  template <Scalar T, Accumulator S, WritableScalar G, class Mode>
    requires requires { Mode::write, Mode::accumulate; }
  void pull_back(matrix_view<const T> a, vector_view<const S> p, vector_view<const S> q, vector_view<S> y,
                 vector_view<S> w, vector_view<S> u, matrix_view<G> gradient, Mode mode) const {
    expect_vectors(a, p, q, y, w, u);
    detail::expect(gradient.rows() == a.rows() && gradient.cols() == a.cols(),
                   "pull_back: A is [F = ", a.rows(), ", D = ", a.cols(), "], but the gradient is [",
                   gradient.rows(), ", ", gradient.cols(), "]");
    if constexpr (has_kernels<T, S> && element_of<T, S, G> != core::gradient_element::none) {
      const auto stored = stored_as<T>(a);
      const index_t unit = stored.by_neurons ? gradient.col_stride() : gradient.row_stride();
      if (stored.data != nullptr && unit == 1 && contiguous(p, q, y, w, u)) {
        table<T>().pull_back(
            stored, {.p = p.data(),
                     .q = q.data(),
                     .y = y.data(),
                     .w = w.data(),
                     .u = u.data(),
                     .gradient = gradient.data(),
                     .gradient_stride = stored.by_neurons ? gradient.row_stride() : gradient.col_stride(),
                     .element = element_of<T, S, G>,
                     .accumulate = mode == Mode::accumulate});
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
  template <class T, class S>
  static constexpr bool has_kernels =
      std::is_same_v<S, accumulator_t<T>> && Kernels::template has<storage_traits<T>::format>;

  /// Whether there may be kernels that sum what is stored in fewer bits in double.
  template <class T>
  static constexpr bool widens = has_kernels<T, accumulator_t<T>> && !std::is_same_v<T, double>;

  template <class T, class S, class G>
  static constexpr core::gradient_element element_of =
      std::is_same_v<G, S>                                     ? core::gradient_element::sum
      : storage_traits<G>::format == storage_traits<T>::format ? core::gradient_element::weight
                                                               : core::gradient_element::none;

  template <class T>
  [[nodiscard]] const auto& table() const {
    return kernels_.template table<storage_traits<T>::format>();
  }

  /// Null data where there is no kernel for these extents and strides.
  template <class T>
  [[nodiscard]] core::stored_matrix stored_as(const matrix_view<const T>& a) const {
    const index_t shortest = table<T>().shortest_run;
    if (a.col_stride() == 1 && a.cols() >= shortest) {
      return {{a.data(), a.rows(), a.cols(), a.row_stride()}, true};
    }
    if (a.row_stride() == 1 && a.rows() >= shortest) {
      return {{a.data(), a.cols(), a.rows(), a.col_stride()}, false};
    }
    return {};
  }

  template <class... Views>
  [[nodiscard]] static bool contiguous(const Views&... v) noexcept {
    return (v.is_contiguous() && ...);
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

  [[no_unique_address]] Kernels kernels_{};
};

MPIROUTER_END
