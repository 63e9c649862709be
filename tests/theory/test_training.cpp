// What training shows: section 12 of docs/theory.md.
#include "demonstration.hpp"

#include <mpi_router/verify/null_model.hpp>

using namespace claims;

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

namespace {

struct ablated {
  std::array<double, 3> losses{};
  std::array<double, 4> means{};  ///< λ by σ₁ and by Frobenius, cosine, MaxVio
};

/// figures/train_moe.csv: the last step of each seed, by router.
std::map<std::string, ablated> ablation() {
  std::ifstream file(std::filesystem::path(THEORY_PAGES) / "figures" / "train_moe.csv");
  std::map<std::string, ablated> out;
  std::string line;
  std::getline(file, line);  // where it comes from
  std::getline(file, line);
  REQUIRE(line == "router,seed,step,test_loss,lambda_spectral,lambda_frobenius,cosine,maxvio_batch");
  while (std::getline(file, line)) {
    std::istringstream fields(line.substr(line.find(',') + 1));
    auto& of = out[line.substr(0, line.find(','))];
    std::size_t seed = 0;
    double step = 0;
    char comma = 0;
    fields >> seed >> comma >> step >> comma;
    REQUIRE(step == 400);
    fields >> of.losses.at(seed - 1);
    for (double& mean : of.means) {
      double x = 0;
      fields >> comma >> x;
      mean += x / 3;
    }
    REQUIRE(!fields.fail());
  }
  return out;
}

/// What `other` is lower by than the usual router, seed by seed, least first.
std::array<double, 3> gains(const ablated& usual, const ablated& other) {
  std::array<double, 3> out{};
  for (std::size_t i = 0; i < 3; ++i) {
    out[i] = usual.losses[i] - other.losses[i];
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

TEST_CASE("ablation: the page's table and what it says, seed by seed, are of figures/train_moe.csv") {
  const auto runs = ablation();
  REQUIRE(runs.size() == 4);
  for (const auto& [key, name] :
       {std::pair{"usual", "usual"}, std::pair{"mpi", "MPI"},
        std::pair{"retraction-only", "retraction alone"}, std::pair{"power-step-only", "power step alone"}}) {
    std::string line = std::string("| ") + name + " |";
    for (const double x : runs.at(key).losses) {
      line += " " + rounded(x, 4) + " |";
    }
    for (const double x : runs.at(key).means) {
      line += " " + rounded(x, 3) + " |";
    }
    CAPTURE(line);
    CHECK(page_says("theory.md", line));
  }
  const auto& usual = runs.at("usual");
  const auto mpi = gains(usual, runs.at("mpi"));
  CHECK(page_says("theory.md", "MPI is lower than the usual router by " + rounded(mpi[0], 4) + " to " +
                                   rounded(mpi[2], 4)));
  const auto retraction = gains(usual, runs.at("retraction-only"));
  CHECK(page_says("theory.md",
                  "is lower by " + rounded(retraction[0], 4) + " to " + rounded(retraction[2], 4)));
  const auto power = gains(usual, runs.at("power-step-only"));
  CHECK(power[1] > 0);
  CHECK(page_says("theory.md", "lower in two seeds and higher, by " + rounded(-power[0], 4) + ", in one"));
  CHECK(runs.at("retraction-only").means[2] < usual.means[2]);  // rows no nearer to v₁
  CHECK(runs.at("mpi").means[3] > usual.means[3]);              // balance no better
  const auto balance = [](double from, double to) {
    return "| " + rounded(from, 3) + " → " + rounded(to, 3) + " |";
  };
  CHECK(page_says("theory.md", balance(usual.means[3], runs.at("mpi").means[3])));
  const auto null = mpi_router::null_model(64, 64);
  CHECK(page_says("theory.md", "are " + rounded(null.stored, 3) + " with σ₁, " + rounded(null.one_step, 3) +
                                   " after one step, and " + rounded(1 / std::sqrt(64.0), 3) +
                                   " with ‖W_g‖_F, " + rounded(std::sqrt(5 / (2 * 64.0)), 3) +
                                   " after one step."));
}

TEST_CASE(
    "overhead: 4 – 11 % of a layer and 0.2 % of a model are the same cost, by the table of lab-notebook.md") {
  const auto milliseconds = [](const std::string& row) {
    std::istringstream lines(text_of(std::filesystem::path(THEORY_PAGES) / "lab-notebook.md"));
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
    const double millions = 16384 * more / usual / 0.002 / 1e6;  // of tokens
    CHECK(page_says("theory.md", "about " + rounded(millions, 1) + " million"));
    // Half of them, where such layers take half of the time.
    CHECK(page_says("theory.md", more < 1 ? "about " + rounded(millions / 2, 1) + " and "
                                          : " and " + rounded(millions / 2, 1) + " million"));
  }
  CHECK(page_says("theory.md", "±" + rounded(16384 * 0.02 / 0.002 / 1e6, 2) + " million tokens"));
  CHECK(page_says("theory.md", rounded(100 * 2.0 * 64 / (3 * 16384 * 8), 3) + " % here"));
}
