// Every figure's numbers are made anew by its program, and what the program and docs/theory.md say is checked
// in them.
#include "demonstration.hpp"

using namespace claims;

TEST_CASE(
    "every picture has a title, parameters and a caption, suits black paper, or its absence is explained") {
  const std::map<std::string, std::vector<std::string>> pictures{{"layer", {"layer"}},
                                                                 {"router", {"router"}},
                                                                 {"ellipse", {"ellipse", "ellipse-quotient"}},
                                                                 {"weights", {"weights"}},
                                                                 {"logits", {"logits"}},
                                                                 {"targets", {"targets"}},
                                                                 {"sphere", {"sphere", "sphere-steps"}},
                                                                 {"eta", {"eta", "eta-angles"}},
                                                                 {"lambda", {"lambda", "lambda-shapes"}},
                                                                 {"drift", {"drift", "drift-floor"}},
                                                                 {"gap", {"gap"}},
                                                                 {"one_step", {"one_step", "one_step-real"}},
                                                                 {"layouts", {"layouts"}}};
  for (const auto& [program, names] : pictures) {
    const demonstration demo(program);
    CHECK(demo.words().find("difficulty fitting") ==
          std::string::npos);  // gnuplot, of a legend that is too large
    for (const auto& name : names) {
      CAPTURE(name);
      const std::string svg = demo.picture(name);
      REQUIRE(svg.empty() != has_gnuplot());
      if (has_gnuplot()) {
        CHECK(svg.find("</svg>") != svg.npos);
        CHECK(svg.find("<title id=\"" + name + "-title\">") != svg.npos);
        CHECK(svg.find("<desc id=\"" + name + "-desc\">") != svg.npos);
        CHECK(svg.find("prefers-color-scheme: dark") != svg.npos);
        // The figure of the page has the same words and parameters.
        const auto words = [](const std::string& text) {
          const auto from = text.find("<title id=");
          return from == text.npos ? "" : text.substr(from, text.find("</desc>") - from);
        };
        CHECK(words(svg) ==
              words(text_of(std::filesystem::path(THEORY_PAGES) / "figures" / (name + ".svg"))));
        for (const char* unwanted :
             {"Produced by GNUPLOT", "<title>gnuplot_plot", "<title>NaN", "fill=\"#ffffff\""}) {
          CHECK(svg.find(unwanted) == svg.npos);
        }
      }
    }
  }
  const demonstration without("drift", "PATH=/nonexistent");
  CHECK(without.picture("drift").empty());
  CHECK(without.words().find("gnuplot is missing") != std::string::npos);
  CHECK(without.read("course").size() == 161);
}

TEST_CASE("layer: the ascent by 1/ρ is tangent at the row, and r′ lies on its radius, nearer to v₁") {
  const demonstration demo("layer");
  const auto points = demo.read("points");
  REQUIRE(points.size() == 3);
  const auto dot = [&](std::size_t i, std::size_t j) {
    return points[i].at("v1") * points[j].at("v1") + points[i].at("v2") * points[j].at("v2") +
           points[i].at("v3") * points[j].at("v3");
  };
  CHECK(dot(0, 0) == doctest::Approx(1).epsilon(1e-10));
  CHECK(dot(2, 2) == doctest::Approx(1).epsilon(1e-10));
  CHECK(dot(0, 1) == doctest::Approx(1).epsilon(1e-10));  // ⟨r̂, r̂ + g/ρ⟩ = 1: g is tangent
  CHECK(dot(1, 2) == doctest::Approx(std::sqrt(dot(1, 1))).epsilon(1e-10));
  CHECK(dot(1, 1) > 1);
  CHECK(points[2].at("v1") > points[0].at("v1"));
  const auto degrees = [&](std::size_t i) {
    return rounded(std::acos(points[i].at("v1")) * 180 / std::numbers::pi, 0);
  };
  CHECK(demo.words().find("from " + degrees(0) + "° to " + degrees(2) + "° from v₁") != std::string::npos);
  for (const auto& at : demo.read("arc")) {  // on the sphere
    CHECK(std::hypot(at.at("v1"), at.at("v2"), at.at("v3")) == doctest::Approx(1).epsilon(1e-10));
  }
}

TEST_CASE("sphere: MPI is Eq. 9 with η = 1/ρ; a fixed η takes fewer steps, more, or never arrives") {
  const demonstration demo("sphere");
  std::map<int, table> paths;
  for (const auto& row : demo.read("path")) {
    paths[static_cast<int>(row.at("rule"))].push_back(row);
    CHECK(std::hypot(row.at("v1"), row.at("v2"), row.at("v3")) == doctest::Approx(1).epsilon(1e-10));
    // σ = 1, 0.75, 0.4 along the axes: ρ is the Rayleigh quotient of that diagonal matrix.
    CHECK(row.at("rho") == doctest::Approx(std::pow(row.at("v1"), 2) + std::pow(0.75 * row.at("v2"), 2) +
                                           std::pow(0.4 * row.at("v3"), 2))
                               .epsilon(1e-9));
  }
  REQUIRE(paths.size() == 7);
  for (std::size_t k = 1; k < paths[0].size(); ++k) {
    CHECK(paths[0][k].at("rho") > paths[0][k - 1].at("rho"));
  }
  REQUIRE(paths[0].size() == paths[1].size());
  for (std::size_t k = 0; k < paths[0].size(); ++k) {
    for (const char* axis : {"v1", "v2", "v3"}) {
      CHECK(std::abs(paths[0][k].at(axis) - paths[1][k].at(axis)) < 1e-11);  // the CSV has 12 digits
    }
  }
  // MPI, η = 1/ρ, then η = 0.05, 0.5, 1.5 and 2 times 1/σ₁²; 2.5 is beyond 2/(1 − σ₃²/σ₁²) = 2.38.
  const std::vector<std::size_t> steps{9, 9, 234, 23, 8, 6};
  for (std::size_t rule = 0; rule < steps.size(); ++rule) {
    CAPTURE(rule);
    CHECK(paths[static_cast<int>(rule)].size() == steps[rule] + 1);
    CHECK(paths[static_cast<int>(rule)].back().at("angle_deg") < 1);
  }
  CHECK(paths[6].back().at("angle_deg") > 5);
  CHECK(paths[6].back().at("step") > 999);
}

TEST_CASE(
    "sphere: which η is good depends on the scale of the weights; MPI takes the same steps at any scale") {
  const demonstration demo("sphere");
  const auto rows = demo.read("steps");
  int faster = 0;
  int slower = 0;
  for (const auto& row : rows) {
    CAPTURE(row.at("eta"));
    CHECK(row.at("mpi") == 9);
    CHECK(row.at("mpi_doubled") == 9);
    faster += row.at("steps") < 9 ? 1 : 0;
    slower += row.at("steps") > 9 ? 1 : 0;
    // Twice the weights are four times M, so the same η is four times as long.
    CHECK(std::isnan(row.at("steps")) == (row.at("eta") > 2 / (1 - 0.16)));
    CHECK(std::isnan(row.at("steps_doubled")) == (4 * row.at("eta") > 2 / (1 - 0.16)));
    if (row.at("eta") < 0.1) {
      CHECK(row.at("steps_doubled") == doctest::Approx(row.at("steps") / 4).epsilon(0.05));
    }
  }
  CHECK(faster >= 10);
  CHECK(slower > 50);
}

TEST_CASE("η: measured rates are those of theory within 5 %, and κ² at t = 1, which is MPI") {
  const demonstration demo("eta");
  int arrived = 0;
  int of_mpi = 0;
  for (const auto& row : demo.read("rates")) {
    CAPTURE(row.at("t"));
    // σ = 1, 0.8, …, 0.3: the slowest of the two ends of the rest of the spectrum.
    const double theory =
        std::max(std::abs(1 - row.at("t") * (1 - 0.64)), std::abs(1 - row.at("t") * (1 - 0.09)));
    CHECK(row.at("predicted") == doctest::Approx(theory).epsilon(1e-9));
    if (row.at("t") == 1) {
      ++of_mpi;
      CHECK(row.at("measured") == doctest::Approx(0.64).epsilon(1e-3));
    }
    if (std::isnan(row.at("measured"))) {
      CHECK(theory > 0.99);  // only what should not arrive does not
    } else {
      ++arrived;
      CHECK(row.at("measured") == doctest::Approx(theory).epsilon(0.05));
    }
  }
  CHECK(arrived > 40);
  CHECK(of_mpi == 1);
  const auto last = demo.read("angles").back();
  CHECK(last.at("t_over") > 5);  // degrees: it never comes near
  CHECK(last.at("t_best") < last.at("t_1"));
  CHECK(last.at("t_1") < last.at("t_0_4"));
  CHECK(last.at("t_0_4") < last.at("t_0_1"));
}

TEST_CASE("λ: one step lifts it to its null, and the cosine stays small") {
  const demonstration demo("lambda");
  const auto steps = demo.read("steps");
  CHECK(steps[0].at("lambda") == doctest::Approx(0.5).epsilon(0.05));
  CHECK(steps[1].at("lambda") == doctest::Approx(std::sqrt(5.0 / 8)).epsilon(0.05));
  CHECK(steps[1].at("cosine") < 0.1);
  for (const auto& row : demo.read("shapes")) {
    const double q = row.at("q");
    CAPTURE(q);
    CHECK(row.at("null_stored") == doctest::Approx(1 / (1 + std::sqrt(q))).epsilon(1e-9));
    CHECK(row.at("lambda_stored") == doctest::Approx(row.at("null_stored")).epsilon(0.05));
    CHECK(row.at("lambda_one_step") == doctest::Approx(row.at("null_one_step")).epsilon(0.05));
    CHECK(row.at("cosine_one_step") < 0.2);
    // With ‖A‖_F: 1/D of any matrix, and the moments of Marchenko and Pastur after one step.
    CHECK(row.at("frobenius_stored") == doctest::Approx(1 / std::sqrt(row.at("D"))).epsilon(0.05));
    CHECK(row.at("frobenius_one_step") ==
          doctest::Approx(std::sqrt((1 + 3 * q + q * q) / ((1 + q) * row.at("D")))).epsilon(0.05));
  }
}

TEST_CASE("drift: the floor is κ²δ/(1 − κ²) within 20 %, and the stateless row is left behind") {
  const demonstration demo("drift");
  const auto floors = demo.read("floor");
  CHECK(floors.size() == 32);
  for (const auto& row : floors) {
    const double kappa_squared = std::pow(row.at("kappa"), 2);
    CAPTURE(row.at("kappa"));
    CAPTURE(row.at("delta_deg"));
    const double theory = kappa_squared * row.at("delta_deg") / (1 - kappa_squared);
    CHECK(row.at("measured_deg") == doctest::Approx(theory).epsilon(0.2));
  }
  const auto last = demo.read("course").back();
  CHECK(last.at("stateful_deg") == doctest::Approx(0.64 * 0.5 / 0.36).epsilon(0.2));
  CHECK(last.at("stateless_deg") > 20 * last.at("stateful_deg"));
  CHECK(last.at("stateless_deg") < last.at("stored_deg"));
}

TEST_CASE("gap: certificates hold, are good while there is a gap, and claim nothing at a repeated σ₁") {
  const demonstration demo("gap");
  const auto rows = demo.read("certificates");
  for (const auto& row : rows) {
    CAPTURE(row.at("gap"));
    CHECK(row.at("sigma_low") <= 1);
    CHECK(row.at("sigma_low") > 0.99);
    if (row.at("rigorous") > 0) {
      CHECK(row.at("sigma_high") >= 1);
      CHECK(row.at("gap") > 1e-16);
    } else {
      CHECK(row.at("bound_deg") == doctest::Approx(90));
    }
    if (row.at("gap") > 0) {
      CHECK(row.at("angle_deg") <= row.at("bound_deg") * (1 + 1e-9));
    }
    if (row.at("gap") > 2e-3) {
      CHECK(row.at("rigorous") == 1);
      CHECK(row.at("bound_deg") < 1e-6);
      CHECK(row.at("apart_deg") < 1e-6);
    }
  }
  CHECK(rows.back().at("gap") == 0);
  CHECK(rows.back().at("rigorous") == 0);
  CHECK(rows.back().at("apart_deg") > 1);
}

TEST_CASE("one step: tan ψ = ‖g‖/ρ is what the row moves, shrinks by κ² a step, and settles at the drift") {
  const demonstration demo("one_step");
  std::map<double, table> courses;
  for (const auto& row : demo.read("course")) {
    courses[row.at("delta_deg")].push_back(row);
    const double psi = row.at("psi_deg") * std::numbers::pi / 180;
    CHECK(std::tan(psi) == doctest::Approx(row.at("tan_psi")).epsilon(1e-9));
    CHECK(std::abs(row.at("psi_deg") - row.at("moved_deg")) < 1e-9 + 1e-9 * row.at("psi_deg"));
  }
  REQUIRE(courses.size() == 3);
  const auto& still = courses[0];
  CHECK(still[15].at("psi_deg") / still[14].at("psi_deg") == doctest::Approx(0.49).epsilon(0.05));
  CHECK(still[15].at("psi_deg") / still[15].at("angle_deg") == doctest::Approx(1 - 0.49).epsilon(0.05));
  for (const double delta : {0.02, 0.5}) {
    CHECK(courses[delta].back().at("psi_deg") == doctest::Approx(delta).epsilon(0.05));
    // Seen before the step, the row is behind by the floor and by the turn that it has yet to follow.
    CHECK(courses[delta].back().at("angle_deg") == doctest::Approx(delta / (1 - 0.49)).epsilon(0.05));
  }
}

TEST_CASE("one step: a step of the real rows is as long as their angles before and after it allow") {
  const auto real = demonstration("one_step").read("real");
  const auto experts = demonstration("targets").read("experts");  // the same, in the same order
  REQUIRE(real.size() == 32);
  REQUIRE(experts.size() == 32);
  double usual = 0;
  double mpi = 0;
  for (std::size_t i = 0; i < real.size(); ++i) {
    CAPTURE(i);
    const double before = real[i].at("angle_deg");
    const double after = std::acos(experts[i].at("cos_step_v1")) * 180 / std::numbers::pi;
    CHECK(after < before);
    CHECK(real[i].at("psi_deg") > before - after - 1e-6);
    CHECK(real[i].at("psi_deg") < before + after + 1e-6);
    (real[i].at("mpi") > 0 ? mpi : usual) += before / 16;
  }
  CHECK(mpi < usual);  // rows of the MPI model lie nearer
}

TEST_CASE("layouts: every address is used once, and the strides are those that the names say") {
  const demonstration demo("layouts");
  std::map<std::pair<int, int>, std::map<std::string, double>> cells;
  for (const auto& row : demo.read("cells")) {
    const auto key = std::pair(static_cast<int>(row.at("strip")), static_cast<int>(row.at("address")));
    CHECK(cells.emplace(key, row).second);
  }
  CHECK(cells.size() == 2 * 12 + 4 * 24);
  // [N, F, D] = [2, 2, 3] counts d fastest; [N, D, F] counts f fastest.
  CHECK(cells[{0, 7}].at("expert") == 1);
  CHECK(cells[{0, 4}].at("neuron") == 1);
  CHECK(cells[{0, 4}].at("hidden") == 1);
  CHECK(cells[{1, 3}].at("neuron") == 1);
  CHECK(cells[{1, 3}].at("hidden") == 1);
  CHECK(cells[{2, 6}].at("up") == 1);  // [N, 2F, D] concatenated: F·D = 6 gate numbers come first
  CHECK(cells[{3, 3}].at("up") == 1);  // interleaved: rows of D = 3 in turn
  CHECK(cells[{4, 2}].at("up") == 1);  // [N, D, 2F] concatenated: F = 2 gate numbers come first
  CHECK(cells[{5, 1}].at("up") == 1);  // interleaved: numbers in turn
}
