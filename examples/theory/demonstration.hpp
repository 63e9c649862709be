// What the demonstrations share: angles, experts with a known spectrum, and a folder for numbers, scripts and
// figures.
#pragma once

#include "../../tools/figures/gnuplot.hpp"
#include "picture.hpp"

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/steepest_ascent.hpp>

#include <cstdint>
#include <limits>
#include <numbers>
#include <random>
#include <utility>

namespace theory {

using namespace mpi_router;
using Eigen::MatrixXd;
using Eigen::VectorXd;
using table = std::vector<std::vector<double>>;

inline constexpr double degree = std::numbers::pi / 180;
inline constexpr double no_number = std::numeric_limits<double>::quiet_NaN();  // an empty field of a table

inline MatrixXd gaussian(index_t rows, index_t cols, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  return MatrixXd::NullaryExpr(rows, cols, [&] { return normal(random); });
}

/// The rotation of a plane by an angle, in the first two of `size` dimensions.
inline MatrixXd plane_rotation(index_t size, double angle) {
  MatrixXd turn = MatrixXd::Identity(size, size);
  turn.topLeftCorner(2, 2) << std::cos(angle), -std::sin(angle), std::sin(angle), std::cos(angle);
  return turn;
}

/// The angle between a row and a direction, which has no sign.
inline double angle_between(const VectorXd& row, const VectorXd& direction) {
  return line_angle<double>(view(row), view(direction));
}

/// r′ of the row, of length C = 1.
inline VectorXd stepped(const MatrixXd& a, const VectorXd& row) {
  VectorXd next(row.size());
  power_step(gram(a), view(row), view(next), 1.0);
  return next;
}

/// ρ of the row (Eq. 3).
inline double quotient(const MatrixXd& a, const VectorXd& row) {
  VectorXd g(row.size());
  return rayleigh(gram(a), view(row), view(g)).rayleigh;
}

/// The folder of one demonstration.
class demonstration {
 public:
  demonstration(int argc, char** argv, std::string name)
      : name_(std::move(name)), folder_(argc > 1 ? argv[1] : "theory") {
    std::filesystem::create_directories(folder_);
  }

  void csv(const std::string& part, const std::string& header, const table& rows) const {
    figures::write_csv(folder_ / (name_ + "-" + part + ".csv"), header, rows);
  }

  /// PICTURE.svg by the script PICTURE.gp beside the programs, see draw_picture.
  void figure(const std::string& picture, const std::string& parameters,
              const std::string& values = "") const {
    draw_picture(folder_, picture, parameters, values);
  }

 private:
  std::string name_;
  std::filesystem::path folder_;
};

/// main() of a demonstration: what goes wrong is one line and exit status 2.
template <class Body>
int run(int argc, char** argv, const char* name, const Body& body) {
  try {
    body(demonstration(argc, argv, name));
    return 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "theory_{}: {}\n", name, e.what());
    return 2;
  }
}

}  // namespace theory
