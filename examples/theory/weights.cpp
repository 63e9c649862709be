// Eq. 6: what a gate makes of the logits of one token, over the length C of the rows: who is chosen, and the
// weights.
#include "demonstration.hpp"

#include <mpi_router/router/gating.hpp>

using namespace theory;

namespace {

constexpr index_t top_k = 4;

/// The weights of the chosen, best first, and who they are.
std::pair<std::vector<double>, std::vector<expert_id>> chosen(const VectorXd& x, const rows_matrix& rows,
                                                              selection_order order) {
  const index_t n = rows.rows();
  std::vector<double> logits(static_cast<std::size_t>(n));
  std::vector<double> weights(top_k);
  std::vector<expert_id> experts(top_k);
  std::vector<double> workspace(static_cast<std::size_t>(gating_workspace(1, n)));
  route(row_major(x.data(), 1, x.size()), row_major(rows.data(), n, rows.cols()),
        {.top_k = top_k, .order = order, .renormalize = false}, {}, row_major(logits.data(), 1, n),
        gate_output<double>{row_major(weights.data(), 1, top_k), experts}, vector_view<double>(workspace));
  return {weights, experts};
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "weights", [](const demonstration& demo) {
    const VectorXd gates = plane_experts(directions_at({10, 55, 100, 145, 190, 235, 280, 325}));
    const rows_matrix router = directions_at({35, 70, 120, 150, 215, 250, 300, 330});
    const VectorXd token =
        std::sqrt(2.0) * directions_at({80}).transpose();  // as long as RMSNorm leaves it, √D
    table weights;
    std::vector<expert_id> first;
    bool same = true;
    for (int i = 0; i <= 60; ++i) {
      const double c_prime = std::pow(10.0, -1 + i / 20.0);
      const rows_matrix rows = stepped_rows(gates, router, router_radius::scale_free(c_prime));
      const auto [of_chosen, experts] = chosen(token, rows, selection_order::select_then_score);
      const auto [of_all, again] = chosen(token, rows, selection_order::score_then_select);
      first = i == 0 ? experts : first;
      same = same && experts == first && again == first;
      weights.push_back({c_prime});
      weights.back().insert(weights.back().end(), of_chosen.begin(), of_chosen.end());
      weights.back().insert(weights.back().end(), of_all.begin(), of_all.end());
    }
    demo.csv("curves", "c_prime,w1,w2,w3,w4,p1,p2,p3,p4", weights);
    const auto ends = [](const std::vector<double>& at) {
      return fmt::format("{:.3f}, {:.3f}, {:.3f}, {:.3f}", at[1], at[2], at[3], at[4]);
    };
    fmt::print(
        "One token and eight experts, K = 4. Whatever the length C = C′/√N of the rows, the chosen {}.\n"
        "Their weights: {} at C′ = {:.1f},\n"
        "               {} at C′ = {:.0f}. C is an inverse temperature.\n",
        same ? "are the same" : "differ", ends(weights.front()), weights.front()[0], ends(weights.back()),
        weights.back()[0]);
    demo.figure("weights", "N = 8, K = 4, D = F = 2, σ = 1, 0.6; one token of length √D");
  });
}
