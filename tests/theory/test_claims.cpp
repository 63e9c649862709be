// Every figure's numbers are made anew by its program, and what the program and docs/theory.md say is checked
// in them.
#include <mpi_router/verify/null_model.hpp>

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <numbers>
#include <sstream>
#include <string>
#include <vector>

namespace {

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

using table = std::vector<std::map<std::string, double>>;

/// Runs theory_<name> in a new folder, which goes when the object does.
class demonstration {
 public:
  explicit demonstration(const std::string& name, const std::string& environment = "")
      : name_(name), folder_(make_folder()) {
    const std::string command =
        environment + " '" + THEORY_PROGRAMS + "/theory_" + name + "' '" + folder_.string() + "' 2>&1";
    std::FILE* const pipe = ::popen(command.c_str(), "r");
    REQUIRE(pipe != nullptr);
    for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) {
      words_ += static_cast<char>(c);
    }
    const int status = ::pclose(pipe);
    CAPTURE(words_);
    REQUIRE(WIFEXITED(status));
    REQUIRE(WEXITSTATUS(status) == 0);
  }
  demonstration(const demonstration&) = delete;
  demonstration& operator=(const demonstration&) = delete;
  ~demonstration() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  [[nodiscard]] const std::string& words() const { return words_; }
  /// The SVG of a picture of it; empty where there is none.
  [[nodiscard]] std::string picture(const std::string& name) const {
    return text_of(folder_ / (name + ".svg"));
  }

  [[nodiscard]] table read(const std::string& part) const {
    std::ifstream file(folder_ / (name_ + "-" + part + ".csv"));
    std::string line;
    REQUIRE(std::getline(file, line));
    const auto names = fields(line);
    table rows;
    while (std::getline(file, line)) {
      if (line.empty()) {
        continue;
      }
      const auto values = fields(line);
      REQUIRE(values.size() == names.size());
      auto& row = rows.emplace_back();
      for (std::size_t i = 0; i < names.size(); ++i) {
        row[names[i]] =
            values[i].empty()
                ? std::numeric_limits<double>::quiet_NaN()
                : std::strtod(values[i].c_str(), nullptr);  // subnormal numbers too, which stod refuses
      }
    }
    REQUIRE(!rows.empty());
    return rows;
  }

 private:
  static std::filesystem::path make_folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "theory-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    return pattern;
  }
  static std::vector<std::string> fields(const std::string& line) {
    std::vector<std::string> out(1);
    for (const char c : line) {
      if (c == ',') {
        out.emplace_back();
      } else {
        out.back() += c;
      }
    }
    return out;
  }

  std::string name_;
  std::filesystem::path folder_;
  std::string words_;
};

bool has_gnuplot() { return std::system("gnuplot --version >/dev/null 2>&1") == 0; }

std::string rounded(double x, int digits) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, x);
  return text.data();
}

/// Whether a page of docs/ has these words, wherever its lines break.
bool page_says(const std::string& page, const std::string& words) {
  std::istringstream in(text_of(std::filesystem::path(THEORY_PAGES) / page));
  std::string text;
  for (std::string word; in >> word;) {
    text += word + " ";
  }
  return text.find(words) != text.npos;
}

}  // namespace

TEST_CASE(
    "every picture has a title, parameters and a caption, suits black paper, or its absence is explained") {
  const std::map<std::string, std::vector<std::string>> pictures{{"router", {"router"}},
                                                                 {"ellipse", {"ellipse", "ellipse-quotient"}},
                                                                 {"logits", {"logits"}},
                                                                 {"targets", {"targets"}},
                                                                 {"sphere", {"sphere", "sphere-steps"}},
                                                                 {"eta", {"eta", "eta-angles"}},
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
        for (const char* unwanted : {"Produced by GNUPLOT", "<title>gnuplot_plot", "fill=\"#ffffff\""}) {
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

TEST_CASE("η: measured rates are those of theory within 5 %, and η = 1/ρ is the power step to rounding") {
  const demonstration demo("eta");
  int arrived = 0;
  for (const auto& row : demo.read("rates")) {
    CAPTURE(row.at("t"));
    // σ = 1, 0.8, …, 0.3: the slowest of the two ends of the rest of the spectrum.
    const double theory =
        std::max(std::abs(1 - row.at("t") * (1 - 0.64)), std::abs(1 - row.at("t") * (1 - 0.09)));
    CHECK(row.at("predicted") == doctest::Approx(theory).epsilon(1e-9));
    if (std::isnan(row.at("measured"))) {
      CHECK(theory > 0.99);  // only what should not arrive does not
    } else {
      ++arrived;
      CHECK(row.at("measured") == doctest::Approx(theory).epsilon(0.05));
    }
  }
  CHECK(arrived > 40);
  CHECK(demo.read("equality")[0].at("largest_difference") < 1e-14);
  const auto last = demo.read("angles").back();
  CHECK(last.at("t_over") > 5);  // degrees: it never comes near
  CHECK(last.at("t_best") < last.at("t_1"));
  CHECK(last.at("t_1") < last.at("t_0_4"));
  CHECK(last.at("t_0_4") < last.at("t_0_1"));
}

TEST_CASE("λ: one step lifts it to its null, and the cosine stays small") {
  const demonstration demo("lambda");
  CHECK(demo.picture("lambda").empty() != has_gnuplot());
  CHECK(demo.picture("lambda-shapes").empty() != has_gnuplot());
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
  const auto real = demo.read("real");
  CHECK(real.size() == 32);
  double usual = 0;
  double mpi = 0;
  for (const auto& row : real) {
    (row.at("mpi") > 0 ? mpi : usual) += row.at("angle_deg") / 16;
    CHECK(row.at("psi_deg") > 0);
    CHECK(row.at("psi_deg") < 90);
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
