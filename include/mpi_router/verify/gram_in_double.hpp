// M in double of an A that is not in double: stored in fewer bits, or packed. By kernels that widen in
// registers, where the backend has such; else a few rows at a time are brought to double, where they stay in
// cache.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/core/matrix_rows.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>

MPIROUTER_BEGIN

namespace detail {

/// Panels of a matrix stored as T, widened in the order in which it lies.
template <Scalar T>
class stored_panels {
 public:
  explicit stored_panels(const matrix_view<const T>& a) : a_(a) {}

  [[nodiscard]] index_t rows() const noexcept { return a_.rows(); }
  [[nodiscard]] index_t cols() const noexcept { return a_.cols(); }
  [[nodiscard]] const matrix_view<const T>& stored() const noexcept { return a_; }

  /// Rows first … first + count − 1 in double, written to `to`.
  [[nodiscard]] matrix_view<const double> load(index_t first, index_t count, double* to) const {
    const T* from = a_.data() + first * a_.row_stride();
    if (a_.row_stride() != 1 || a_.col_stride() == 1) {
      widen_runs(from, count, a_.row_stride(), cols(), a_.col_stride(), to);
      return {to, count, cols(), cols(), 1};
    }
    widen_runs(from, cols(), a_.col_stride(), count, 1, to);
    return {to, count, cols(), 1, count};
  }
  /// Two reads of A.
  scaled_energy<double> apply_scaled(vector_view<const double> x, vector_view<double> u,
                                     std::span<double> /*row*/) const {
    return reference{}.apply_scaled(a_, x, u);
  }

 private:
  static void widen_runs(const T* from, index_t runs, index_t run_stride, index_t size, index_t stride,
                         double* to) {
    for (index_t r = 0; r < runs; ++r) {
      widen_run(from + r * run_stride, size, stride, to + r * size);
    }
  }
  static void widen_run(const T* from, index_t size, index_t stride, double* to) {
    constexpr index_t at_once = 16;  // a constant number, which compilers vectorise
    index_t i = 0;
    for (; stride == 1 && i + at_once <= size; i += at_once) {
      for (index_t k = 0; k < at_once; ++k) {
        to[i + k] = widen<double>(from[i + k]);
      }
    }
    for (; i < size; ++i) {
      to[i] = widen<double>(from[i * stride]);
    }
  }

  matrix_view<const T> a_;
};

/// Panels of a matrix that is decoded row by row.
template <MatrixRowsIn<double> Rows>
class decoded_panels {
 public:
  explicit decoded_panels(Rows rows) : rows_(std::move(rows)) {}

  [[nodiscard]] index_t rows() const { return rows_.rows(); }
  [[nodiscard]] index_t cols() const { return rows_.cols(); }

  [[nodiscard]] matrix_view<const double> load(index_t first, index_t count, double* to) const {
    for (index_t f = 0; f < count; ++f) {
      rows_.load_row(first + f, to + f * cols());
    }
    return {to, count, cols(), cols(), 1};
  }
  /// Each row is decoded twice.
  scaled_energy<double> apply_scaled(vector_view<const double> x, vector_view<double> u,
                                     std::span<double> row) const {
    return gram_of_rows<double>(rows_, row).apply_scaled(x, u);
  }

 private:
  Rows rows_;
};

}  // namespace detail

/// M = AᵀA with sums in double of an A [F, D] whose `Panels` bring `panel` neurons at a time to double; they
/// are multiplied by the kernels of `Backend`, or A as it lies where these sum it in double. A model of
/// GramOperator and ScalableGramOperator; build it with gram_in_double(). Holds one panel and one image, so
/// that one operator serves one thread at a time.
template <class Panels, class Backend = reference>
class panel_operator {
 public:
  using scalar = double;
  static constexpr index_t panel = 16;

  explicit panel_operator(Panels panels, Backend backend = {})
      : panels_(std::move(panels)),
        backend_(backend),
        panel_(panel * panels_.cols()),
        part_(panels_.cols()) {}

  [[nodiscard]] index_t dimension() const { return panels_.cols(); }
  [[nodiscard]] index_t ffn_dim() const { return panels_.rows(); }

  /// u = xM, returns xMxᵀ. One read of A.
  double apply(vector_view<const double> x, vector_view<double> u) {
    if (is_direct()) {
      return direct(x, u);
    }
    map(u).setZero();
    double energy = 0;
    for_each_panel([&](const matrix_view<const double>& rows) { energy += add(rows, x, u); });
    return energy;
  }
  /// The images of the columns of x, [D, n], in one read of A, or n where its elements are widened in
  /// registers.
  [[nodiscard]] Eigen::MatrixXd images(const Eigen::MatrixXd& x) {
    Eigen::MatrixXd u = Eigen::MatrixXd::Zero(x.rows(), x.cols());
    if (is_direct()) {
      for (Eigen::Index k = 0; k < x.cols(); ++k) {
        direct(view(x.col(k)), view(u.col(k)));
      }
      return u;
    }
    for_each_panel([&](const matrix_view<const double>& rows) {
      for (Eigen::Index k = 0; k < x.cols(); ++k) {
        add(rows, view(x.col(k)), view(u.col(k)));
      }
    });
    return u;
  }
  /// apply for elements whose squares leave the range of double. Two reads of A.
  scaled_energy<double> apply_scaled(vector_view<const double> x, vector_view<double> u) {
    return panels_.apply_scaled(x, u, {panel_.data(), static_cast<std::size_t>(dimension())});
  }

 private:
  /// Whether the backend itself sums what is stored in double.
  [[nodiscard]] bool is_direct() const {
    if constexpr (requires { backend_.sums_in_double(panels_.stored()); }) {
      return backend_.sums_in_double(panels_.stored());
    } else {
      return false;
    }
  }
  double direct(vector_view<const double> x, vector_view<double> u) const {
    if constexpr (requires { panels_.stored(); }) {
      return backend_.apply(panels_.stored(), x, u);
    } else {
      return 0;
    }
  }
  double add(const matrix_view<const double>& rows, vector_view<const double> x, vector_view<double> u) {
    const double energy = backend_.apply(rows, x, view(part_));
    map(u) += part_;
    return energy;
  }

  /// use(rows) with every `panel` rows of A in turn.
  template <class Use>
  void for_each_panel(const Use& use) {
    for (index_t first = 0; first < ffn_dim(); first += panel) {
      use(panels_.load(first, std::min(panel, ffn_dim() - first), panel_.data()));
    }
  }

  Panels panels_;
  [[no_unique_address]] Backend backend_;
  Eigen::VectorXd panel_;
  Eigen::VectorXd part_;
};

/// M with sums in double: of A as it is stored, which is read where it lies,
template <Scalar T, class Backend = reference>
[[nodiscard]] auto gram_in_double(const matrix_view<T>& a, Backend backend = {}) {
  using stored = std::remove_const_t<T>;
  if constexpr (std::same_as<stored, double>) {
    return gram(a, backend);
  } else {
    return panel_operator(detail::stored_panels<stored>(a), backend);
  }
}
/// or of rows that decode to double, of which the operator holds a copy (a few spans, for packed weights).
template <MatrixRowsIn<double> Rows, class Backend = reference>
[[nodiscard]] auto gram_in_double(Rows rows, Backend backend = {}) {
  return panel_operator(detail::decoded_panels<Rows>(std::move(rows)), backend);
}

namespace detail {

/// The images of the columns of x.
template <GramOperator Op>
  requires std::same_as<scalar_of<Op>, double>
[[nodiscard]] Eigen::MatrixXd images_of(Op& op, const Eigen::MatrixXd& x) {
  if constexpr (requires { op.images(x); }) {
    return op.images(x);
  } else {
    Eigen::MatrixXd u(x.rows(), x.cols());
    for (Eigen::Index k = 0; k < x.cols(); ++k) {
      static_cast<void>(op.apply(view(x.col(k)), view(u.col(k))));
    }
    return u;
  }
}

}  // namespace detail

MPIROUTER_END
