// Eigen matrices, Maps, Refs and blocks as views, and dense or sparse Eigen matrices as operators. No copies.
#pragma once

#include <mpi_router/backend/dense.hpp>
#include <mpi_router/core/operands.hpp>

#include <Eigen/Core>
#include <Eigen/SparseCore>

#include <type_traits>
#include <utility>

MPIROUTER_BEGIN_TYPES

template <>
struct storage_traits<Eigen::bfloat16> : converted_storage<Eigen::bfloat16, float, storage_format::bf16> {
  static constexpr std::string_view name = storage_traits<bf16>::name;
};
template <>
struct storage_traits<Eigen::half> : converted_storage<Eigen::half, float, storage_format::f16> {
  static constexpr std::string_view name = storage_traits<f16>::name;
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

namespace detail {

/// An Eigen object whose elements lie in memory: Matrix, Array, Map, Ref, or a block of one. Expressions do
/// not.
template <class E>
concept eigen_in_memory = requires(std::remove_cvref_t<E>& object) {
  typename std::remove_cvref_t<E>::Scalar;
  requires Scalar<typename std::remove_cvref_t<E>::Scalar>;
  requires static_cast<bool>(static_cast<unsigned>(std::remove_cvref_t<E>::Flags) &
                             static_cast<unsigned>(Eigen::DirectAccessBit));
  object.data();
  object.innerStride();
  object.outerStride();
};

/// A Ref to const may hold a copy, where it was made from an expression or from other strides.
template <class E>
inline constexpr bool may_hold_copy = std::is_base_of_v<Eigen::PlainObjectBase<E>, E>;
template <class Plain, int Options, class Strides>
inline constexpr bool may_hold_copy<Eigen::Ref<const Plain, Options, Strides>> = true;

/// An lvalue, or one of Eigen's own views (Map, Ref, Block), which may be temporary: their data lives
/// elsewhere.
template <class E>
inline constexpr bool outlives_call = std::is_lvalue_reference_v<E> || !may_hold_copy<std::remove_cvref_t<E>>;

/// A sparse Eigen matrix in memory: SparseMatrix, Map, Ref.
template <class E>
concept eigen_sparse = requires(E& object) {
  requires std::same_as<typename E::StorageKind, Eigen::Sparse>;
  requires Accumulator<typename E::Scalar>;
  object.outerIndexPtr();
};

template <class E>
using eigen_element_t = std::remove_pointer_t<decltype(std::declval<E&>().data())>;

}  // namespace detail

/// The view of a dense Eigen object in memory, in either storage order, with any strides: a vector_view of
/// what is a vector at compile time (a VectorXf, a row of a matrix), else a matrix_view, rows × cols as Eigen
/// sees it. For a gate matrix pass A, [F, D]; for the paper's W_g, [D, F], use view(W).transposed(). O(1), no
/// copy. The view must not outlive the object; a temporary Matrix, or a temporary Ref to const, which may
/// hold one, is refused at compile time.
template <class E>
  requires(detail::eigen_in_memory<E> && detail::outlives_call<E>)
[[nodiscard]] auto view(E&& object) {
  using object_type = std::remove_cvref_t<E>;
  using element = detail::eigen_element_t<std::remove_reference_t<E>>;
  const auto inner = static_cast<index_t>(object.innerStride());
  const auto outer = static_cast<index_t>(object.outerStride());
  if constexpr (static_cast<bool>(object_type::IsVectorAtCompileTime)) {
    return vector_view<element>(object.data(), object.size(), inner);
  } else {
    return matrix_view<element>(object.data(), object.rows(), object.cols(),
                                object_type::IsRowMajor ? outer : inner,
                                object_type::IsRowMajor ? inner : outer);
  }
}

/// The Eigen Map of a vector or a matrix view, for those who go on in Eigen.
template <Scalar T>
[[nodiscard]] auto map(const vector_view<T>& v) {
  using plain = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, 1>;
  using maybe_const = std::conditional_t<std::is_const_v<T>, const plain, plain>;
  return Eigen::Map<maybe_const, 0, Eigen::InnerStride<>>(v.data(), v.size(),
                                                          Eigen::InnerStride<>(v.stride()));
}
/// A matrix, of whatever strides.
template <Scalar T>
[[nodiscard]] auto map(const matrix_view<T>& m) {
  using plain = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic>;
  using maybe_const = std::conditional_t<std::is_const_v<T>, const plain, plain>;
  using stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  return Eigen::Map<maybe_const, 0, stride>(m.data(), m.rows(), m.cols(),
                                            stride(m.col_stride(), m.row_stride()));
}

/// The operator M = AᵀA of a dense Eigen object A, [F, D], as gram(view(A)).
template <class E, class Backend = reference>
  requires(detail::eigen_in_memory<E> && detail::outlives_call<E>)
[[nodiscard]] auto gram(E&& a, Backend backend = {}) {
  return gram(view(std::forward<E>(a)), backend);
}

/// M = AᵀA of any Eigen matrix that can be multiplied by a vector, sparse ones above all: two products
/// through Eigen. A must outlive the operator. Holds one vector of F elements, so one operator serves one
/// thread at a time.
template <class Matrix>
class eigen_operator {
 public:
  using scalar = typename Matrix::Scalar;

  explicit eigen_operator(const Matrix& a) : a_(&a), y_(a.rows()) {}
  eigen_operator(const Matrix&&) = delete;

  [[nodiscard]] index_t dimension() const noexcept { return a_->cols(); }
  [[nodiscard]] index_t ffn_dim() const noexcept { return a_->rows(); }

  /// u = xM, returns xMxᵀ. Throws usage_error where x or u does not have D elements, or they overlap.
  scalar apply(vector_view<const scalar> x, vector_view<scalar> u) {
    detail::expect_operands("apply", *this, x, dimension(), u, dimension());
    y_.noalias() = *a_ * map(x);
    map(u).noalias() = a_->transpose() * y_;
    return y_.squaredNorm();
  }
  /// y = A x.
  void project(vector_view<const scalar> x, vector_view<scalar> y) const {
    detail::expect_operands("project", *this, x, dimension(), y, ffn_dim());
    map(y).noalias() = *a_ * map(x);
  }
  /// u = y A.
  void lift(vector_view<const scalar> y, vector_view<scalar> u) const {
    detail::expect_operands("lift", *this, y, ffn_dim(), u, dimension());
    map(u).noalias() = a_->transpose() * map(y);
  }

 private:
  const Matrix* a_;
  Eigen::Matrix<scalar, Eigen::Dynamic, 1> y_;
};

/// The operator of a sparse Eigen matrix A, [F, D], of float or double, in either storage order, or of a Map
/// or a Ref of one. A temporary is refused at compile time.
template <class E>
  requires(std::is_lvalue_reference_v<E> && detail::eigen_sparse<std::remove_cvref_t<E>>)
[[nodiscard]] auto gram(E&& a) {
  return eigen_operator<std::remove_cvref_t<E>>(a);
}

MPIROUTER_END
