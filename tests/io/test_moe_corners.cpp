// Routers below several axes of one, latents that cannot be read, hints for a router that is turned, and what
// is said of several blocks at once.
#include "searched.hpp"

#include <mpi_router/io/moe_layers.hpp>

namespace test_moe_corners {
using namespace io_test;

namespace {

using namespace mpi_router;

void add_experts(checkpoint_builder& builder, const std::string& block, const layer_data& l) {
  for (index_t e = 0; e < l.n; ++e) {
    builder.add<bf16>(block + "experts." + std::to_string(e) + ".gate_proj.weight", {l.f, l.d},
                      one_expert(l, e));
  }
}

}  // namespace

TEST_CASE("a router below any number of axes of one is the router") {
  const auto l = random_layer(1, N, F, D);
  for (const std::vector<index_t>& shape : {std::vector{N, D}, {1, N, D}, {1, 1, N, D}}) {
    CAPTURE(shape.size());
    checkpoint_builder builder;
    builder.add<float>("model.layers.0.mlp.gate.weight", shape, l.router);
    add_experts(builder, "model.layers.0.mlp.", l);
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].gates.size() == static_cast<std::size_t>(N));
    CHECK(s.found.omissions.empty());
  }
}

TEST_CASE("experts that see a latent which cannot be read are no layer") {
  const auto l = random_layer(2, N, F, 4);
  for (const bool readable : {true, false}) {
    checkpoint_builder builder;
    builder.add<float>("layers.1.mlp.gate.weight", {N, D}, random_layer(3, N, 1, D).router);
    add_experts(builder, "layers.1.mlp.", l);
    const std::string name = "layers.1.mlp.latent_proj.weight";
    if (readable) {
      builder.add<float>(name, {4, D}, std::vector<float>(40, 1));
    } else {
      builder.add_raw(name, dtype::i8, {4, D});
    }
    const searched s(builder);
    if (readable) {
      REQUIRE(s.found.size() == 1);
      CHECK(s.found[0].latent != nullptr);
    } else {
      CHECK(contains(reason_of(s), name));
    }
  }
}

TEST_CASE("the hints for a doubt say how the router lies") {
  const auto square = random_layer(5, N, D, D);
  std::vector<float> turned;
  for (index_t d = 0; d < D; ++d) {
    for (index_t n = 0; n < N; ++n) turned.push_back(square.router[static_cast<std::size_t>(n * D + d)]);
  }
  for (const auto layout : {router_layout::nd, router_layout::dn}) {
    const bool is_turned = layout == router_layout::dn;
    checkpoint_builder builder;
    builder.add<float>("model.layers.3.mlp.gate.weight", is_turned ? std::vector{D, N} : std::vector{N, D},
                       is_turned ? turned : square.router);
    builder.add<bf16>("model.layers.3.mlp.of_mine.gate", {N, D, D}, square.gates);
    const searched s(builder);
    CHECK(s.found.empty());
    REQUIRE(s.found.omissions.size() == 1);
    REQUIRE(s.found.omissions[0].hints.size() == 2);
    for (const auto& hint : s.found.omissions[0].hints) {
      CHECK(hint.layout_of_router == layout);
      moe_search told;
      told.patterns = hint.patterns;
      told.layout = hint.layout;
      told.layout_of_router = hint.layout_of_router;
      CHECK(find_moe_layers(s.model, told).size() == 1);
    }
  }
}

TEST_CASE("so do the hints where names do not tell which matrix is the gate") {
  const auto l = random_layer(6, N, F, D);
  checkpoint_builder builder;
  builder.add<float>("h.2.moe.gate.weight", {D, N}, std::vector<float>(static_cast<std::size_t>(N * D), 1));
  for (const std::string name : {"a", "b"}) {
    for (index_t e = 0; e < N; ++e) {
      builder.add<bf16>("h.2.moe.experts." + std::to_string(e) + "." + name, {F, D}, one_expert(l, e));
    }
  }
  const searched s(builder);
  CHECK(s.found.empty());
  REQUIRE(s.found.omissions.size() == 1);
  REQUIRE(s.found.omissions[0].hints.size() == 2);
  for (const auto& hint : s.found.omissions[0].hints) CHECK(hint.layout_of_router == router_layout::dn);
}

TEST_CASE("what is said of several blocks at once counts their layers and their rows") {
  checkpoint_builder builder;
  builder.add<float>("model.layers.0.mlp.gate.weight", {4, D}, std::vector<float>(40));
  builder.add<float>("model.layers.1.mlp.gate.weight", {3, D}, std::vector<float>(30));
  const searched s(builder);
  CHECK(s.found.empty());
  REQUIRE(s.found.omissions.size() == 1);
  CHECK(s.found.omissions[0].layers == 2);
  CHECK(s.found.omissions[0].rows == 7);
  CHECK(contains(s.found.omissions[0].name, "2 tensors"));
}

}  // namespace test_moe_corners
