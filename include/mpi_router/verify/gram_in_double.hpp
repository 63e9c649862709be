// M in double of an A that is not in double: stored in fewer bits, or packed. By kernels that widen in
// registers, where the backend has such; else a few rows at a time are brought to double, where they stay in
// cache.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/core/matrix_rows.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <array>
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

  /// Whether the backend itself sums what is stored in double, and two images in one read of it.
  template <class Backend>
  [[nodiscard]] bool are_direct(const Backend& backend) const {
    if constexpr (requires { backend.sums_in_double(a_); }) {
      return backend.sums_in_double(a_);
    } else {
      return false;
    }
  }
  template <class Backend>
  [[nodiscard]] bool share_reads(const Backend& backend) const {
    if constexpr (requires { backend.template shares_reads<double>(a_); }) {
      return backend.template shares_reads<double>(a_);
    } else {
      return false;
    }
  }
  template <class Backend>
  double apply(const Backend& backend, vector_view<const double> x, vector_view<double> u) const {
    return backend.apply(a_, x, u);
  }
  template <class Backend>
  std::array<double, 2> apply_two(const Backend& backend, const std::array<vector_view<const double>, 2>& x,
                                  const std::array<vector_view<double>, 2>& u) const {
    if constexpr (requires { backend.apply_two(a_, x, u); }) {
      return backend.apply_two(a_, x, u);
    } else {
      return {backend.apply(a_, x[0], u[0]), backend.apply(a_, x[1], u[1])};
    }
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

/// No operator that sums packed weights in double.
struct only_rows {
  [[nodiscard]] static constexpr bool sums_in_double() noexcept { return false; }
};

/// Panels of a matrix that is decoded row by row, and an operator of the same that may sum it in double.
template <MatrixRowsIn<double> Rows, class Packed = only_rows>
class decoded_panels {
 public:
  explicit decoded_panels(Rows rows, Packed packed = {}) : rows_(std::move(rows)), packed_(packed) {}

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

  template <class Backend>
  [[nodiscard]] bool are_direct(const Backend& /*backend*/) const {
    return packed_.sums_in_double();
  }
  template <class Backend>
  [[nodiscard]] bool share_reads(const Backend& /*backend*/) const {
    return packed_.sums_in_double();
  }
  template <class Backend>
  double apply(const Backend& /*backend*/, vector_view<const double> x, vector_view<double> u) const {
    return images<1>({x}, {u})[0];
  }
  template <class Backend>
  std::array<double, 2> apply_two(const Backend& /*backend*/,
                                  const std::array<vector_view<const double>, 2>& x,
                                  const std::array<vector_view<double>, 2>& u) const {
    return images<2>(x, u);
  }

 private:
  template <std::size_t Images>
  std::array<double, Images> images(const std::array<vector_view<const double>, Images>& x,
                                    const std::array<vector_view<double>, Images>& u) const {
    if constexpr (std::same_as<Packed, only_rows>) {
      return {};
    } else {
      return packed_.template images_in_double<Images>(x, u);
    }
  }

  Rows rows_;
  [[no_unique_address]] Packed packed_;
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
      return panels_.apply(backend_, x, u);
    }
    map(u).setZero();
    double energy = 0;
    for_each_panel([&](const matrix_view<const double>& rows) { energy += add(rows, x, u); });
    return energy;
  }
  /// Whether apply_two takes one read of A.
  [[nodiscard]] bool shares_reads() const { return panels_.share_reads(backend_); }
  /// Two images, and their energies, of vectors that overlap nothing else.
  std::array<double, 2> apply_two(const std::array<vector_view<const double>, 2>& x,
                                  const std::array<vector_view<double>, 2>& u) {
    return shares_reads() ? panels_.apply_two(backend_, x, u)
                          : std::array{apply(x[0], u[0]), apply(x[1], u[1])};
  }
  /// The images of the columns of x, [D, n], in one read of A; where its elements are widened in registers,
  /// in one for each column, or for each two.
  [[nodiscard]] Eigen::MatrixXd images(const Eigen::MatrixXd& x) {
    Eigen::MatrixXd u = Eigen::MatrixXd::Zero(x.rows(), x.cols());
    if (is_direct()) {
      const bool in_pairs = shares_reads();
      Eigen::Index k = 0;
      for (; in_pairs && k + 1 < x.cols(); k += 2) {
        apply_two({view(x.col(k)), view(x.col(k + 1))}, {view(u.col(k)), view(u.col(k + 1))});
      }
      for (; k < x.cols(); ++k) {
        apply(view(x.col(k)), view(u.col(k)));
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
  /// Whether kernels sum A in double as it lies.
  [[nodiscard]] bool is_direct() const { return panels_.are_direct(backend_); }
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
/// or of such rows beside `packed`, the operator of the same weights by kernels that decode in registers,
/// which may sum in double what it reads.
template <MatrixRowsIn<double> Rows, class Packed, class Backend>
  requires requires(const Packed& packed) { packed.sums_in_double(); }
[[nodiscard]] auto gram_in_double(Rows rows, const Packed& packed, Backend backend) {
  return panel_operator(detail::decoded_panels<Rows, Packed>(std::move(rows), packed), backend);
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
