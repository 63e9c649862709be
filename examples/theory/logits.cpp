// Eq. 7: the logits of a layer with more and more experts, with C = C′/√N and with a C that stays.
#include "demonstration.hpp"

using namespace theory;

namespace {

constexpr index_t hidden_dim = 64;
constexpr index_t ffn_dim = 32;
constexpr double c_prime = 4;

/// r′ of N Gaussian experts and rows, [N, D].
rows_matrix rows_of(index_t num_experts, router_radius radius) {
  return stepped_rows(gaussian(num_experts * ffn_dim * hidden_dim, 1, 41),
                      gaussian(num_experts, hidden_dim, 43), radius);
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "logits", [](const demonstration& demo) {
    MatrixXd tokens =
        gaussian(hidden_dim, 512, 47);  // one a column, each of length √D, as RMSNorm leaves them
    tokens.colwise().normalize();
    tokens *= std::sqrt(static_cast<double>(hidden_dim));
    table sizes;
    for (index_t n = 4; n <= 1024; n *= 2) {
      const MatrixXd with = rows_of(n, router_radius::scale_free(c_prime)) * tokens;
      const MatrixXd without =
          rows_of(n, router_radius::fixed(c_prime / 2)) * tokens;  // C of N = 4, for all N
      const auto length = [](const MatrixXd& m) {
        return std::sqrt(m.squaredNorm() / static_cast<double>(m.cols()));
      };
      const double root = std::sqrt(static_cast<double>(n));
      sizes.push_back({static_cast<double>(n), length(with), length(without), length(with) / root,
                       length(without) / root, with.cwiseAbs().maxCoeff(),
                       c_prime * std::sqrt(static_cast<double>(hidden_dim)) / root});
    }
    demo.csv("sizes", "experts,length,length_fixed,one,one_fixed,largest,bound", sizes);
    fmt::print(
        "The N logits of a token, as one vector: its length (root mean square over 512 random tokens) is "
        "{:.2f}\n"
        "for N = {:.0f} and {:.2f} for N = {:.0f} with C = C′/√N (Eq. 7), C′ = {:.0f}; with a C that stays, "
        "{:.2f} and {:.1f}.\n"
        "One logit is then 1/√N of that: {:.2f} and {:.3f}. No logit can exceed C‖x‖ = C′√(D/N).\n",
        sizes.front()[1], sizes.front()[0], sizes.back()[1], sizes.back()[0], c_prime, sizes.front()[2],
        sizes.back()[2], sizes.front()[3], sizes.back()[3]);
    demo.figure("logits",
                fmt::format("D = {}, F = {}, Gaussian experts and rows, one step; 512 tokens of length √D; "
                            "C′ = {:.0f}",
                            hidden_dim, ffn_dim, c_prime));
  });
}
