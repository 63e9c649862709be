// M in double of an A that is stored in fewer bits: widened a few stored runs at a time, where they stay in
// cache.
#pragma once

#include <mpi_router/backend/eigen.hpp>

#include <Eigen/Core>

#include <algorithm>

MPIROUTER_BEGIN

/// M = AᵀA with sums in double of an A [F, D] stored as T, which is read where it lies: `panel` neurons at a
/// time are widened to double and multiplied by the kernels of `Backend`. A model of GramOperator and
/// ScalableGramOperator. Holds the view, one panel and one image, so that one operator serves one thread at a
/// time.
template <Scalar T, class Backend = reference>
class widened_operator {
 public:
  using scalar = double;
  static constexpr index_t panel = 16;

  explicit widened_operator(matrix_view<const T> a, Backend backend = {})
      : a_(a), backend_(backend), panel_(panel * a.cols()), part_(a.cols()) {}

  [[nodiscard]] index_t dimension() const noexcept { return a_.cols(); }
  [[nodiscard]] index_t ffn_dim() const noexcept { return a_.rows(); }

  /// u = xM, returns xMxᵀ. One read of A.
  double apply(vector_view<const double> x, vector_view<double> u) {
    map(u).setZero();
    double energy = 0;
    for_each_panel([&](const matrix_view<const double>& rows) { energy += add(rows, x, u); });
    return energy;
  }
  /// The images of the columns of x, [D, n], in one read of A.
  [[nodiscard]] Eigen::MatrixXd images(const Eigen::MatrixXd& x) {
    Eigen::MatrixXd u = Eigen::MatrixXd::Zero(x.rows(), x.cols());
    for_each_panel([&](const matrix_view<const double>& rows) {
      for (Eigen::Index k = 0; k < x.cols(); ++k) {
        add(rows, view(x.col(k)), view(u.col(k)));
      }
    });
    return u;
  }
  /// apply for elements whose squares leave the range of double: two reads of A.
  scaled_energy<double> apply_scaled(vector_view<const double> x, vector_view<double> u) const {
    return reference{}.apply_scaled(a_, x, u);
  }

 private:
  double add(const matrix_view<const double>& rows, vector_view<const double> x, vector_view<double> u) {
    const double energy = backend_.apply(rows, x, view(part_));
    map(u) += part_;
    return energy;
  }

  /// use(rows) with every `panel` rows of A in turn, stored in the order of A.
  template <class Use>
  void for_each_panel(const Use& use) {
    const bool by_neurons = a_.row_stride() != 1 || a_.col_stride() == 1;
    for (index_t first = 0; first < a_.rows(); first += panel) {
      const index_t count = std::min(panel, a_.rows() - first);
      const T* from = a_.data() + first * a_.row_stride();
      if (by_neurons) {
        widen_runs(from, count, a_.row_stride(), a_.cols(), a_.col_stride());
        use(matrix_view<const double>(panel_.data(), count, a_.cols(), a_.cols(), 1));
      } else {
        widen_runs(from, a_.cols(), a_.col_stride(), count, 1);
        use(matrix_view<const double>(panel_.data(), count, a_.cols(), 1, count));
      }
    }
  }

  void widen_runs(const T* from, index_t runs, index_t run_stride, index_t size, index_t stride) {
    for (index_t r = 0; r < runs; ++r) {
      widen_run(from + r * run_stride, size, stride, panel_.data() + r * size);
    }
  }
  static void widen_run(const T* from, index_t size, index_t stride, double* to) {
    constexpr index_t lanes = 16;  // a constant number, which compilers vectorise
    index_t i = 0;
    for (; stride == 1 && i + lanes <= size; i += lanes) {
      for (index_t k = 0; k < lanes; ++k) {
        to[i + k] = widen<double>(from[i + k]);
      }
    }
    for (; i < size; ++i) {
      to[i] = widen<double>(from[i * stride]);
    }
  }

  matrix_view<const T> a_;
  [[no_unique_address]] Backend backend_;
  Eigen::VectorXd panel_;
  Eigen::VectorXd part_;
};

/// M with sums in double, of A as it is stored.
template <Scalar T, class Backend = reference>
[[nodiscard]] auto gram_in_double(const matrix_view<T>& a, Backend backend = {}) {
  if constexpr (std::same_as<std::remove_const_t<T>, double>) {
    return gram(a, backend);
  } else {
    return widened_operator<std::remove_const_t<T>, Backend>(a, backend);
  }
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
