// An SVD by one-sided Jacobi rotations: not the one that the library uses.
#pragma once

#include <Eigen/SVD>

namespace test_support {

/// Singular values and right singular vectors. Eigen 5 takes the choice as a template argument.
template <class Matrix>
auto jacobi_svd(const Matrix& a) {
#if EIGEN_VERSION_AT_LEAST(3, 4, 90)
  return Eigen::JacobiSVD<Matrix, Eigen::ComputeThinV>(a);
#else
  return Eigen::JacobiSVD<Matrix>(a, Eigen::ComputeThinV);
#endif
}

}  // namespace test_support
