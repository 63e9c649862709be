// Why v₁, the paper's numbers beside the null, and what training shows: sections 0, 8 and 12 of
// docs/theory.md.
#include "demonstration.hpp"

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
                                   rounded(sizes.back().at("length"), 2)));
}

TEST_CASE("rival targets: what the page says of the rows, of v₁ and of the mean of the neurons is measured") {
  const demonstration demo("targets");
  CHECK(demo.read("experts").size() == 32);
  for (const auto& e : demo.read("experts")) {
    CHECK(e.at("lambda_step") >= e.at("lambda_stored"));  // a step does not lower ρ
    for (const char* name : {"lambda_stored", "lambda_step", "lambda_mean", "cos_step_v1", "cos_mean_v1"}) {
      CHECK(e.at(name) > 0);
      CHECK(e.at(name) < 1);
    }
    CHECK(e.at("rank_one_share") > 1.0 / 128);  // the mean of the shares of all 128 directions
  }
  std::string shares;
  std::string nulls;
  for (const auto& l : demo.read("layers")) {
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
  CHECK(page_says("theory.md", nulls.substr(0, nulls.size() - 2) + " in the four layers"));
}

TEST_CASE("Table 5 beside the null: both norms, and no shape has a null after one step below √(5/8)") {
  const auto null = mpi_router::null_model(1000, 2900);
  const double frobenius = 1 / std::sqrt(2048.0);
  const double frobenius_step = std::sqrt((1 + 3 * 2.9 + 2.9 * 2.9) / (3.9 * 2048));
  CHECK(page_says("theory.md", "0.37 | " + rounded(null.stored, 3) + " | " + rounded(frobenius, 3) + " |"));
  CHECK(page_says("theory.md", "0.67 | " + rounded(null.stored, 3) + " | " + rounded(frobenius, 3) + " |"));
  CHECK(page_says("theory.md",
                  "0.67 | " + rounded(null.one_step, 3) + " | " + rounded(frobenius_step, 3) + " |"));
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

TEST_CASE("losses: the page's table is that of the README, and its means and spread are of it") {
  double widest = 0;
  std::string means;
  const std::string page = text_of(std::filesystem::path(THEORY_PAGES) / "theory.md");
  for (const std::string router : {"usual", "MPI, C′ = 4", "MPI, C′ = 1"}) {
    CAPTURE(router);
    const auto at = page.find("| " + router + " | 1.");
    REQUIRE(at != page.npos);
    std::istringstream line(page.substr(at + router.size() + 4));
    std::array<double, 3> seeds{};
    char bar = 0;
    line >> seeds[0] >> bar >> seeds[1] >> bar >> seeds[2];
    CHECK(page_says("../README.md", "| " + router + " | " + rounded(seeds[0], 3) + ", " +
                                        rounded(seeds[1], 3) + ", " + rounded(seeds[2], 3) + " |"));
    means += rounded((seeds[0] + seeds[1] + seeds[2]) / 3, 3) + " ";
    const auto [least, largest] = std::minmax_element(seeds.begin(), seeds.end());
    widest = std::max(widest, *largest - *least);
  }
  CAPTURE(means);
  CHECK(page_says("theory.md", "The means are " + means.substr(0, 5) + ", " + means.substr(6, 5) + " and " +
                                   means.substr(12, 5) + ","));
  CHECK(page_says("theory.md", "differ by up to " + rounded(widest, 3)));
}

TEST_CASE("ablation: what the page says of the losses, seed by seed, is so in its table") {
  const auto row =
      [page = text_of(std::filesystem::path(THEORY_PAGES) / "theory.md")](const std::string& router) {
        const std::string begin = "| " + router + " | 2.";
        REQUIRE(page.find(begin) != page.npos);
        std::istringstream line(page.substr(page.find(begin) + begin.size() - 2));
        std::array<double, 7> numbers{};  // three losses, two λ, cosine, MaxVio
        char bar = 0;
        for (double& x : numbers) {
          line >> x >> bar;
        }
        return numbers;
      };
  const auto usual = row("usual");
  const auto range = [&](const std::array<double, 7>& other) {
    const std::array<double, 3> gains{usual[0] - other[0], usual[1] - other[1], usual[2] - other[2]};
    const auto [least, largest] = std::minmax_element(gains.begin(), gains.end());
    return std::pair(rounded(*least, 4), rounded(*largest, 4));
  };
  const auto mpi = range(row("MPI"));
  CHECK(
      page_says("theory.md", "by " + mpi.first + " to " + mpi.second + ", which is less than seeds differ"));
  const auto retraction = range(row("retraction alone"));
  CHECK(page_says("theory.md", "below it by " + retraction.first + " to " + retraction.second));
  CHECK(row("MPI")[5] > 0.9);
  CHECK(row("retraction alone")[5] < usual[5] + 0.01);
  CHECK(row("MPI")[6] > usual[6]);
  const auto null = mpi_router::null_model(64, 64);
  CHECK(page_says("theory.md", "is " + rounded(null.stored, 3) + " and " + rounded(null.one_step, 3) + "."));
}

TEST_CASE(
    "overhead: 4 – 11 % of a layer and 0.2 % of a model are the same cost, by the table of performance.md") {
  const auto milliseconds = [](const std::string& row) {
    std::istringstream lines(text_of(std::filesystem::path(THEORY_PAGES) / "performance.md"));
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("| " + row)) {
        return std::strtod(line.substr(line.find('|', 2) + 1).c_str(), nullptr);
      }
    }
    return 0.0;
  };
  const double usual = milliseconds("the usual one |");
  REQUIRE(usual > 0);
  for (const auto& [name, row] : {std::pair{"formula", "MPI by PyTorch's formula |"},
                                  std::pair{"main_grad", "the same, gradient added to sums in bf16"}}) {
    CAPTURE(name);
    const double more = milliseconds(row) - usual;
    REQUIRE(more > 0);
    CHECK(page_says("theory.md", rounded(more, 2) + " ms (" + rounded(100 * more / usual, 1) + " %"));
    const double tokens = 16384 * more / usual / 0.002;
    CHECK(page_says("theory.md", rounded(tokens / 1000, 0) + " thousand"));
    CHECK(page_says("theory.md", rounded(tokens / 2000, 0) + (more < 1 ? " and " : " thousand")));
  }
  CHECK(page_says("theory.md", rounded(100 * 2.0 * 64 / (3 * 16384 * 8), 3) + " % here"));
}
