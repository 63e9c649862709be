// The router: three experts in a plane, tokens coloured by the expert that wins, before and after a step.
#include "demonstration.hpp"

using namespace theory;

int main(int argc, char** argv) {
  return run(argc, argv, "router", [](const demonstration& demo) {
    const rows_matrix principal = directions_at({20, 135, 260});
    const rows_matrix router = directions_at({75, 165, 300});
    const rows_matrix rows = stepped_rows(plane_experts(principal), router, 1.0);

    table arrows;
    for (index_t e = 0; e < 3; ++e) {
      arrows.push_back({static_cast<double>(e), router(e, 0), router(e, 1), rows(e, 0), rows(e, 1),
                        principal(e, 0), principal(e, 1)});
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
