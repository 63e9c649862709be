// M in double of an A that is seen row by row, packed weights say: decoded a few rows at a time, which stay
// in cache.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/core/matrix_rows.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <span>
#include <utility>

MPIROUTER_BEGIN

/// M = AᵀA with sums in double of an A [F, D] whose rows decode to double: `panel` of them at a time are
/// decoded and multiplied by the kernels of `Backend`. A model of GramOperator and ScalableGramOperator, as
/// widened_operator is for what is stored plainly. Holds the rows (a few spans), one panel and one image, so
/// that one operator serves one thread at a time.
template <MatrixRowsIn<double> Rows, class Backend = reference>
class rows_in_double {
 public:
  using scalar = double;
  static constexpr index_t panel = 16;

  explicit rows_in_double(Rows rows, Backend backend = {})
      : rows_(std::move(rows)), backend_(backend), panel_(panel * rows_.cols()), part_(rows_.cols()) {}

  [[nodiscard]] index_t dimension() const { return rows_.cols(); }
  [[nodiscard]] index_t ffn_dim() const { return rows_.rows(); }

  /// u = xM, returns xMxᵀ. Each row is decoded once.
  double apply(vector_view<const double> x, vector_view<double> u) {
    map(u).setZero();
    double energy = 0;
    for_each_panel([&](const matrix_view<const double>& rows) { energy += add(rows, x, u); });
    return energy;
  }
  /// The images of the columns of x, [D, n]; each row is decoded once.
  [[nodiscard]] Eigen::MatrixXd images(const Eigen::MatrixXd& x) {
    Eigen::MatrixXd u = Eigen::MatrixXd::Zero(x.rows(), x.cols());
    for_each_panel([&](const matrix_view<const double>& rows) {
      for (Eigen::Index k = 0; k < x.cols(); ++k) {
        add(rows, view(x.col(k)), view(u.col(k)));
      }
    });
    return u;
  }
  /// apply for elements whose squares leave the range of double: each row is decoded twice.
  scaled_energy<double> apply_scaled(vector_view<const double> x, vector_view<double> u) {
    const std::span<double> row(panel_.data(), static_cast<std::size_t>(dimension()));
    return gram_of_rows<double>(rows_, row).apply_scaled(x, u);
  }

 private:
  double add(const matrix_view<const double>& rows, vector_view<const double> x, vector_view<double> u) {
    const double energy = backend_.apply(rows, x, view(part_));
    map(u) += part_;
    return energy;
  }

  /// use(rows) with every `panel` rows of A in turn.
  template <class Use>
  void for_each_panel(const Use& use) {
    const index_t d = dimension();
    for (index_t first = 0; first < ffn_dim(); first += panel) {
      const index_t count = std::min(panel, ffn_dim() - first);
      for (index_t f = 0; f < count; ++f) {
        rows_.load_row(first + f, panel_.data() + f * d);
      }
      use(matrix_view<const double>(panel_.data(), count, d, d, 1));
    }
  }

  Rows rows_;
  [[no_unique_address]] Backend backend_;
  Eigen::VectorXd panel_;
  Eigen::VectorXd part_;
};

MPIROUTER_END
