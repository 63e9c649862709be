// The router: three experts in a plane, tokens coloured by the expert that wins, before and after a step.
#include "demonstration.hpp"

#include <mpi_router/core/experts.hpp>
#include <mpi_router/router/router_rows.hpp>

using namespace theory;

int main(int argc, char** argv) {
  return run(argc, argv, "router", [](const demonstration& demo) {
    constexpr expert_shape shape{.num_experts = 3, .ffn_dim = 2, .hidden_dim = 2};
    const std::vector<double> directions{20, 135, 260};  // of v₁, degrees
    const std::vector<double> stored{75, 165, 300};      // of the rows, degrees
    using rows_of_two = Eigen::Matrix<double, 3, 2, Eigen::RowMajor>;
    rows_of_two router;
    rows_of_two rows;
    std::vector<double> gates;  // [N, F, D], σ = 1, 0.6
    for (std::size_t e = 0; e < 3; ++e) {
      const double v = directions[e] * degree;
      gates.insert(gates.end(), {std::cos(v), std::sin(v), -0.6 * std::sin(v), 0.6 * std::cos(v)});
      router.row(static_cast<index_t>(e)) << std::cos(stored[e] * degree), std::sin(stored[e] * degree);
    }
    std::vector<double> workspace(static_cast<std::size_t>(router_rows_workspace(shape)));
    router_rows(experts_nfd(gates.data(), shape), row_major(router.data(), 3, 2),
                row_major(rows.data(), 3, 2), {.radius = 1.0}, vector_view<double>(workspace));

    table arrows;
    for (index_t e = 0; e < 3; ++e) {
      arrows.push_back({static_cast<double>(e), router(e, 0), router(e, 1), rows(e, 0), rows(e, 1),
                        std::cos(directions[static_cast<std::size_t>(e)] * degree),
                        std::sin(directions[static_cast<std::size_t>(e)] * degree)});
    }
    demo.csv("rows", "expert,r_x,r_y,step_x,step_y,v1_x,v1_y", arrows);

    table tokens;
    int moved = 0;
    constexpr int count = 240;
    for (int k = 0; k < count; ++k) {  // evenly over a disc
      const double radius = 1.5 * std::sqrt((k + 0.5) / count);
      const double angle = k * std::numbers::pi * (3 - std::sqrt(5.0));
      const VectorXd x = radius * VectorXd{{std::cos(angle), std::sin(angle)}};
      index_t before = 0;
      index_t after = 0;
      (router * x).maxCoeff(&before);  // the largest logit wins: top 1
      (rows * x).maxCoeff(&after);
      moved += before != after ? 1 : 0;
      tokens.push_back({x[0], x[1], static_cast<double>(before), static_cast<double>(after)});
    }
    demo.csv("tokens", "x,y,before,after", tokens);

    fmt::print(
        "Three experts in a plane. A token goes to the expert whose row has the largest dot product with "
        "it.\n"
        "One step turns each row towards the v₁ of its expert, and {} of {} tokens change their expert.\n"
        "v₁ is a line, but a row is an arrow: the step keeps the side of the line that the row was on.\n",
        moved, count);
    demo.figure("router",
                fmt::format("N = 3, D = F = 2, σ = 1, 0.6; {} tokens, {} change their expert", count, moved));
  });
}
