// Experts and rows that have no direction are statuses, whatever the shape, and never the end of the program.
#include "program.hpp"

#include <cmath>
#include <limits>

namespace test_degenerate {
using namespace tool_test;

namespace {

const std::vector<std::string> row_numbers{"cosine_stored", "cosine_step", "lambda_stored", "lambda_step",
                                           "residual",      "angle_bound", "steps"};

/// The first expert of a one-layer model, with and without the SVD; both ways must agree on the status.
json expert_of(const layer_data& layer, const std::vector<std::string>& flags = {}) {
  const temporary_folder folder;
  checkpoint_builder builder;
  add_layer<float>(builder, "", layer);
  builder.write(folder / "m.safetensors");
  auto arguments = flags;
  arguments.insert(arguments.end(), {folder / "m.safetensors", "--layout", "nfd"});  // a square says nothing
  CHECK(run(arguments).status == 0);                                                 // the table, too
  auto without = arguments;
  without.push_back("--no-svd");
  const auto exact = run_json(arguments)["layers"][0]["experts"][0];
  const auto certified = run_json(without)["layers"][0]["experts"][0];
  CHECK(certified["status"] == exact["status"]);
  return exact;
}

void check_no_direction(const json& e, const std::string& status) {
  CAPTURE(e.dump());
  CHECK(e["status"] == status);
  CHECK(e["certificate"] == "none");
  for (const auto& field : row_numbers) {
    CAPTURE(field);
    CHECK(e[field].is_null());
  }
}

}  // namespace

TEST_CASE("a zero row") {
  auto layer = random_layer(40, 2, 3, 5);
  std::fill_n(layer.router.begin(), 5, 0.0F);
  const auto e = expert_of(layer);
  check_no_direction(e, "zero_row");
  CHECK(e["sigma1"].get<double>() > e["sigma2"].get<double>());
}

TEST_CASE("a zero matrix") {
  auto layer = random_layer(41, 2, 3, 5);
  std::fill_n(layer.gates.begin(), 15, 0.0F);
  const auto e = expert_of(layer);
  check_no_direction(e, "zero_image");
  CHECK(e["sigma1"] == 0.0);
}

TEST_CASE("a row that the expert does not see") {
  layer_data layer{1, 2, 3, {0, 0, 1}, {1, 2, 0, 3, 4, 0}};
  const auto e = expert_of(layer);
  CAPTURE(e.dump());
  CHECK(e["status"] == "zero_image");
  CHECK(e["cosine_stored"].get<double>() < 1e-12);
  CHECK(e["lambda_stored"] == 0.0);
  CHECK(e["cosine_step"].is_null());
  CHECK(e["steps"].is_null());
}

TEST_CASE("NaN and infinity, in the row and in the matrix") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    auto layer = random_layer(42, 2, 3, 5);
    layer.router[3] = bad;
    const auto row = expert_of(layer);
    check_no_direction(row, "non_finite");
    CHECK(row["sigma1"].is_number());
    layer = random_layer(42, 2, 3, 5);
    layer.gates[7] = bad;
    const auto matrix = expert_of(layer);
    check_no_direction(matrix, "non_finite");
    CHECK(matrix["sigma1"].is_null());
    CHECK(matrix["rayleigh"].is_null());
  }
}

TEST_CASE("a degenerate expert is not certified, and its neighbours are not disturbed") {
  auto layer = random_layer(43, 2, 3, 5);
  const temporary_folder folder;
  const auto both = [&] {
    checkpoint_builder builder;
    add_layer<float>(builder, "", layer);
    builder.write(folder / "m.safetensors");
    return run_json({folder / "m.safetensors"})["layers"][0]["experts"];
  };
  const auto before = both();
  layer.gates[0] = std::numeric_limits<float>::quiet_NaN();
  const auto after = both();
  CHECK(after[0]["status"] == "non_finite");
  CHECK(after[1] == before[1]);
  CHECK(run({folder / "m.safetensors", "--require-angle", "1.6"}).status == 1);
}

TEST_CASE("sizes of one, and more neurons than dimensions") {
  for (const auto& [n, f, d] :
       {std::array<index_t, 3>{1, 1, 1}, {1, 1, 6}, {1, 6, 1}, {2, 1, 1}, {1, 9, 4}, {3, 2, 2}}) {
    CAPTURE(n);
    CAPTURE(f);
    CAPTURE(d);
    const auto e = expert_of(random_layer(44, n, f, d));
    CAPTURE(e.dump());
    CHECK(e["status"] == "ok");
    CHECK(e["sigma1"].get<double>() > 0);
    CHECK(e["steps"].is_number());
    if (f == 1 || d == 1) {  // rank one: a step arrives
      CHECK(e["sigma2"] == 0.0);
      CHECK(e["steps"].get<index_t>() <= 1);
      CHECK(e["cosine_step"].get<double>() == doctest::Approx(1));
    }
    if (d == 1) {
      CHECK(e["steps"] == 0);
      CHECK(e["cosine_stored"] == 1.0);
    }
  }
}

TEST_CASE(
    "a row that has arrived needs no step, one that is orthogonal to the first direction makes no false "
    "claim") {
  // A = diag(3, 2, 1): the directions are the axes.
  layer_data layer{3, 3, 3, {5, 0, 0, 0, 1, 0, 1e-3F, 1, 1}, {}};
  for (int e = 0; e < 3; ++e) {
    const float axes[] = {3, 0, 0, 0, 2, 0, 0, 0, 1};
    layer.gates.insert(layer.gates.end(), std::begin(axes), std::end(axes));
  }
  const temporary_folder folder;
  checkpoint_builder builder;
  add_layer<float>(builder, "", layer);
  builder.write(folder / "m.safetensors");
  const auto experts = run_json({folder / "m.safetensors", "--layout", "nfd"})["layers"][0]["experts"];
  CHECK(experts[0]["steps"] == 0);
  CHECK(experts[0]["cosine_stored"] == 1.0);
  CHECK(experts[1]["steps"].is_null());
  CHECK(experts[1]["lambda_stored"].get<double>() == doctest::Approx(2.0 / 3));
  CHECK(experts[1]["angle_bound"].get<double>() >= std::acos(0.0) - 1e-12);
  // tan θ_k = (4/9)^k · 1000 · (1 + small): below 1e-6 at k = ln(1e9) / ln(9/4) = 25.6.
  CHECK(experts[2]["steps"] == 26);
  const auto certified =
      run_json({folder / "m.safetensors", "--layout", "nfd", "--no-svd"})["layers"][0]["experts"];
  CHECK(certified[1]["cosine_stored"].get<double>() < 1e-6);
}

TEST_CASE("two equal principal directions: no certificate") {
  layer_data layer{1, 2, 2, {1, 1}, {2, 0, 0, 2}};
  const auto e = expert_of(layer);
  CHECK(e["status"] == "ok");
  CHECK(e["sigma1"] == e["sigma2"]);
  CHECK(e["certificate"] == "none");
  CHECK(e["angle_bound"].get<double>() >= std::acos(0.0) - 1e-12);
}

TEST_CASE("tiny and huge numbers change neither angles nor steps") {
  const auto plain = random_layer(45, 1, 4, 6);
  const auto expected = expert_of(plain);
  for (const float scale : {0x1p-100F, 0x1p+100F}) {
    auto layer = plain;
    for (float& x : layer.gates) {
      x *= scale;
    }
    for (float& x : layer.router) {
      x /= scale;
    }
    const auto e = expert_of(layer);
    CAPTURE(e.dump());
    CHECK(e["status"] == "ok");
    CHECK(e["steps"] == expected["steps"]);
    CHECK(e["cosine_step"].get<double>() ==
          doctest::Approx(expected["cosine_step"].get<double>()).epsilon(1e-10));
    CHECK(e["sigma1"].get<double>() / static_cast<double>(scale) ==
          doctest::Approx(expected["sigma1"].get<double>()));
  }
}

}  // namespace test_degenerate
