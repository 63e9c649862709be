// A matrix [N, D] as a call was given it, whatever its type: what is checked of it, and what kernels take.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// One function for all types of router, rows and gradients: they would multiply what is compiled.
class given_matrix {
 public:
  template <class T>
  given_matrix(const matrix_view<T, device_space>& m)
      : elements_(m), rows_(m.rows()), cols_(m.cols()), range_(core::addresses(m)) {}
  /// None.
  given_matrix() : given_matrix(matrix_view<float, device_space>()) {}

  [[nodiscard]] bool is_given() const { return elements_.data != nullptr; }
  [[nodiscard]] index_t rows() const { return rows_; }
  [[nodiscard]] index_t cols() const { return cols_; }
  [[nodiscard]] const any_matrix& elements() const { return elements_; }
  [[nodiscard]] const core::address_range& range() const { return range_; }

 private:
  any_matrix elements_;
  index_t rows_;
  index_t cols_;
  core::address_range range_;
};

[[nodiscard]] inline core::address_range addresses(const given_matrix& m) { return m.range(); }

/// As of two views.
[[nodiscard]] inline bool is_in_place(const given_matrix& a, const given_matrix& b) {
  const any_matrix& p = a.elements();
  const any_matrix& q = b.elements();
  return p.data == q.data && p.format == q.format && p.row_stride == q.row_stride &&
         p.col_stride == q.col_stride;
}

MPIROUTER_CUDA_DETAIL_END
