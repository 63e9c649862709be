// Why v₁: of all rows of length 1, the one with the longest image Ar, and that of the best
// approximation of A by rank one.
#include "demonstration.hpp"

using namespace theory;

int main(int argc, char** argv) {
  return run(argc, argv, "ellipse", [](const demonstration& demo) {
    constexpr double first = 30;  // direction of v₁, degrees
    const VectorXd sigma{{2, 1}};
    const MatrixXd a =
        plane_rotation(2, 15 * degree) * sigma.asDiagonal() * plane_rotation(2, first * degree).transpose();
    const auto unit = [](double angle) {
      return VectorXd{{std::cos(angle * degree), std::sin(angle * degree)}};
    };

    table circle;
    for (double angle = 0; angle <= 360; angle += 2) {
      const VectorXd r = unit(angle);
      const VectorXd y = a * r;
      const double error =
          (a - y * r.transpose()).squaredNorm();  // of the best of all matrices y rᵀ, which has y = Ar
      circle.push_back({angle, r[0], r[1], y[0], y[1], quotient(a, r), error});
    }
    demo.csv("circle", "angle_deg,x,y,image_x,image_y,rho,error", circle);

    table path;
    VectorXd row = unit(105);
    for (int k = 0; k <= 4; ++k) {
      const VectorXd y = a * row;
      path.push_back({static_cast<double>(k), row[0], row[1], y[0], y[1], std::atan2(row[1], row[0]) / degree,
                      quotient(a, row)});
      row = stepped(a, row);
    }
    demo.csv("path", "step,x,y,image_x,image_y,angle_deg,rho", path);

    const VectorXd v = unit(first);
    const VectorXd u = a * v;
    demo.csv("axes", "v1_x,v1_y,image_x,image_y,v2_x,v2_y,image2_x,image2_y",
             {{v[0], v[1], u[0], u[1], -v[1], v[0], (a * unit(first + 90))[0], (a * unit(first + 90))[1]}});
    fmt::print(
        "A maps the circle of unit rows to an ellipse; its long half axis is σ₁ = 2, the image of v₁.\n"
        "ρ(r) = ‖Ar‖² (Eq. 3) is largest there, σ₁² = {:.0f}. The matrix y rᵀ nearest to A has y = Ar, and "
        "misses\n"
        "‖A‖_F² − ρ(r): the same r is best for both, and σ₂² = {:.0f} is what even v₁ misses "
        "(Eckart–Young).\n"
        "Four steps turn a row from {:.0f}° to {:.1f}°; v₁ is at {:.0f}°.\n",
        quotient(a, v), sigma[1] * sigma[1], path.front()[5], path.back()[5], first);
    const auto parameters =
        fmt::format("D = F = 2, σ = 2, 1, κ² = 0.25; v₁ at {:.0f}°, start at 105°", first);
    demo.figure("ellipse", parameters);
    demo.figure("ellipse-quotient", parameters, fmt::format("principal = {}", first));
  });
}
