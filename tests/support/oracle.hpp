// The f64 truth that the method is held against: M formed in full by Eigen, which the library never does.
#pragma once

#include <mpi_router/backend/eigen.hpp>

#include <Eigen/Core>
#include <Eigen/SVD>
#include <support/layouts.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <array>
#include <utility>
#include <vector>

namespace test_support {

using matrix = Eigen::MatrixXd;
using column = Eigen::VectorXd;

/// The values of a view, in double.
template <class T>
[[nodiscard]] matrix values(const mpi_router::matrix_view<T>& a) {
  matrix out(a.rows(), a.cols());
  for (index_t f = 0; f < a.rows(); ++f) {
    for (index_t d = 0; d < a.cols(); ++d) {
      out(f, d) = mpi_router::widen<double>(a(f, d));
    }
  }
  return out;
}
template <class S>
[[nodiscard]] column values(const std::vector<S>& x) {
  column out(static_cast<Eigen::Index>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i) {
    out[static_cast<Eigen::Index>(i)] = static_cast<double>(x[i]);
  }
  return out;
}
template <class S>
[[nodiscard]] std::vector<S> rounded(const column& x) {
  std::vector<S> out(static_cast<std::size_t>(x.size()));
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<S>(x[static_cast<Eigen::Index>(i)]);
  }
  return out;
}

/// C · rM/‖rM‖ in double.
[[nodiscard]] inline column exact_step(const matrix& a, const column& r, double radius) {
  return radius * (a.transpose() * (a * r)).normalized();
}

/// Shapes that meet every edge of a loop: size one, odd, a multiple of a vector, one more and one less, tall
/// and wide.
inline constexpr std::array<std::pair<index_t, index_t>, 12> shapes{{{1, 1},
                                                                     {1, 7},
                                                                     {5, 1},
                                                                     {2, 3},
                                                                     {8, 8},
                                                                     {7, 33},
                                                                     {33, 7},
                                                                     {16, 64},
                                                                     {65, 63},
                                                                     {64, 65},
                                                                     {31, 129},
                                                                     {130, 17}}};

}  // namespace test_support
