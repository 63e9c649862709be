// What the demonstrations do with rows and experts: angles, steps, experts with a known spectrum.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/core/options.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

namespace theory {

using namespace mpi_router;
using Eigen::MatrixXd;
using Eigen::VectorXd;
using rows_matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;  // [N, D]
using table = std::vector<std::vector<double>>;

inline constexpr double degree = std::numbers::pi / 180;
inline constexpr double no_number = std::numeric_limits<double>::quiet_NaN();  // an empty field of a table

MatrixXd gaussian(index_t rows, index_t cols, std::uint64_t seed);

/// The rotation of a plane by an angle, in the first two of `size` dimensions.
MatrixXd plane_rotation(index_t size, double angle);

/// The angle between a row and a direction, which has no sign.
double angle_between(const VectorXd& row, const VectorXd& direction);

/// r′ of the row, of length C = 1.
VectorXd stepped(const MatrixXd& a, const VectorXd& row);

/// One step of Eq. 9 with this η, retracted to C = 1.
VectorXd ascended(const MatrixXd& a, const VectorXd& row, double eta);

/// r′ of the rows of a router; gates: [N, F, D].
rows_matrix stepped_rows(const VectorXd& gates, const rows_matrix& router, router_radius radius);

/// Unit vectors of a plane at these angles (degrees), [N, 2].
rows_matrix directions_at(const std::vector<double>& angles);

/// Experts in a plane, σ = 1, 0.6, with these v₁, as directions_at gives them: [N, F, D] = [N, 2, 2].
VectorXd plane_experts(const rows_matrix& principal);

/// ρ of the row (Eq. 3).
double quotient(const MatrixXd& a, const VectorXd& row);

/// ρ over the unit sphere of three dimensions, as gnuplot draws a surface: lines of constant latitude, every
/// so many degrees, from one on, an empty one behind each. v₁, v₂, v₃, ρ.
table landscape(const MatrixXd& a, int every, int from = -90);

}  // namespace theory
