// compare: which experts tokens choose before and after.
#include "versions.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

namespace test_compare_choices {
using namespace tool_test;

namespace {

/// Shares of choices by plain arithmetic, each expert with that of its number.
double flips_of(const Eigen::MatrixXd& x, const Eigen::MatrixXd& a, const Eigen::MatrixXd& b, index_t k) {
  const auto chosen = [&](const Eigen::MatrixXd& rows, index_t t) {
    const Eigen::VectorXd logits = rows * x.row(t).transpose();
    std::vector<index_t> order(static_cast<std::size_t>(rows.rows()));
    std::iota(order.begin(), order.end(), index_t{0});
    std::ranges::sort(order, [&](auto i, auto j) { return logits[i] > logits[j]; });
    order.resize(static_cast<std::size_t>(k));
    return order;
  };
  index_t flips = 0;
  for (index_t t = 0; t < x.rows(); ++t) {
    const auto in_b = chosen(b, t);
    for (const auto i : chosen(a, t)) {
      flips += std::ranges::find(in_b, i) == in_b.end() ? 1 : 0;
    }
  }
  return static_cast<double>(flips) / static_cast<double>(x.rows() * k);
}

}  // namespace

TEST_CASE("flips are those of plain arithmetic, on tokens that are given") {
  const models m;
  const auto l = random_layer(87, 6, 4, 7);
  const auto after = disturbed(l, 0.3F);
  m.write(m.a, l);
  m.write(m.b, after);
  test_support::random_source random(88);
  std::vector<float> numbers(300 * 7);
  for (auto& x : numbers) x = static_cast<float>(random.normal() + 0.5);
  const std::string file = m.folder / "tokens.safetensors";
  checkpoint_builder builder;
  builder.add<float>("x", {300, 7}, numbers);
  builder.add<float>("bias", {7}, std::vector<float>(7));
  builder.write(file);
  const Eigen::MatrixXd x =
      Eigen::Map<const Eigen::Matrix<float, -1, -1, Eigen::RowMajor>>(numbers.data(), 300, 7).cast<double>();
  const auto rows = [](const layer_data& some, bool step) {
    Eigen::MatrixXd out(some.n, some.d);
    for (index_t e = 0; e < some.n; ++e) {
      const auto a = gate_of(some, e);
      const Eigen::VectorXd row = row_of(some, e);
      out.row(e) = step ? Eigen::VectorXd((a.transpose() * (a * row)).normalized()) : row;
    }
    return out;
  };
  for (const index_t k : {1, 2, 5}) {
    for (const auto& place : std::vector<std::string>{file, file + ":x"}) {
      const auto document = m.compare({"--top-k", std::to_string(k), "--tokens", place});
      const auto layer = document["layers"][0];
      CHECK(document["tokens"] == "the 300 tokens of " + place);
      CHECK(layer["flips_stored"].get<double>() ==
            doctest::Approx(flips_of(x, rows(l, false), rows(after, false), k)).epsilon(1e-12));
      CHECK(layer["flips_step"].get<double>() ==
            doctest::Approx(flips_of(x, rows(l, true), rows(after, true), k)).epsilon(1e-12));
      CHECK(layer["flips_stored"].get<double>() > 0.01);
      CHECK(layer["flips_lost"] == 0.0);
    }
  }
  const auto gaussian = m.compare({"--top-k", "2"});
  CHECK(gaussian["tokens"] == "4096 Gaussian tokens");
  CHECK(gaussian == m.compare({"--top-k", "2", "--threads", "3"}));

  builder.add<float>("y", {2, 7}, std::vector<float>(14));
  builder.add<float>("bad", {1, 7}, std::vector<float>(7, std::numeric_limits<float>::infinity()));
  builder.add<float>("short", {2, 6}, std::vector<float>(12));
  builder.write(file);
  const auto refused = [&](const std::string& tensor, const std::string& reason) {
    check_refused({"compare", m.a, m.b, "--top-k", "2", "--tokens", file + tensor}, reason);
  };
  refused("", "more than one matrix");
  refused(":none", "has no tensor 'none'");
  refused(":bias", "is [7], not [T, D]");
  refused(":bad", "not finite");
  refused(":short", "its tokens have 6 elements, the layers D = 7");
  check_refused({"compare", m.a, m.b, "--tokens", m.folder / "nothing.safetensors"}, "nothing.safetensors");
  check_refused({"compare", m.a, m.b, "--tokens", file, "--json", file}, "never overwritten");
}

TEST_CASE("K is that of the config beside A, or said; without it there are no flips") {
  const models m;
  const auto l = random_layer(89, 4, 3, 5);
  m.write(m.a, l);
  m.write(m.b, l);
  const auto without = m.compare();
  CHECK(without["top_k"].is_null());
  CHECK(without["layers"][0]["flips_stored"].is_null());
  CHECK(contains(run({"compare", m.a, m.b}).out, "flips: none without K"));
  for (const char* config : {R"({"num_experts_per_tok": 3})", R"({"text_config": {"moe_k": 3}})",
                             R"({"ffn_config": {"moe_top_k": 3}})"}) {
    write_bytes(m.folder / "config.json", config);
    CHECK(m.compare()["top_k"] == 3);
    CHECK(contains(run({"compare", m.a, m.b}).out, "flips: K = 3 of the config of A, 4096 Gaussian tokens"));
  }
  CHECK(m.compare({"--top-k", "1"})["top_k"] == 1);
  check_refused({"compare", m.a, m.b, "--top-k", "0"}, "--top-k must be at least 1");
}

}  // namespace test_compare_choices
