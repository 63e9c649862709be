// compare: which layer and which expert is which.
#include "versions.hpp"

#include <algorithm>

namespace test_compare_match {
using namespace tool_test;

TEST_CASE("experts in another order are found, with their rows, and choose as before") {
  const models m;
  const auto l = random_layer(81, 5, 6, 9);
  const std::vector<index_t> order{3, 0, 4, 1, 2};
  m.write(m.a, l);
  m.write(m.b, picked(l, order));
  const auto layer = m.compare({"--top-k", "2"})["layers"][0];
  CHECK(layer["matched_by"] == "likeness");
  CHECK(layer["flips_stored"] == 0.0);
  CHECK(layer["flips_step"] == 0.0);
  REQUIRE(layer["experts"].size() == 5);
  for (const auto& e : layer["experts"]) {
    CHECK(e["a"]["expert"] == order[e["b"]["expert"].get<std::size_t>()]);
    CHECK(e["change_norm"] == 0.0);
    CHECK(e["row_cosine"].get<double>() > 1 - 1e-14);
  }
  const auto table = run({"compare", m.a, m.b});
  CHECK(contains(table.out, "experts matched by likeness"));
  CHECK(contains(table.out, "0 → 1 "));

  SUBCASE("copies are matched one to one") {
    const auto twins = picked(l, {0, 1, 0, 1});
    m.write(m.a, twins);
    m.write(m.b, picked(twins, {1, 0, 3, 2}));
    const auto matched = m.compare()["layers"][0];
    CHECK(matched["experts"].size() == 4);
    for (const auto& e : matched["experts"]) {
      CHECK(e["change_norm"] == 0.0);
    }
  }
}

TEST_CASE("where directions, or rows, do not tell experts apart, the others do") {
  const models m;
  const auto l = random_layer(99, 4, 5, 7);
  const std::vector<index_t> order{2, 0, 3, 1};
  for (const bool rows : {false, true}) {
    auto alike = l;
    for (index_t e = 1; e < l.n; ++e) {  // all rows, or all gates, those of expert 0
      auto& values = rows ? alike.router : alike.gates;
      const index_t size = rows ? l.d : l.f * l.d;
      std::copy_n(values.begin(), size, values.begin() + e * size);
    }
    m.write(m.a, alike);
    m.write(m.b, picked(alike, order));
    const auto layer = m.compare()["layers"][0];
    CHECK(layer["matched_by"] == "likeness");
    REQUIRE(layer["experts"].size() == 4);
    for (const auto& e : layer["experts"]) {
      CHECK(e["a"]["expert"] == order[e["b"]["expert"].get<std::size_t>()]);
    }
  }
}

TEST_CASE("a model that kept its order is matched by number, however far one expert went") {
  const models m;
  const auto l = random_layer(82, 5, 6, 9);
  auto changed = disturbed(l, 0.05F);
  const auto other = random_layer(83, 1, 6, 9);
  std::ranges::copy(other.router, changed.router.begin() + 2 * l.d);
  std::ranges::copy(other.gates, changed.gates.begin() + 2 * l.f * l.d);
  m.write(m.a, l);
  m.write(m.b, changed);
  const auto layer = m.compare()["layers"][0];
  CHECK(layer["matched_by"] == "number");
  REQUIRE(layer["experts"].size() == 5);
  CHECK(layer["experts"][2]["b"]["expert"] == 2);
  CHECK(layer["experts"][2]["row_cosine"].get<double>() < 0.9);
  CHECK(layer["experts"][3]["row_cosine"].get<double>() > 0.99);
}

TEST_CASE("fewer experts: the pruned are named, their choices lost") {
  const models m;
  const auto l = random_layer(86, 6, 5, 12);
  m.write(m.a, l);
  m.write(m.b, picked(l, {0, 2, 3, 5}));
  const auto document = m.compare({"--top-k", "2"});
  const auto layer = document["layers"][0];
  CHECK(layer["only_a"] == json{1, 4});
  CHECK(layer["only_b"].empty());
  CHECK(layer["experts"].size() == 4);
  CHECK(layer["experts"][1]["a"]["expert"] == 2);
  CHECK(layer["experts"][1]["b"]["expert"] == 1);
  CHECK(layer["flips_lost"].get<double>() > 0.2);
  CHECK(layer["flips_stored"].get<double>() == layer["flips_lost"].get<double>());  // what is left moves up
  CHECK(document["coverage"]["summary"] == "1 of 1 layers, 4 of 6 experts compared");
  CHECK(document["coverage"]["complete"] == false);
  const auto table = run({"compare", m.a, m.b, "--top-k", "2"});
  CHECK(contains(table.out, "not compared: layers.0.mlp: experts 1, 4 of A have no counterpart in B"));
  CHECK(contains(table.out, "% lost"));
  const auto other_way = run({"compare", m.b, m.a});
  CHECK(contains(other_way.out, "experts 1, 4 of B have no counterpart in A"));
  const auto all_chosen = run_json({"compare", m.b, m.a, "--top-k", "9"})["layers"][0];
  CHECK(all_chosen["flips_stored"] == 0.0);
  CHECK(m.compare({"--top-k", "9"})["layers"][0]["flips_lost"].get<double>() == doctest::Approx(2.0 / 6));
}

TEST_CASE("layers: by name, by number, and those in one alone") {
  const models m;
  const auto l = random_layer(90, 3, 4, 6);
  const auto other = random_layer(91, 3, 4, 6);
  checkpoint_builder a;
  add_layer(a, "model.layers.1.", l);
  add_layer(a, "model.layers.2.", other);
  add_layer(a, "model.layers.10.", l);
  a.write(m.a);
  checkpoint_builder b;
  add_layer(b, "model.layers.10.", l);
  add_layer(b, "layers.2.", other);
  add_layer(b, "layers.11.", l);
  b.write(m.b);
  const auto document = m.compare();
  REQUIRE(document["layers"].size() == 2);
  CHECK(document["layers"][0]["a"] == "model.layers.2.mlp");
  CHECK(document["layers"][0]["b"] == "layers.2.mlp");
  CHECK(document["layers"][1]["a"] == "model.layers.10.mlp");
  CHECK(document["layers"][1]["b"] == "model.layers.10.mlp");
  CHECK(document["only_a"] == json{"model.layers.1.mlp"});
  CHECK(document["only_b"] == json{"layers.11.mlp"});
  CHECK(document["coverage"]["summary"] == "2 of 4 layers, 6 of 12 experts compared");
  const auto table = run({"compare", m.a, m.b});
  CHECK(contains(table.out, "not compared: model.layers.1.mlp: a layer of A alone"));
  CHECK(contains(table.out, "not compared: layers.11.mlp: a layer of B alone"));
  CHECK(contains(table.out, "model.layers.2.mlp and layers.2.mlp"));
  const auto asked = m.compare({"--layers", "2"});
  CHECK(asked["coverage"]["summary"] ==
        "1 of 1 layers, 3 of 3 experts compared; 2 layers with 6 experts not asked for");
  CHECK(asked["coverage"]["layers_not_asked_for"] == 2);
  check_refused({"compare", m.a, m.b, "--layers", "4"}, "no layer has a number of --layers 4");
  check_refused({"compare", m.a, m.b, "--layers", "1"}, "b.safetensors: no layer has a number");

  SUBCASE("a number that two layers have says nothing") {
    checkpoint_builder two;
    add_layer(two, "encoder.1.", l);
    add_layer(two, "decoder.1.", l);
    add_layer(two, "decoder.2.", other);
    two.write(m.b);
    const auto doubtful = m.compare();
    REQUIRE(doubtful["layers"].size() == 1);
    CHECK(doubtful["layers"][0]["b"] == "decoder.2.mlp");
  }
}

}  // namespace test_compare_match
