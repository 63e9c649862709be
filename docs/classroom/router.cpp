// A small router in the browser: tokens, random experts, and where the tokens go before and after MPI.
//
// D = 2, so that tokens are points of the page. JavaScript calls route() and reads the arrays.
#include <mpi_router/mpi_router.hpp>

#include <array>
#include <cmath>
#include <numbers>
#include <random>

namespace {

using namespace mpi_router;

constexpr index_t tokens = 240;
constexpr index_t ffn_dim = 3;
constexpr index_t hidden_dim = 2;
constexpr index_t most_experts = 6;
constexpr index_t long_run = 2000;  ///< steps after which a row is v₁
constexpr double degree = std::numbers::pi / 180;

template <index_t N>
using numbers_of = std::array<double, static_cast<std::size_t>(N)>;

/// Of one set of rows R: who gets what.
struct routing {
  numbers_of<most_experts * hidden_dim> rows{};  ///< [N, 2]
  numbers_of<tokens * most_experts> logits{};    ///< [T, N]
  numbers_of<tokens> winner{};
  numbers_of<most_experts> load{};
  numbers_of<most_experts> angle{};  ///< of the row to ±v₁ of its expert, degrees
  double max_violation = 0;
  double agreement = 0;  ///< the share of tokens whose winner is the expert with the largest ‖A x‖
};

numbers_of<tokens * hidden_dim> token_data;
numbers_of<most_experts * ffn_dim * hidden_dim> gates;
numbers_of<most_experts * hidden_dim> principal;
numbers_of<tokens> strongest;   ///< the expert with the largest ‖A x‖
std::array<routing, 2> routed;  ///< before and after

auto experts_of(index_t n) { return experts_nfd(std::as_const(gates).data(), {n, ffn_dim, hidden_dim}); }
template <class T>
auto rows_of(T& data, index_t n) {
  return row_major(data.data(), n, hidden_dim);
}

void step(index_t n, const numbers_of<most_experts * hidden_dim>& from,
          numbers_of<most_experts * hidden_dim>& to, index_t steps) {
  static numbers_of<4096> workspace;
  router_rows(experts_of(n), rows_of(from, n), rows_of(to, n), {.steps = steps},
              vector_view<double>(workspace));
}

void draw(index_t n, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  for (double& x : token_data) x = normal(random);
  for (double& w : gates) w = normal(random);
  numbers_of<most_experts * hidden_dim> start;
  for (double& r : start) r = normal(random);
  const double radius = router_radius{}.of(n);
  for (index_t i = 0; i < n; ++i) {
    retract<double>(rows_of(start, n).row(i), rows_of(routed[0].rows, n).row(i), radius);
  }
  for (index_t t = 0; t < tokens; ++t) {
    double most = -1;
    for (index_t i = 0; i < n; ++i) {
      std::array<double, hidden_dim> image;
      const double energy =
          gram(experts_of(n)[i]).apply(rows_of(std::as_const(token_data), tokens).row(t), image);
      if (energy > most) strongest[static_cast<std::size_t>(t)] = static_cast<double>(i);
      most = std::max(most, energy);
    }
  }
}

void send(index_t n, routing& by) {
  const auto logits = row_major(by.logits.data(), tokens, n);
  static numbers_of<tokens> weights;
  static std::array<expert_id, tokens> chosen;
  static numbers_of<tokens * most_experts * 8> workspace;
  route(rows_of(std::as_const(token_data), tokens), rows_of(std::as_const(by.rows), n), {.top_k = 1}, {},
        logits, {row_major(weights.data(), tokens, 1), chosen}, vector_view<double>(workspace));
  std::array<index_t, most_experts> load{};
  const std::span<index_t> loads(load.data(), static_cast<std::size_t>(n));
  count_load(chosen, 1, {}, loads);
  by.max_violation = max_violation(loads);
  double agreeing = 0;
  for (std::size_t t = 0; t < chosen.size(); ++t) {
    by.winner[t] = chosen[t];
    agreeing += by.winner[t] == strongest[t] ? 1 : 0;
  }
  by.agreement = agreeing / tokens;
  for (index_t i = 0; i < n; ++i) {
    by.load[static_cast<std::size_t>(i)] = static_cast<double>(load[static_cast<std::size_t>(i)]);
    by.angle[static_cast<std::size_t>(i)] = line_angle<double>(rows_of(std::as_const(by.rows), n).row(i),
                                                               rows_of(std::as_const(principal), n).row(i)) /
                                            degree;
  }
}

}  // namespace

extern "C" {

int token_count() { return tokens; }
int routing_size() { return sizeof(routing) / sizeof(double); }
double* tokens_data() { return token_data.data(); }
double* gates_data() { return gates.data(); }
double* principal_data() { return principal.data(); }
double* routing_data() { return routed[0].rows.data(); }

/// Random experts, tokens and rows of the seed, and the routing by the rows and by those `steps` power steps
/// later.
void route_tokens(int n, int seed, int steps) {
  draw(n, static_cast<std::uint64_t>(seed));
  step(n, routed[0].rows, routed[1].rows, steps);
  step(n, routed[0].rows, principal, long_run);
  for (routing& by : routed) send(n, by);
}
}
