// Why v₁, Eq. 6 and 7, the paper's numbers beside the null, and the exact floor of drift: sections 0, 8 and
// 10 of docs/theory.md.
#include "demonstration.hpp"

#include <mpi_router/backend/dense.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/router/gating_vjp.hpp>
#include <mpi_router/verify/null_model.hpp>

using namespace claims;

TEST_CASE("router: each token goes to the row with the largest dot product, and a step turns rows to v₁") {
  const demonstration demo("router");
  const auto rows = demo.read("rows");
  REQUIRE(rows.size() == 3);
  for (const auto& r : rows) {
    const double before = std::abs(r.at("r_x") * r.at("v1_x") + r.at("r_y") * r.at("v1_y"));
    const double after = std::abs(r.at("step_x") * r.at("v1_x") + r.at("step_y") * r.at("v1_y"));
    CHECK(std::hypot(r.at("step_x"), r.at("step_y")) == doctest::Approx(1));
    // In a plane tan θ shrinks by κ² = 0.36 exactly.
    CHECK(std::tan(std::acos(after)) == doctest::Approx(0.36 * std::tan(std::acos(before))).epsilon(1e-6));
  }
  int moved = 0;
  for (const auto& token : demo.read("tokens")) {
    for (const auto& names : {std::array{"before", "r_x", "r_y"}, std::array{"after", "step_x", "step_y"}}) {
      const auto logit = [&](std::size_t e) {
        return token.at("x") * rows[e].at(names[1]) + token.at("y") * rows[e].at(names[2]);
      };
      const auto winner = static_cast<std::size_t>(token.at(names[0]));
      for (std::size_t e = 0; e < 3; ++e) {
        CHECK(logit(e) <= logit(winner) + 1e-9);
      }
    }
    moved += token.at("before") != token.at("after") ? 1 : 0;
  }
  CHECK(moved == 45);
}

TEST_CASE(
    "ellipse: ρ and the error of the best matrix of rank one add up to ‖A‖_F², and v₁ is best for both") {
  const demonstration demo("ellipse");
  for (const auto& r : demo.read("circle")) {
    CAPTURE(r.at("angle_deg"));
    const double off = (r.at("angle_deg") - 30) * std::numbers::pi / 180;
    CHECK(r.at("rho") ==
          doctest::Approx(std::pow(r.at("image_x"), 2) + std::pow(r.at("image_y"), 2)).epsilon(1e-9));
    CHECK(r.at("rho") ==
          doctest::Approx(4 * std::pow(std::cos(off), 2) + std::pow(std::sin(off), 2)).epsilon(1e-9));
    CHECK(r.at("rho") + r.at("error") == doctest::Approx(5).epsilon(1e-9));
    CHECK(r.at("error") > 1 - 1e-9);  // σ₂²: Eckart–Young
  }
  for (const auto& r : demo.read("path")) {
    const double tangent = std::tan((r.at("angle_deg") - 30) * std::numbers::pi / 180);
    CHECK(
        tangent ==
        doctest::Approx(std::pow(0.25, r.at("step")) * std::tan(75 * std::numbers::pi / 180)).epsilon(1e-6));
  }
}

namespace {

constexpr mpi_router::index_t gated_experts = 5;
constexpr mpi_router::index_t gated_k = 3;
constexpr double gated_logits[gated_experts] = {0.3, -0.4, 1.1, 0.2, -2};

struct gated {
  std::vector<double> weights = std::vector<double>(gated_k);
  std::vector<mpi_router::expert_id> experts = std::vector<mpi_router::expert_id>(gated_k);
};

/// The gate of one token with the logits scale · ℓ + shift.
gated gate_of(const mpi_router::gating_options& options, double scale = 1, double shift = 0) {
  using namespace mpi_router;
  std::vector<double> logits;
  for (const double l : gated_logits) {
    logits.push_back(scale * l + shift);
  }
  gated out;
  out.weights.resize(static_cast<std::size_t>(options.top_k));
  out.experts.resize(static_cast<std::size_t>(options.top_k));
  std::vector<double> workspace(static_cast<std::size_t>(gating_workspace(1, gated_experts)));
  gate<double>(row_major(logits.data(), 1, gated_experts), options, {},
               {row_major(out.weights.data(), 1, options.top_k), out.experts}, workspace);
  return out;
}

/// ℓ̄ of the token, by the library.
std::vector<double> gate_gradient(const mpi_router::gating_options& options, const gated& of,
                                  const std::vector<double>& grad_weights) {
  using namespace mpi_router;
  std::vector<double> grad(gated_experts);
  std::vector<double> workspace(static_cast<std::size_t>(gating_workspace(1, gated_experts)));
  gate_vjp<double>(row_major(gated_logits, 1, gated_experts), options, of.experts,
                   row_major(grad_weights.data(), 1, options.top_k), row_major(grad.data(), 1, gated_experts),
                   gradient_mode::write, workspace);
  return grad;
}

constexpr mpi_router::gating_options of_chosen{
    .top_k = gated_k, .order = mpi_router::selection_order::select_then_score, .renormalize = false};
constexpr mpi_router::gating_options of_all{.top_k = gated_k, .renormalize = false};

}  // namespace

TEST_CASE(
    "Eq. 6: the choice ignores scale and shift, the weights only the shift; C is an inverse temperature") {
  const auto plain = gate_of(of_chosen);
  for (const double c : {1e-3, 0.5, 3.0, 200.0}) {
    CAPTURE(c);
    const auto scaled = gate_of(of_chosen, c, -7);
    CHECK(scaled.experts == plain.experts);
    for (std::size_t i = 0; i < gated_k; ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        const double difference = gated_logits[plain.experts[j]] - gated_logits[plain.experts[i]];
        CHECK(std::log(scaled.weights[i] / scaled.weights[j]) == doctest::Approx(-c * difference));
      }
    }
  }
  CHECK(gate_of(of_chosen, 1e-9).weights[2] == doctest::Approx(1.0 / gated_k));
  CHECK(gate_of(of_chosen, 1e3).weights[0] == doctest::Approx(1));
  // Softmax of all, divided by its sum on the chosen, is softmax of the chosen.
  const auto all = gate_of(of_all);
  const double sum = all.weights[0] + all.weights[1] + all.weights[2];
  CHECK(sum < 1 - 1e-3);
  auto divided = of_all;
  divided.renormalize = true;
  for (std::size_t i = 0; i < gated_k; ++i) {
    CHECK(all.weights[i] / sum == doctest::Approx(plain.weights[i]).epsilon(1e-12));
    CHECK(gate_of(divided).weights[i] == doctest::Approx(plain.weights[i]).epsilon(1e-12));
  }
}

TEST_CASE("Eq. 6: the gradient to the logits is the page's, sums to 0, and is 0 for one expert") {
  const std::vector<double> w_bar{0.7, -1.3, 0.4};
  for (const auto& options : {of_chosen, of_all}) {
    const bool all = options == of_all;
    CAPTURE(all);
    const auto of = gate_of(options);
    const auto grad = gate_gradient(options, of, w_bar);
    const auto p = gate_of({.top_k = gated_experts, .renormalize = false});  // softmax of all
    double mean = 0;
    for (std::size_t i = 0; i < gated_k; ++i) {
      mean += of.weights[i] * w_bar[i];
    }
    double sum = 0;
    double along = 0;  // Σ ℓⱼℓ̄ⱼ
    for (int j = 0; j < gated_experts; ++j) {
      CAPTURE(j);
      const auto expert = static_cast<std::size_t>(j);
      const auto at = std::find(of.experts.begin(), of.experts.end(), j) - of.experts.begin();
      const double bar = at < gated_k ? w_bar[static_cast<std::size_t>(at)] : 0;
      const auto rank = std::find(p.experts.begin(), p.experts.end(), j) - p.experts.begin();
      const double weight = all            ? p.weights[static_cast<std::size_t>(rank)]
                            : at < gated_k ? of.weights[static_cast<std::size_t>(at)]
                                           : 0;
      CHECK(grad[expert] == doctest::Approx(weight * (bar - mean)).epsilon(1e-12));
      sum += grad[expert];
      along += gated_logits[j] * grad[expert];
    }
    CHECK(std::abs(sum) < 1e-15);
    // ∂/∂C of Σ w w̄, where the logits are C times these: a central difference.
    const auto loss = [&](double c) {
      const auto at = gate_of(options, c);
      return at.weights[0] * w_bar[0] + at.weights[1] * w_bar[1] + at.weights[2] * w_bar[2];
    };
    CHECK(along == doctest::Approx((loss(1 + 1e-5) - loss(1 - 1e-5)) / 2e-5).epsilon(1e-7));
  }
  auto one = of_chosen;
  one.top_k = 1;
  CHECK(gate_of(one).weights[0] == 1);
  for (const double g : gate_gradient(one, gate_of(one), {1})) {
    CHECK(g == 0);
  }
  const mpi_router::gating_options of_sigmoid{
      .top_k = gated_k, .score_function = mpi_router::score_function::sigmoid, .renormalize = false};
  const auto sigmoid = gate_of(of_sigmoid);
  const auto grad = gate_gradient(of_sigmoid, sigmoid, w_bar);
  CHECK(sigmoid.experts == gate_of(of_chosen).experts);
  for (std::size_t i = 0; i < gated_k; ++i) {
    const auto expert = static_cast<std::size_t>(sigmoid.experts[i]);
    const double w = 1 / (1 + std::exp(-gated_logits[expert]));
    CHECK(sigmoid.weights[i] == doctest::Approx(w).epsilon(1e-12));
    CHECK(grad[expert] == doctest::Approx(w * (1 - w) * w_bar[i]).epsilon(1e-12));
  }
}

TEST_CASE("weights: at any C the same four, from 1/K each to all for the best") {
  const demonstration demo("weights");
  const auto curves = demo.read("curves");
  REQUIRE(curves.size() == 61);
  for (const auto& at : curves) {
    CAPTURE(at.at("c_prime"));
    const double share = at.at("p1") + at.at("p2") + at.at("p3") + at.at("p4");
    CHECK(at.at("w1") + at.at("w2") + at.at("w3") + at.at("w4") == doctest::Approx(1).epsilon(1e-9));
    for (const char* rank : {"1", "2", "3", "4"}) {
      CHECK(at.at(std::string("w") + rank) ==
            doctest::Approx(at.at(std::string("p") + rank) / share).epsilon(1e-9));
    }
    // Ratios of weights are powers: log(w₁/w₂) is C times what it is at C = 1.
    CHECK(std::log(at.at("w1") / at.at("w2")) / at.at("c_prime") ==
          doctest::Approx(std::log(curves[0].at("w1") / curves[0].at("w2")) / 0.1).epsilon(1e-6));
  }
  const auto line = [](const auto& at) {
    return rounded(at.at("w1"), 3) + ", " + rounded(at.at("w2"), 3) + ", " + rounded(at.at("w3"), 3) + ", " +
           rounded(at.at("w4"), 3);
  };
  CHECK(page_says("theory.md", "from " + line(curves.front()) + " to " + line(curves.back()) + "."));
  CHECK(demo.words().find("the chosen are the same") != std::string::npos);
}

TEST_CASE(
    "logits: with C = C′/√N their vector keeps its length over N, with a C that stays it grows with √N") {
  const demonstration demo("logits");
  const auto sizes = demo.read("sizes");
  CHECK(sizes.size() == 9);
  CHECK(sizes.back().at("experts") == 1024);
  for (const auto& row : sizes) {
    const double n = row.at("experts");
    CAPTURE(n);
    CHECK(row.at("length") == doctest::Approx(4).epsilon(0.01));
    CHECK(row.at("length_fixed") == doctest::Approx(2 * std::sqrt(n)).epsilon(0.01));
    CHECK(row.at("one") == doctest::Approx(4 / std::sqrt(n)).epsilon(0.01));
    CHECK(row.at("bound") == doctest::Approx(4 * std::sqrt(64 / n)));
    CHECK(row.at("largest") <= row.at("bound"));
  }
  CHECK(page_says("theory.md", "from 4 to 1024 experts: " + rounded(sizes.front().at("length"), 2) + " and " +
                                   rounded(sizes.back().at("length"), 2) +
                                   " for the vector; with a C that stays, " +
                                   rounded(sizes.front().at("length_fixed"), 2) + " and " +
                                   rounded(sizes.back().at("length_fixed"), 1)));
}

TEST_CASE("rival targets: what the page says of the rows, of v₁ and of the mean of the neurons is measured") {
  const demonstration demo("targets");
  const auto experts = demo.read("experts");
  const auto layers = demo.read("layers");
  REQUIRE(experts.size() == 32);
  REQUIRE(layers.size() == 4);
  for (std::size_t i = 0; i < experts.size(); ++i) {
    CAPTURE(i);
    const auto& e = experts[i];
    CHECK(e.at("layer") == layers[i / 8].at("layer"));
    CHECK(e.at("lambda_step") >= e.at("lambda_stored"));  // a step does not lower ρ
    // λ² is the sum of cos²(r, vᵢ)σᵢ²/σ₁², whose first term is the squared cosine to v₁.
    CHECK(e.at("lambda_step") >= e.at("cos_step_v1"));
    CHECK(e.at("lambda_mean") >= e.at("cos_mean_v1"));
    // Lines obey the inequality of the triangle.
    CHECK(std::acos(e.at("cos_mean_v1")) <=
          std::acos(e.at("cos_step_v1")) + std::acos(e.at("cos_step_mean")) + 1e-9);
  }
  for (const auto& [name, value] : layers[2]) {
    double mean = 0;
    for (std::size_t i = 16; i < 24; ++i) {
      mean += experts[i].at(name) / 8;
    }
    CAPTURE(name);
    CHECK(value == doctest::Approx(mean).epsilon(1e-9));
  }
  std::string shares;
  std::string nulls;
  for (const auto& l : layers) {
    const std::string line =
        std::string("| ") + (l.at("mpi") > 0 ? "MPI" : "usual") + ", layer " + rounded(l.at("layer"), 0) +
        " | " + rounded(l.at("lambda_stored"), 2) + " | " + rounded(l.at("lambda_step"), 2) + " | " +
        rounded(l.at("lambda_mean"), 2) + " | " + rounded(l.at("cos_step_v1"), 2) + " | " +
        rounded(l.at("cos_mean_v1"), 2) + " | " + rounded(l.at("rank_one_share"), 3) + " |";
    CAPTURE(line);
    CHECK(page_says("theory.md", line));
    shares += rounded(100 * l.at("rank_one_share"), 0) + ", ";
    nulls += rounded(std::sqrt(1 / (256 * l.at("rank_one_share"))), 2) + ", ";
  }
  CAPTURE(shares);
  CHECK(page_says("theory.md", shares.substr(0, shares.size() - 2) + " % of ‖A‖_F²"));
  CAPTURE(nulls);
  CHECK(page_says("theory.md", "Of a random row λ has the root mean square ‖A‖_F/(√D σ₁), on any matrix: " +
                                   nulls.substr(0, nulls.size() - 2) + " in the four layers"));
  const auto null = mpi_router::null_model(128, 256);
  CHECK(page_says("theory.md", "(F = 128, D = 256) is " + rounded(null.stored, 3) + ", and " +
                                   rounded(null.one_step, 3) + " after a step"));
}

namespace {

/// The numbers of a line of a table, between its name and its end.
std::vector<double> numbers_of(const std::string& page, const std::string& name) {
  const std::string text = text_of(std::filesystem::path(THEORY_PAGES) / page);
  const auto at = text.find("| " + name + " | 0.");
  REQUIRE(at != text.npos);
  std::istringstream line(text.substr(at + name.size() + 4, text.find('\n', at) - at - name.size() - 4));
  std::vector<double> numbers;
  char bar = 0;
  for (double x = 0; line >> x; line >> bar) {
    numbers.push_back(x);
  }
  return numbers;
}

}  // namespace

TEST_CASE("Table 5 beside the null: what is printed, the shape's null, and both norms") {
  const auto null = mpi_router::null_model(768, 1536);
  const auto usual = numbers_of("theory.md", "usual");
  const auto mpi = numbers_of("theory.md", "MPI, r′");
  REQUIRE(usual.size() == 13);
  REQUIRE(mpi.size() == 13);
  CHECK(rounded(usual[12], 3) == rounded(null.stored, 3));
  CHECK(rounded(mpi[12], 3) == rounded(null.one_step, 3));
  double least = 1;
  double most = 0;
  for (std::size_t layer = 0; layer < 12; ++layer) {
    CHECK(usual[layer] < null.stored);  // no layer reaches the null
    CHECK(mpi[layer] < null.one_step);
    least = std::min(least, mpi[layer] - usual[layer]);
    most = std::max(most, mpi[layer] - usual[layer]);
  }
  CHECK(page_says("theory.md", "rises by " + rounded(least, 2) + " to " + rounded(most, 2) +
                                   ", and the null, by the step alone, by " +
                                   rounded(null.one_step - null.stored, 3)));
  CHECK(page_says("theory.md", "√(5/8) = " + rounded(std::sqrt(5.0 / 8), 3)));
  CHECK(rounded(mpi_router::null_model(1000, 2900).stored, 2) == rounded(usual[0], 2));
  // λ² = ‖A‖_F²/(D σ₁²) of a random row: the share σ₁²/‖A‖_F² is 1/(D λ²).
  const auto [low, high] = std::minmax_element(usual.begin(), usual.end() - 1);
  CHECK(page_says("theory.md", "where σ₁² is " + rounded(100 / (1536 * *high * *high), 1) + " to " +
                                   rounded(100 / (1536 * *low * *low), 1) + " % of ‖A‖_F²"));
  CHECK(page_says("theory.md",
                  "the Gaussian limit is " + rounded(100 / (1536 * null.stored * null.stored), 1) + " %"));
  CHECK(page_says("theory.md", "nulls of " + rounded(1 / std::sqrt(1536.0), 3) + " and " +
                                   rounded(std::sqrt((1 + 3 * 2 + 4) / (3 * 1536.0)), 3) +
                                   ", and 0.67 would be one direction with " + rounded(0.67 * 0.67, 2)));
  CHECK(page_says("theory.md",
                  "below the " + rounded(mpi_router::null_model(128, 256).stored, 3) + " of their shape"));
  for (int f = 1; f <= 4096; f *= 2) {
    for (int d = 1; d <= 4096; d += 137) {
      CHECK(mpi_router::null_model(f, d).one_step > std::sqrt(5.0 / 8) - 1e-12);
    }
  }
  CHECK(mpi_router::null_model(7, 7).one_step == doctest::Approx(std::sqrt(5.0 / 8)).epsilon(1e-12));
}

TEST_CASE("drift, exactly: tan e = κ² tan(e + δ), and beyond tan δ = (1 − κ²)/(2κ) the row is lapped") {
  using namespace mpi_router;
  for (const double kappa : {0.5, 0.8, 0.95}) {
    const double most = std::atan((1 - kappa * kappa) / (2 * kappa));
    for (const double delta : {0.5 * most, 0.99 * most, 1.01 * most, 1.5 * most}) {
      CAPTURE(kappa);
      CAPTURE(delta / most);
      std::vector<double> row{1, 0};
      std::vector<double> scratch(2);
      double behind = 0;
      double farthest = 0;
      for (int time = 1; time <= 2000; ++time) {
        const double c = std::cos(delta * time);
        const double s = std::sin(delta * time);
        const std::vector<double> a{c, s, -kappa * s, kappa * c};
        const std::vector<double> v1{c, s};
        stateful_power_step(gram(gate_fd(a.data(), 2, 2)), row, scratch, 1.0);
        behind = line_angle<double>(row, v1);
        farthest = std::max(farthest, behind);
      }
      if (delta < most) {
        CHECK(std::tan(behind) == doctest::Approx(kappa * kappa * std::tan(behind + delta)).epsilon(1e-6));
        CHECK(farthest < std::atan(kappa) + 1e-9);  // that of the longest δ, where tan(e + δ) = 1/κ
      } else {
        CHECK(farthest > std::numbers::pi / 4);  // farther than any e that stays
      }
    }
  }
}
