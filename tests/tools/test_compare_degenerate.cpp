// compare: zeros, what is not finite, and what is beyond the squares of doubles.
#include "versions.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace test_compare_degenerate {
using namespace tool_test;

TEST_CASE("zeros, and what is not finite, are unknown and never the end") {
  const models m;
  const auto l = random_layer(94, 5, 4, 6);
  auto broken = l;
  std::fill_n(broken.router.begin(), l.d, 0.0F);                   // the row of 0
  std::fill_n(broken.gates.begin() + l.f * l.d, l.f * l.d, 0.0F);  // the gate of 1
  broken.router[static_cast<std::size_t>(2 * l.d)] = std::numeric_limits<float>::quiet_NaN();
  broken.gates[static_cast<std::size_t>(3 * l.f * l.d)] = std::numeric_limits<float>::infinity();
  m.write(m.a, l);
  m.write(m.b, broken);
  const auto layer = m.compare({"--top-k", "2"})["layers"][0];
  CHECK(layer["matched_by"] == "number");
  REQUIRE(layer["experts"].size() == 5);
  const auto& e = layer["experts"];
  CHECK(e[0]["row_cosine"].is_null());
  CHECK(e[0]["direction_cosine"].get<double>() > 1 - 1e-14);
  CHECK(e[0]["change_norm"] == 0.0);
  CHECK(e[1]["direction_cosine"].is_null());
  CHECK(e[1]["b"]["sigma1"] == 0.0);
  CHECK(e[1]["b"]["sigma2"] == 0.0);
  CHECK(e[1]["change_norm"].get<double>() ==
        doctest::Approx(e[1]["a"]["sigma1"].get<double>()).epsilon(1e-12));
  CHECK(e[2]["row_cosine"].is_null());
  CHECK(e[3]["direction_cosine"].is_null());
  CHECK(e[3]["b"]["sigma1"].is_null());
  CHECK(e[3]["change_norm"].is_null());
  CHECK(e[3]["change_norm_bound"].is_null());
  CHECK(e[4]["change_norm"] == 0.0);
  CHECK(layer["flips_stored"].get<double>() > 0);

  m.write(m.a, broken);
  const auto both = m.compare()["layers"][0];
  CHECK(both["matched_by"] == "number");
  CHECK(both["experts"].size() == 5);
}

TEST_CASE("a row that is not finite is chosen by no token") {
  const models m;
  const auto l = random_layer(100, 4, 3, 6);
  auto broken = l;
  broken.router[static_cast<std::size_t>(l.d)] = std::numeric_limits<float>::quiet_NaN();  // of expert 1
  m.write(m.a, l);
  m.write(m.b, broken);
  const auto with = m.compare({"--top-k", "2"})["layers"][0];
  m.write(m.b, picked(l, {0, 2, 3}));
  const auto without = m.compare({"--top-k", "2"})["layers"][0];
  CHECK(with["experts"].size() == 4);
  CHECK(with["flips_stored"] == without["flips_stored"]);
  CHECK(with["flips_lost"] == 0.0);
}

TEST_CASE("weights whose squares are no doubles") {
  const models m;
  auto l = random_layer(95, 2, 3, 4);
  for (const double scale : {1e-170, 1e+170}) {
    const auto write = [&](const std::string& path, double by) {
      checkpoint_builder builder;
      builder.add<float>("mlp.router.weight", {l.n, l.d}, l.router);
      std::vector<std::byte> bytes(l.gates.size() * sizeof(double));
      for (std::size_t i = 0; i < l.gates.size(); ++i) {
        const double x = by * static_cast<double>(l.gates[i]);
        std::memcpy(bytes.data() + i * sizeof(double), &x, sizeof x);
      }
      builder.add_bytes("mlp.experts.gate_proj", dtype::f64, {l.n, l.f, l.d}, bytes);
      builder.write(path);
    };
    write(m.a, scale);
    write(m.b, 1.5 * scale);
    const auto document = m.compare();
    for (const auto& e : document["layers"][0]["experts"]) {
      CHECK(e["change_norm"].get<double>() ==
            doctest::Approx(0.5 * e["a"]["sigma1"].get<double>()).epsilon(1e-10).scale(0));
      CHECK(e["direction_cosine"].get<double>() > 1 - 1e-10);
    }
  }
}

}  // namespace test_compare_degenerate
