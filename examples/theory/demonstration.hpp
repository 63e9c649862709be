// What the demonstrations share: experts with a known spectrum, and a folder for numbers, script and figure.
#pragma once

#include "../../tools/figures/gnuplot.hpp"

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/steepest_ascent.hpp>

#include <Eigen/QR>

#include <cstdint>
#include <numbers>
#include <random>
#include <utility>

namespace theory {

using namespace mpi_router;
using Eigen::MatrixXd;
using Eigen::VectorXd;

inline constexpr double degree = std::numbers::pi / 180;

inline MatrixXd gaussian(index_t rows, index_t cols, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  return MatrixXd::NullaryExpr(rows, cols, [&] { return normal(random); });
}

inline MatrixXd random_orthogonal(index_t size, std::uint64_t seed) {
  return Eigen::HouseholderQR<MatrixXd>(gaussian(size, size, seed)).householderQ();
}

/// An expert whose singular values and right singular directions (the columns of `right`) are known.
struct known_expert {
  VectorXd sigma;
  MatrixXd right;
  MatrixXd a;  ///< A, [F, D], F = D = the number of singular values

  known_expert(VectorXd singular_values, std::uint64_t seed)
      : sigma(std::move(singular_values)),
        right(random_orthogonal(sigma.size(), seed)),
        a(random_orthogonal(sigma.size(), seed + 1) * sigma.asDiagonal() * right.transpose()) {}

  [[nodiscard]] VectorXd principal() const { return right.col(0); }
};

/// The angle between a row and a direction, which has no sign.
inline double angle_between(const VectorXd& row, const VectorXd& direction) {
  return line_angle<double>(view(row), view(direction));
}

/// The folder of one demonstration.
class demonstration {
 public:
  demonstration(int argc, char** argv, std::string name)
      : name_(std::move(name)), folder_(argc > 1 ? argv[1] : "theory") {
    std::filesystem::create_directories(folder_);
  }

  void csv(const std::string& part, const std::string& header,
           const std::vector<std::vector<double>>& rows) const {
    figures::write_csv(folder_ / (name_ + "-" + part + ".csv"), header, rows);
  }

  /// Draws the figure; `script` goes on after script_head.
  void figure(int width, int height, const std::string& script) const {
    figures::write_file(folder_ / (name_ + ".gp"),
                        figures::script_head(name_ + ".svg", width, height, true) + script);
    switch (figures::run_gnuplot(folder_, name_ + ".gp")) {
      case figures::drawn::yes: fmt::print("Figure: {}\n", (folder_ / (name_ + ".svg")).string()); break;
      case figures::drawn::no_gnuplot: fmt::print("{}\n", figures::no_gnuplot_advice); break;
      case figures::drawn::failed: throw std::runtime_error("gnuplot could not draw " + name_ + ".gp");
    }
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
