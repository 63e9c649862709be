#include "steps.hpp"

#include <mpi_router/core/experts.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/manifold/steepest_ascent.hpp>
#include <mpi_router/router/router_rows.hpp>

#include <random>

namespace theory {

MatrixXd gaussian(index_t rows, index_t cols, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  return MatrixXd::NullaryExpr(rows, cols, [&] { return normal(random); });
}

MatrixXd plane_rotation(index_t size, double angle) {
  MatrixXd turn = MatrixXd::Identity(size, size);
  turn.topLeftCorner(2, 2) << std::cos(angle), -std::sin(angle), std::sin(angle), std::cos(angle);
  return turn;
}

double angle_between(const VectorXd& row, const VectorXd& direction) {
  return line_angle<double>(view(row), view(direction));
}

VectorXd stepped(const MatrixXd& a, const VectorXd& row) {
  VectorXd next(row.size());
  power_step(gram(a), view(row), view(next), 1.0);
  return next;
}

VectorXd ascended(const MatrixXd& a, const VectorXd& row, double eta) {
  VectorXd next(row.size());
  steepest_ascent_step(gram(a), view(row), view(next), 1.0, eta);
  return next;
}

rows_matrix stepped_rows(const VectorXd& gates, const rows_matrix& router, router_radius radius) {
  const expert_shape shape{router.rows(), gates.size() / router.size(), router.cols()};
  rows_matrix rows(router.rows(), router.cols());
  std::vector<double> workspace(static_cast<std::size_t>(router_rows_workspace(shape)));
  router_rows(experts_nfd(gates.data(), shape), row_major(router.data(), router.rows(), router.cols()),
              row_major(rows.data(), rows.rows(), rows.cols()), {.radius = radius},
              vector_view<double>(workspace));
  return rows;
}

rows_matrix directions_at(const std::vector<double>& angles) {
  rows_matrix directions(static_cast<index_t>(angles.size()), 2);
  for (index_t i = 0; const double angle : angles) {
    directions.row(i++) << std::cos(angle * degree), std::sin(angle * degree);
  }
  return directions;
}

VectorXd plane_experts(const rows_matrix& principal) {
  VectorXd gates(4 * principal.rows());
  for (index_t e = 0; e < principal.rows(); ++e) {
    const double c = principal(e, 0);
    const double s = principal(e, 1);
    gates.segment<4>(4 * e) << c, s, -0.6 * s, 0.6 * c;
  }
  return gates;
}

double quotient(const MatrixXd& a, const VectorXd& row) {
  VectorXd g(row.size());
  return rayleigh(gram(a), view(row), view(g)).rayleigh;
}

table landscape(const MatrixXd& a, int every, int from) {
  table points;
  for (int latitude = from; latitude <= 90; latitude += every) {
    for (int longitude = 0; longitude <= 360; longitude += every) {
      const double cosine = std::cos(latitude * degree);
      const VectorXd row{{std::sin(latitude * degree), cosine * std::cos(longitude * degree),
                          cosine * std::sin(longitude * degree)}};
      points.push_back({row[0], row[1], row[2], quotient(a, row)});
    }
    points.emplace_back();
  }
  return points;
}

}  // namespace theory
