// compare: what moved between two checkpoints, whatever they are stored as.
#include "versions.hpp"

#include <io/gguf.hpp>
#include <support/svd.hpp>

#include <algorithm>
#include <cmath>

namespace test_compare {
using namespace tool_test;

namespace {

using mpi_router::bf16;

/// Nothing moved in any expert of a document.
void check_same(const json& document) {
  for (const auto& layer : document["layers"]) {
    CHECK(layer["problem"] == "");
    CHECK(layer["matched_by"] == "number");
    CHECK(layer["only_a"].empty());
    CHECK(layer["only_b"].empty());
    if (!document["top_k"].is_null()) {
      CHECK(layer["flips_stored"] == 0.0);
      CHECK(layer["flips_step"] == 0.0);
    }
    for (const auto& e : layer["experts"]) {
      CAPTURE(e.dump());
      CHECK(e["a"] == e["b"]);
      CHECK(e["row_cosine"].get<double>() == doctest::Approx(1).epsilon(1e-14));
      CHECK(e["direction_cosine"].get<double>() == doctest::Approx(1).epsilon(1e-14));
      CHECK(e["direction_angle"] == 0.0);
      CHECK(e["change_norm"] == 0.0);
      CHECK(e["change_norm_bound"] == 0.0);
      CHECK(e["wedin_angle"] == 0.0);
    }
  }
  CHECK(document["coverage"]["complete"] == true);
}

/// A layer as GGUF has it, in F32.
std::string gguf_of(const layer_data& l) {
  io_test::gguf_bytes file;
  const auto u = [](index_t x) { return static_cast<std::uint64_t>(x); };
  file.metadata = {io_test::entry("general.architecture", 8, io_test::raw_text("qwen3moe")),
                   io_test::entry("qwen3moe.expert_count", 4, io_test::raw(static_cast<std::uint32_t>(l.n))),
                   io_test::entry("qwen3moe.expert_used_count", 4, io_test::raw(std::uint32_t{3}))};
  const std::size_t router_bytes = (l.router.size() * sizeof(float) + 31) / 32 * 32;
  file.tensors = {
      io_test::tensor_entry("blk.0.ffn_gate_inp.weight", {u(l.d), u(l.n)}, 0, 0),
      io_test::tensor_entry("blk.0.ffn_gate_exps.weight", {u(l.d), u(l.f), u(l.n)}, 0, router_bytes)};
  const auto bytes = [](const std::vector<float>& x) {
    return std::string(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(float));
  };
  file.data = bytes(l.router);
  file.data.resize(router_bytes);
  file.data += bytes(l.gates);
  return file.bytes();
}

}  // namespace

TEST_CASE("a checkpoint against itself: nothing moved") {
  for (const char* name : {"tiny-vanilla.safetensors", "tiny-mpi.safetensors"}) {
    const auto document = run_json({"compare", data_file(name), data_file(name), "--top-k", "2"});
    REQUIRE(document["layers"].size() == 2);
    CHECK(document["layers"][1]["experts"].size() == 8);
    CHECK(document["coverage"]["summary"] == "2 of 2 layers, 16 of 16 experts compared");
    check_same(document);
  }
}

TEST_CASE("the same weights in any layout, type and container") {
  const models m;
  const auto l = random_layer(80, 4, 6, 10);
  m.write<bf16>(m.a, l);
  m.write<double>(m.b, l);
  check_same(m.compare({"--top-k", "2"}));

  checkpoint_builder fused;
  fused.add<float>("layers.0.feed_forward.router.weight", {l.n, l.d}, l.router);
  fused.add<bf16>("layers.0.feed_forward.experts.gate_up_proj", {l.n, l.d, 2 * l.f},
                  io_test::nd2f_concatenated(l));
  fused.write(m.b);
  check_same(m.compare({"--top-k", "2"}));

  checkpoint_builder each;
  each.add<float>("layers.0.mlp.gate.weight", {l.n, l.d}, l.router);
  for (index_t e = 0; e < l.n; ++e) {
    each.add<bf16>("layers.0.mlp.experts." + std::to_string(e) + ".gate_proj.weight", {l.f, l.d},
                   io_test::one_expert(l, e));
  }
  std::filesystem::create_directory(m.folder / "shards");
  each.write_shards(m.folder / "shards", 2);
  check_same(run_json({"compare", m.a, m.folder / "shards", "--top-k", "2"}));

  write_bytes(m.folder / "b.gguf", gguf_of(l));
  const auto document = run_json({"compare", m.a, m.folder / "b.gguf"});
  CHECK(document["layers"][0]["b"] == "blk.0");
  CHECK(document["top_k"] == 3);  // of B, for A says nothing
  check_same(document);
  const auto other_way = run_json({"compare", m.folder / "b.gguf", m.a, "--top-k", "2"});
  CHECK(other_way["top_k"] == 2);
  check_same(other_way);
}

TEST_CASE("all gates times c: the same directions, σ times |c|") {
  const models m;
  const auto l = random_layer(84, 3, 5, 7);
  auto scaled = l;
  for (auto& x : scaled.gates) x *= -0.5F;
  for (auto& x : scaled.router) x *= 4;
  m.write(m.a, l);
  m.write(m.b, scaled);
  const auto layer = m.compare({"--top-k", "1"})["layers"][0];
  CHECK(layer["matched_by"] == "number");
  CHECK(layer["flips_stored"] == 0.0);
  CHECK(layer["flips_step"] == 0.0);
  for (const auto& e : layer["experts"]) {
    CHECK(e["row_cosine"].get<double>() > 1 - 1e-14);
    CHECK(e["direction_cosine"].get<double>() > 1 - 1e-14);
    for (const char* sigma : {"sigma1", "sigma2"}) {
      CHECK(e["b"][sigma].get<double>() == doctest::Approx(0.5 * e["a"][sigma].get<double>()).epsilon(1e-13));
    }
    CHECK(e["change_norm"].get<double>() ==
          doctest::Approx(1.5 * e["a"]["sigma1"].get<double>()).epsilon(1e-12));
  }
}

TEST_CASE("noise: the numbers are those of an SVD, and no bound is broken") {
  const models m;
  index_t bounded = 0;
  for (const float by : {1e-3F, 0.02F, 0.3F}) {
    auto l = random_layer(85, 4, 5, 8);
    for (index_t k = 0; k < l.n * l.f; ++k) {
      l.gates[static_cast<std::size_t>(k * l.d)] *= 8;  // a direction that stands out
    }
    const auto after = disturbed(l, by);
    m.write(m.a, l);
    m.write(m.b, after);
    const auto document = m.compare();
    for (const auto& e : document["layers"][0]["experts"]) {
      const index_t i = e["a"]["expert"];
      const auto before_svd = test_support::jacobi_svd(gate_of(l, i));
      const auto after_svd = test_support::jacobi_svd(gate_of(after, i));
      const double norm =
          test_support::jacobi_svd(Eigen::MatrixXd(gate_of(after, i) - gate_of(l, i))).singularValues()[0];
      const double cosine = std::abs(before_svd.matrixV().col(0).dot(after_svd.matrixV().col(0)));
      const auto x = row_of(l, i);
      const auto y = row_of(after, i);
      CHECK(e["change_norm"].get<double>() == doctest::Approx(norm).epsilon(1e-12));
      CHECK(e["change_norm_bound"].get<double>() >= norm);
      CHECK(e["change_norm_bound"].get<double>() <= 1.006 * norm);
      CHECK(e["a"]["sigma1"].get<double>() == doctest::Approx(before_svd.singularValues()[0]).epsilon(1e-12));
      CHECK(e["b"]["sigma2"].get<double>() == doctest::Approx(after_svd.singularValues()[1]).epsilon(1e-12));
      CHECK(e["direction_cosine"].get<double>() == doctest::Approx(cosine).epsilon(1e-9));
      CHECK(e["row_cosine"].get<double>() == doctest::Approx(x.dot(y) / x.norm() / y.norm()).epsilon(1e-12));
      CHECK(std::cos(e["row_angle"].get<double>()) == doctest::Approx(e["row_cosine"].get<double>()));
      if (e["wedin_angle"].is_number()) {
        ++bounded;
        CHECK(std::acos(std::min(1.0, cosine)) <= e["wedin_angle"].get<double>() + 1e-8);
        CHECK(e["wedin_certificate"] == "probabilistic");
      } else {
        CHECK(e["wedin_certificate"] == "none");
      }
    }
  }
  CHECK(bounded >= 6);
}

TEST_CASE("other F: no difference; other D: not comparable") {
  const models m;
  const auto l = random_layer(92, 3, 6, 8);
  m.write(m.a, l);
  auto narrow = layer_data{l.n, 4, l.d, l.router, {}};
  for (index_t e = 0; e < l.n; ++e) {
    const auto begin = l.gates.begin() + e * l.f * l.d;
    narrow.gates.insert(narrow.gates.end(), begin, begin + 4 * l.d);
  }
  m.write(m.b, narrow);
  const auto document = m.compare({"--top-k", "1"});
  for (const auto& e : document["layers"][0]["experts"]) {
    CHECK(e["change_norm"].is_null());
    CHECK(e["change_norm_bound"].is_null());
    CHECK(e["wedin_angle"].is_null());
    CHECK(e["direction_cosine"].is_number());
    CHECK(e["b"]["ffn_dim"] == 4);
    CHECK(e["row_cosine"].get<double>() > 1 - 1e-14);
  }
  CHECK(contains(run({"compare", m.a, m.b}).out, "F = 6 and 4"));

  m.write(m.b, random_layer(93, 3, 6, 7));
  check_refused({"compare", m.a, m.b}, "no layer can be compared: layers.0.mlp: not comparable: D = 8 and 7");
  checkpoint_builder two;
  add_layer<float>(two, "layers.0.", random_layer(93, 3, 6, 7));
  add_layer<float>(two, "layers.1.", l);
  two.write(m.b);
  checkpoint_builder both;
  add_layer<float>(both, "layers.0.", l);
  add_layer<float>(both, "layers.1.", l);
  both.write(m.a);
  const auto partly = m.compare();
  CHECK(partly["layers"][0]["problem"] == "not comparable: D = 8 and 7");
  CHECK(partly["coverage"]["summary"] == "1 of 2 layers, 3 of 6 experts compared");
  CHECK(contains(run({"compare", m.a, m.b}).out, "not compared: layers.0.mlp: not comparable: D = 8 and 7"));
}

}  // namespace test_compare
