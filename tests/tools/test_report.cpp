// The report page of verify_checkpoint: complete, self-contained, safe against names, and honest without
// gnuplot.
#include <doctest/doctest.h>
#include "program.hpp"

namespace test_report {
using namespace tool_test;

namespace {

std::string page_of(const temporary_folder& folder, std::vector<std::string> arguments,
                    const std::string& environment = "") {
  arguments.push_back("--report");
  arguments.push_back(folder / "page");
  const auto result = run(arguments, environment);
  CAPTURE(result.err);
  REQUIRE(result.status == 0);
  return read_bytes(folder / "page/index.html");
}

}  // namespace

TEST_CASE("the page has every figure and every row, and fetches nothing") {
  const temporary_folder folder;
  const auto page = page_of(folder, {});
  CHECK(count(page, "<figure>") == 12);  // six for each of the two models
  CHECK(count(page, "<svg role=\"img\" aria-label=") == (has_gnuplot() ? 12 : 0));
  CHECK(count(page, "<tr><td>") == 4 + 32);                         // layers, experts
  CHECK(count(page, "http") == count(page, "http://www.w3.org/"));  // namespaces of SVG alone
  CHECK(count(page, "src=") == 0);
  CHECK(contains(page, "--report " + (folder / "page").string()));
  // The numbers beside the figures are those of the analysis.
  const auto document = run_json({});
  const auto csv = read_bytes(folder / "page/data/checkpoint-0-cosine.csv");
  CHECK(count(csv, "\n") == 17);
  const auto& first = document["layers"][0]["experts"][0];
  double layer = -1;
  double expert = -1;
  double stored = -1;
  double step = -1;
  const auto line = csv.substr(csv.find('\n') + 1);
  REQUIRE(std::sscanf(line.c_str(), "%lf,%lf,%lf,%lf", &layer, &expert, &stored, &step) == 4);
  CHECK(stored == doctest::Approx(first["cosine_stored"].get<double>()).epsilon(1e-9));
  CHECK(step == doctest::Approx(first["cosine_step"].get<double>()).epsilon(1e-9));
}

TEST_CASE("the angle stays below the bound κ^{2k} in the numbers of the figure") {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{}, {"--no-svd"}}) {
    const temporary_folder folder;
    const auto page = page_of(folder, arguments);
    std::istringstream lines(read_bytes(folder / "page/data/checkpoint-1-convergence.csv"));
    std::string line;
    REQUIRE(std::getline(lines, line));
    int checked = 0;
    while (std::getline(lines, line)) {
      double chosen = 0;
      double layer = 0;
      double expert = 0;
      double step = 0;
      double angle = 0;
      double bound = 0;
      REQUIRE(std::sscanf(line.c_str(), "%lf,%lf,%lf,%lf,%lf,%lf", &chosen, &layer, &expert, &step, &angle,
                          &bound) == 6);
      CHECK(angle <= bound * (1 + 1e-6) + 1e-7);
      ++checked;
    }
    CHECK(checked > 20);
    CHECK(contains(page, "with --no-svd nothing is decomposed") == !arguments.empty());
  }
}

TEST_CASE("names from the checkpoint stay text") {
  const temporary_folder folder;
  checkpoint_builder builder;
  add_layer(builder, "<script>alert('x')</script>&\".", random_layer(3, 2, 4, 5));
  builder.write(folder / "m.safetensors");
  const auto page = page_of(folder, {folder / "m.safetensors"});
  CHECK_FALSE(contains(page, "<script>alert"));
  CHECK(contains(page, "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;.mlp"));
}

TEST_CASE("one expert, and a model without any direction, have a page too") {
  const temporary_folder folder;
  checkpoint_builder one;
  add_layer(one, "layers.0.", random_layer(5, 1, 6, 9));
  one.write(folder / "one.safetensors");
  CHECK(count(page_of(folder, {folder / "one.safetensors"}), "<figure>") == 6);
  checkpoint_builder zero;
  auto layer = random_layer(5, 2, 6, 9);
  layer.gates.assign(layer.gates.size(), 0.0F);
  add_layer(zero, "layers.0.", layer);
  zero.write(folder / "zero.safetensors");
  const auto page = page_of(folder, {folder / "zero.safetensors"});
  CHECK(contains(page, "zero_image"));
  CHECK(contains(page, "No row of this checkpoint has a direction"));
}

TEST_CASE("figures are drawn in every locale, without complaint") {
  const temporary_folder folder;
  const auto result = run({"--report", folder / "page"}, "LC_ALL=C LANG=C");
  CHECK(result.status == 0);
  CHECK_FALSE(contains(result.err, "warning"));
}

TEST_CASE("without gnuplot the numbers are there and the page says what is missing") {
  const temporary_folder folder;
  const auto page = page_of(folder, {}, "PATH=/nonexistent");
  CHECK(contains(page, "gnuplot is missing"));
  CHECK(count(page, "<svg") == 0);
  CHECK(count(page, "<tr><td>") == 4 + 32);
  CHECK(read_bytes(folder / "page/data/checkpoint-0-spectra.csv").size() > 1000);
}

TEST_CASE("the table of the README is what the program prints") {
  const auto printed = run({}).out;
  std::istringstream readme(read_bytes(README));
  int lines = 0;
  for (std::string line; std::getline(readme, line);) {
    if (line.starts_with("layer (means)") || line.starts_with("tiny-")) {
      CHECK_MESSAGE(contains(printed, line), line);
      ++lines;
    }
  }
  CHECK(lines == 5);
}

TEST_CASE("a file is no folder") {
  const temporary_folder folder;
  write_bytes(folder / "file", "x");
  check_refused({"--report", folder / "file"}, "--report needs a folder");
}

TEST_CASE("FILE.html is the page, and its data lies beside it") {
  const temporary_folder folder;
  const auto result = run({"--report", folder / "sub/page.html"}, "PATH=/nonexistent");
  REQUIRE(result.status == 0);
  CHECK(contains(result.err, "report: " + (folder / "sub/page.html").string() + "\n"));
  CHECK(count(read_bytes(folder / "sub/page.html"), "<tr><td>") == 4 + 32);
  CHECK(read_bytes(folder / "sub/page-data/checkpoint-0-spectra.csv").size() > 1000);
}

}  // namespace test_report
