// From the structs of the C interface to views: what they must be, where they lie, and in which type.
#pragma once

#include "boundary.hpp"

#include <mpi_router/core/apart.hpp>
#include <mpi_router/core/experts.hpp>

#include <memory>
#include <type_traits>
#include <vector>

namespace mpi_router_c {

/// body(std::type_identity<T>) for the T of a dtype that arrays have been checked to have.
template <class Body>
decltype(auto) with_type(mpi_router_dtype dtype, const Body& body) {
  switch (dtype) {
    case MPIROUTER_F64: return body(std::type_identity<double>{});
    case MPIROUTER_F32: return body(std::type_identity<float>{});
    case MPIROUTER_BF16: return body(std::type_identity<bf16>{});
    case MPIROUTER_F16: return body(std::type_identity<f16>{});
    default: core::usage_failure("a dtype that does not exist");
  }
}

/// "f64", …; "unknown".
[[nodiscard]] const char* name_of(mpi_router_dtype dtype) noexcept;

/// Where the arrays of a call are, and whether it looks at their memory: sizes do not.
struct place {
  mpi_router_device device = MPIROUTER_HOST;
  bool has_memory = true;
};

/// Throws usage_error, naming the argument, where an array has no type, a negative extent, no data, data that
/// its type is not aligned to, or elements out of reach; unsupported_error where it is elsewhere.
void check(const char* what, const char* name, const mpi_router_matrix& matrix, place where = {});
void check(const char* what, const char* name, const mpi_router_vector& vector, place where = {});
void check(const char* what, const char* name, const mpi_router_experts& experts, place where = {});

/// Throws usage_error where the matrix is not [rows, cols]; `because` says of what.
void expect_shape(const char* what, const char* name, const mpi_router_matrix& matrix, index_t rows,
                  index_t cols, const char* because);

/// Throws usage_error where some elements of what is written are one and the same; of experts, as far as
/// each pair of axes and, on the host, each pair of pointers shows it.
void expect_distinct(const char* what, const char* name, const mpi_router_matrix& matrix);
void expect_distinct(const char* what, const char* name, const mpi_router_experts& experts);

/// Throws unsupported_error unless the array may meet sums in `sums`: doubles go with doubles.
void expect_meets(const char* what, const char* name, mpi_router_dtype dtype, mpi_router_dtype sums);

[[nodiscard]] inline expert_shape shape_of(const mpi_router_experts& experts) {
  return {experts.shape[0], experts.shape[1], experts.shape[2]};
}

template <class T, class Space = host_space>
[[nodiscard]] matrix_view<T, Space> view_of(const mpi_router_matrix& m) {
  return {static_cast<T*>(m.data), m.shape[0], m.shape[1], m.strides[0], m.strides[1]};
}
template <class T>
[[nodiscard]] vector_view<T> view_of(const mpi_router_vector& v) {
  return {static_cast<T*>(v.data), v.size, v.stride};
}
template <class T, class Space = host_space>
[[nodiscard]] expert_batch_view<T, Space> view_of(const mpi_router_experts& e) {
  if (e.pointers != nullptr) {
    return {reinterpret_cast<T* const*>(e.pointers), shape_of(e), {0, e.strides[1], e.strides[2]}};
  }
  return {static_cast<T*>(e.data), shape_of(e), {e.strides[0], e.strides[1], e.strides[2]}};
}

[[nodiscard]] core::address_range range_of(const mpi_router_matrix& matrix);
[[nodiscard]] core::address_range range_of(const mpi_router_vector& vector);
template <class T>
[[nodiscard]] core::address_range range_of(const T* data, index_t size) {
  return detail::addresses_of(data, size);
}

/// What a call writes meets nothing that it reads and nothing else that it writes.
class memory_of_call {
 public:
  explicit memory_of_call(const char* what) : what_(what) {}
  void reads(const char* name, const core::address_range& range) { read_.push_back({name, range}); }
  void reads(const char* name, const mpi_router_experts& experts);
  /// Throws usage_error where it meets what was said before, or itself.
  void writes(const char* name, const core::address_range& range);
  void writes(const char* name, const mpi_router_matrix& matrix);
  void writes(const char* name, const mpi_router_experts& experts);

 private:
  const char* what_;
  std::vector<detail::named_range> read_;
  std::vector<detail::named_range> written_;
};

/// A matrix as S, contiguous or as it lies where it is stored so: a copy otherwise.
template <Accumulator S>
class matrix_in_sums {
 public:
  enum class use { read, write, update };
  matrix_in_sums(const mpi_router_matrix& matrix, use u);
  [[nodiscard]] const matrix_view<S>& view() const noexcept { return view_; }
  /// Copies back what was written to the copy.
  void store() const;

 private:
  mpi_router_matrix matrix_;
  std::unique_ptr<S[]> copy_;
  matrix_view<S> view_;
};

}  // namespace mpi_router_c
