// Why v₁, the paper's numbers beside the null, and the exact floor of drift: sections 0, 8 and 10 of
// docs/theory.md.
#include "demonstration.hpp"

#include <mpi_router/backend/dense.hpp>
#include <mpi_router/manifold/power_step.hpp>
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
  CHECK(page_says("theory.md", "λ with σ₁ has the root mean square ‖A‖_F/(√D σ₁), on any matrix: " +
                                   nulls.substr(0, nulls.size() - 2) + " in the four layers"));
  const auto null = mpi_router::null_model(128, 256);
  CHECK(page_says("theory.md", "(F = 128, D = 256) is " + rounded(null.stored, 3) + ", and " +
                                   rounded(null.one_step, 3) + " after a step"));
}

TEST_CASE("Table 5 beside the null: both norms, and no shape has a null after one step below √(5/8)") {
  const auto null = mpi_router::null_model(1000, 2900);
  const double frobenius = 1 / std::sqrt(2048.0);
  const double frobenius_step = std::sqrt((1 + 3 * 2.9 + 2.9 * 2.9) / (3.9 * 2048));
  CHECK(page_says("theory.md", "0.37 | " + rounded(null.stored, 3) + " | " + rounded(frobenius, 3) + " |"));
  CHECK(page_says("theory.md", "0.67 | " + rounded(null.stored, 3) + " | " + rounded(frobenius, 3) + " |"));
  CHECK(page_says("theory.md",
                  "0.67 | " + rounded(null.one_step, 3) + " | " + rounded(frobenius_step, 3) + " |"));
  CHECK(page_says("theory.md", "the null is " + rounded(mpi_router::null_model(100, 200).stored, 3) +
                                   " at q = 2, " + rounded(mpi_router::null_model(100, 267).stored, 3) +
                                   " at 2.67, " + rounded(mpi_router::null_model(100, 350).stored, 3) +
                                   " at 3.5."));
  CHECK(page_says("theory.md", "√(5/8) = " + rounded(std::sqrt(5.0 / 8), 3)));
  CHECK(page_says("theory.md", "σ₁² ≥ " + rounded(0.67 * 0.67, 2) + " ‖W_g‖_F²"));
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
