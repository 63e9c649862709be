// M of an expert on a GPU, as the search for its direction takes it.
#pragma once

#include "gpu.hpp"

#include <mpi_router/backend/reference.hpp>
#include <mpi_router/verify/krylov_basis.hpp>

#include <array>
#include <utility>

namespace verify {

/// The vectors of a Krylov space beside the matrix: krylov_basis there. Takes some steps at once, ahead of
/// being asked: one wait for all of them.
class gpu_basis {
 public:
  using column = Eigen::VectorXd;

  gpu_basis(gpu_expert& expert, index_t dimension, index_t columns)
      : expert_(&expert),
        dimension_(dimension),
        columns_(columns),
        vectors_(expert.take_vectors(columns)),
        beside_(dimension, 1) {}
  gpu_basis(gpu_basis&& other) noexcept
      : expert_(other.expert_),
        dimension_(other.dimension_),
        columns_(other.columns_),
        vectors_(std::exchange(other.vectors_, nullptr)),
        beside_(std::move(other.beside_)),
        first_(other.first_),
        ahead_(other.ahead_),
        ahead_from_(other.ahead_from_),
        ahead_count_(other.ahead_count_) {}
  gpu_basis& operator=(gpu_basis&&) = delete;
  ~gpu_basis() {
    if (vectors_ != nullptr) {
      expert_->give_back(vectors_);
    }
  }

  [[nodiscard]] index_t dimension() const noexcept { return dimension_; }

  template <class Columns>
  void deflate(const Eigen::MatrixBase<Columns>& v) {
    first_ = v.cols();
    beside_ = mpi_router::krylov_basis<double>(dimension_, first_ + 1);
    beside_.deflate(v);
    for (index_t k = 0; k < first_; ++k) {
      set(k - first_, v.col(k));
    }
  }
  void set(index_t k, const Eigen::VectorXd& x) {
    expert_->store(vectors_, first_ + k, mpi_router::view(x));
    ahead_count_ = 0;
  }
  double start(column x) {
    const double left = beside_.start(std::move(x));
    if (left > 0) {
      set(0, beside_.combine(0, Eigen::VectorXd::Ones(1)));
    }
    return left;
  }

  template <class Op>
  mpi_router::lanczos_step step(Op& /*op*/, index_t steps, double scale, double before) {
    if (steps < ahead_from_ || steps >= ahead_from_ + ahead_count_) {
      const index_t room = std::min(static_cast<index_t>(ahead_.size()), columns_ - 1 - first_ - steps);
      ahead_from_ = steps;
      ahead_count_ = expert_->lanczos(vectors_, first_ + steps, steps == 0, scale, before,
                                      std::span(ahead_).first(static_cast<std::size_t>(room)));
    }
    return ahead_[static_cast<std::size_t>(steps - ahead_from_)];
  }
  [[nodiscard]] Eigen::VectorXd combine(index_t from, const Eigen::VectorXd& y) const {
    Eigen::VectorXd out(dimension_);
    expert_->combine(vectors_, first_ + from, mpi_router::view(y), mpi_router::view(out));
    return out;
  }

 private:
  gpu_expert* expert_;
  index_t dimension_;
  index_t columns_;
  double* vectors_;
  mpi_router::krylov_basis<double> beside_;  // where a start is made orthogonal to what is deflated
  index_t first_ = 0;
  std::array<mpi_router::lanczos_step, 4> ahead_{};
  index_t ahead_from_ = 0;
  index_t ahead_count_ = 0;
};

/// M = AᵀA in double of an A [F, D] of any storage type, copied to the device. A model of GramOperator and
/// ScalableGramOperator: what leaves the range of double is done on the host. Holds a view of A.
class gpu_operator {
 public:
  using scalar = double;
  template <class T>
  gpu_operator(gpu& device, const mpi_router::matrix_view<const T>& a)
      : data_(a.data()), stored_(bytes_of(a)), expert_(device, stored_), scaled_(&gpu_operator::scaled<T>) {}

  [[nodiscard]] index_t dimension() const noexcept { return stored_.cols; }
  [[nodiscard]] index_t ffn_dim() const noexcept { return stored_.rows; }
  double apply(mpi_router::vector_view<const double> x, mpi_router::vector_view<double> u) {
    return expert_.apply(x, u);
  }
  mpi_router::scaled_energy<double> apply_scaled(mpi_router::vector_view<const double> x,
                                                 mpi_router::vector_view<double> u) const {
    return (this->*scaled_)(x, u);
  }
  [[nodiscard]] gpu_basis make_basis(index_t columns) { return {expert_, dimension(), columns}; }

 private:
  template <class T>
  mpi_router::scaled_energy<double> scaled(mpi_router::vector_view<const double> x,
                                           mpi_router::vector_view<double> u) const {
    const auto& s = stored_;
    return mpi_router::reference{}.apply_scaled(
        mpi_router::matrix_view<const T>(static_cast<const T*>(data_), s.rows, s.cols, s.row_stride,
                                         s.col_stride),
        x, u);
  }

  const void* data_;
  stored_bytes stored_;
  gpu_expert expert_;
  mpi_router::scaled_energy<double> (gpu_operator::*scaled_)(mpi_router::vector_view<const double>,
                                                             mpi_router::vector_view<double>) const;
};

}  // namespace verify
