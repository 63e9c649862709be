// compare --report: the page is complete, self-contained, safe against names, and says what was left out.
#include "versions.hpp"

#include <algorithm>
#include <sstream>

namespace test_compare_report {
using namespace tool_test;

namespace {

/// The fields of the lines of a table, the head left out; -1 where one is empty.
std::vector<std::vector<double>> table_of(const std::string& csv) {
  std::vector<std::vector<double>> rows;
  std::istringstream lines(csv.substr(csv.find('\n') + 1));
  for (std::string line; std::getline(lines, line);) {
    auto& row = rows.emplace_back();
    std::istringstream fields(line + ",");
    for (std::string field; std::getline(fields, field, ',');) {
      row.push_back(field.empty() ? -1 : std::stod(field));
    }
  }
  return rows;
}

}  // namespace

TEST_CASE("the page has every figure and every expert, with the numbers of the JSON") {
  const models m;
  auto l = random_layer(110, 4, 5, 8);
  for (index_t k = 0; k < l.n * l.f; ++k) {
    l.gates[static_cast<std::size_t>(k * l.d)] *= 8;  // a direction that stands out
  }
  m.write(m.a, l);
  m.write(m.b, picked(disturbed(l, 0.02F), {2, 0, 1}));
  const auto result = run(
      {"compare", m.a, m.b, "--top-k", "2", "--report", m.folder / "page", "--json", m.folder / "out.json"});
  REQUIRE(result.status == 0);
  CHECK(result.err.ends_with("report: " + (m.folder / "page/index.html").string() + "\n"));
  CHECK_FALSE(contains(result.err, "arning"));  // of gnuplot
  const auto page = read_bytes(m.folder / "page/index.html");
  CHECK(count(page, "<figure>") == 5);
  CHECK(count(page, "<svg role=\"img\" aria-label=") == (has_gnuplot() ? 5 : 0));
  CHECK(count(page, "<tr><td>") == 1 + 3);                          // layers, experts
  CHECK(count(page, "http") == count(page, "http://www.w3.org/"));  // namespaces of SVG alone
  CHECK(count(page, "src=") == 0);
  CHECK(contains(page, "--report " + (m.folder / "page").string()));
  CHECK(contains(page, "1 of 1 layers, 3 of 4 experts compared."));
  CHECK(contains(page, "<td>4 → 3<td>5<td>8<td class=word>likeness"));
  CHECK(contains(page, "<tr><td>2 → 0<td>"));
  CHECK(contains(page, "<li>not compared: layers.0.mlp: expert 3 of A has no counterpart in B"));

  const auto layer = json::parse(read_bytes(m.folder / "out.json"))["layers"][0];
  const auto experts = table_of(read_bytes(m.folder / "page/data/comparison-experts.csv"));
  REQUIRE(experts.size() == 3);
  for (std::size_t i = 0; i < experts.size(); ++i) {
    const auto& e = layer["experts"][i];
    const double sigma = e["a"]["sigma1"];
    const std::vector<double> wanted{
        0,
        e["a"]["expert"],
        e["row_cosine"],
        e["direction_cosine"],
        0,
        e["b"]["expert"],
        e["change_norm"].get<double>() / sigma,
        std::abs(e["b"]["sigma1"].get<double>() - sigma) / sigma,
        std::abs(e["b"]["sigma2"].get<double>() - e["a"]["sigma2"].get<double>()) / sigma,
        e["direction_angle"].get<double>() * 57.29577951308232,
        e["wedin_angle"].is_null() ? -1 : e["wedin_angle"].get<double>() * 57.29577951308232};
    REQUIRE(experts[i].size() == wanted.size());
    for (std::size_t k = 0; k < wanted.size(); ++k) {
      CAPTURE(k);
      CHECK(experts[i][k] == doctest::Approx(wanted[k]).epsilon(1e-9).scale(1e-12));
    }
    // Below the bounds, as the figures show them.
    CHECK(experts[i][7] <= experts[i][6] * 1.01);
    CHECK(experts[i][8] <= experts[i][6] * 1.01);
    CHECK(experts[i][10] > 0);
    CHECK(experts[i][9] <= experts[i][10]);
  }
  const auto flips = table_of(read_bytes(m.folder / "page/data/comparison-layers.csv"));
  REQUIRE(flips.size() == 1);
  CHECK(flips[0][2] == doctest::Approx(100 * layer["flips_stored"].get<double>()));
  CHECK(flips[0][3] == doctest::Approx(100 * layer["flips_step"].get<double>()));
  CHECK(flips[0][4] == doctest::Approx(100 * layer["flips_lost"].get<double>()));
}

TEST_CASE("FILE.html without gnuplot: numbers, names as text, and why there are no figures") {
  const models m;
  const auto l = random_layer(111, 2, 3, 4);
  m.write(m.a, l, "<script>alert('x')</script>&\".");
  m.write(m.b, disturbed(l, 0.1F), "<script>alert('x')</script>&\".");
  const auto result = run({"compare", m.a, m.b, "--report", m.folder / "page.html"}, "PATH=/nonexistent");
  REQUIRE(result.status == 0);
  CHECK(contains(result.err, "report: " + (m.folder / "page.html").string() + "\n"));
  const auto page = read_bytes(m.folder / "page.html");
  CHECK(contains(page, "gnuplot is missing"));
  CHECK(count(page, "<svg") == 0);
  CHECK(count(page, "<tr><td>") == 1 + 2);
  CHECK_FALSE(contains(page, "<script>alert"));
  CHECK(contains(page, "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;.mlp"));
  CHECK(contains(page, "none without K, which no config says"));
  CHECK(table_of(read_bytes(m.folder / "page-data/comparison-experts.csv")).size() == 2);
}

TEST_CASE("the page on what did not move, and on what has no numbers") {
  const models m;
  auto l = random_layer(112, 3, 4, 6);
  m.write(m.a, l);
  const auto same = run({"compare", m.a, m.a, "--top-k", "1", "--report", m.folder / "same"});
  CAPTURE(same.err);
  CHECK(same.status == 0);
  CHECK_FALSE(contains(same.err, "arning"));
  CHECK_FALSE(contains(same.err, "could not"));
  CHECK(contains(read_bytes(m.folder / "same/index.html"), "Left out: no matrix changed"));
  std::fill(l.gates.begin(), l.gates.end(), 0.0F);
  std::fill(l.router.begin(), l.router.end(), 0.0F);
  m.write(m.b, l);
  const auto zero = run({"compare", m.b, m.b, "--report", m.folder / "zero.html"});
  CHECK(zero.status == 0);
  CHECK(count(read_bytes(m.folder / "zero.html"), "<tr><td>") == 1 + 3);
}

TEST_CASE("the page overwrites no input, and is no other output") {
  const models m;
  m.write(m.a, random_layer(113, 2, 3, 4));
  std::filesystem::copy(m.a, m.folder / "a.html");
  check_refused({"compare", m.folder / "a.html", m.a, "--report", m.folder / "a.html"}, "never overwritten");
  check_refused({"compare", m.a, m.a, "--report", m.folder / "p.html", "--json", m.folder / "p.html"},
                "--json and --report name one file");
  check_refused({"compare", m.a, m.a, "--tokens", m.a + ":layers.0.mlp.router.weight", "--report", m.a},
                "--report needs a folder");
  std::filesystem::copy(m.a, m.folder / "t.html");
  check_refused({"compare", m.a, m.a, "--tokens", m.folder / "t.html", "--report", m.folder / "t.html"},
                "never overwritten");
}

}  // namespace test_compare_report
