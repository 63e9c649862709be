// The up and down projections of a layer: found beside the gates in every form, and never guessed.
#include "searched.hpp"

#include <mpi_router/io/moe_layers.hpp>

#include <functional>

namespace test_expert_parts {
using namespace io_test;

namespace {

using namespace mpi_router;

/// N experts with three matrices of their own numbers, each [F, D]: a down projection is stored turned.
struct experts {
  index_t f;
  index_t d;
  layer_data gate, up, down;

  explicit experts(index_t ffn_dim = 6, index_t hidden_dim = 10)
      : f(ffn_dim),
        d(hidden_dim),
        gate(random_layer(1, N, f, d)),
        up(random_layer(2, N, f, d)),
        down(random_layer(3, N, f, d)) {}
  [[nodiscard]] const layer_data& of(expert_part part) const {
    return part == expert_part::gate ? gate : part == expert_part::up ? up : down;
  }
  /// Gate and up in one tensor, as `place(e, f, d, is_up)` has them.
  [[nodiscard]] std::vector<float> fused(
      const std::function<index_t(index_t, index_t, index_t, index_t)>& place) const {
    std::vector<float> out(static_cast<std::size_t>(2 * N * f * d));
    for (index_t e = 0; e < N; ++e) {
      for (index_t i = 0; i < f; ++i) {
        for (index_t j = 0; j < d; ++j) {
          out[static_cast<std::size_t>(place(e, i, j, 0))] = gate.gate(e, i, j);
          out[static_cast<std::size_t>(place(e, i, j, 1))] = up.gate(e, i, j);
        }
      }
    }
    return out;
  }
  [[nodiscard]] std::vector<float> turned_down(index_t e) const {
    std::vector<float> out;
    for (index_t j = 0; j < d; ++j) {
      for (index_t i = 0; i < f; ++i) {
        out.push_back(down.gate(e, i, j));
      }
    }
    return out;
  }
  /// Linear modules, a tensor each.
  void add_linears(checkpoint_builder& to, const std::string& gates, const std::string& ups,
                   const std::string& downs) const {
    using detail::moe::substituted;
    for (index_t e = 0; e < N; ++e) {
      const auto name = [&](const std::string& pattern) {
        return substituted(pattern, "{expert}", std::to_string(e));
      };
      if (!gates.empty()) {
        to.add<bf16>(name(gates), {f, d}, one_expert(gate, e));
      }
      to.add<bf16>(name(ups), {f, d}, one_expert(up, e));
      to.add<bf16>(name(downs), {d, f}, turned_down(e));
    }
  }
};

/// The measured parts show these numbers.
void check_shows(const moe_layer& layer, const experts& original, const std::vector<expert_part>& parts) {
  REQUIRE(layer.measured.size() == parts.size());
  for (std::size_t k = 0; k < parts.size(); ++k) {
    const auto& part = layer.measured[k];
    CAPTURE(to_string(parts[k]));
    CHECK(part.part == parts[k]);
    REQUIRE(static_cast<index_t>(part.blocks.size()) == N);
    for (index_t e = 0; e < N; ++e) {
      CHECK(visit_gate(part.blocks[static_cast<std::size_t>(e)], [&](const auto& a) {
        bool same = a.rows() == original.f && a.cols() == original.d;
        for (index_t i = 0; same && i < original.f; ++i) {
          for (index_t j = 0; j < original.d; ++j) {
            same = same && widen<double>(a(i, j)) == static_cast<double>(original.of(parts[k]).gate(e, i, j));
          }
        }
        return same;
      }));
    }
  }
}

const std::vector all{expert_part::gate, expert_part::up, expert_part::down};

}  // namespace

TEST_CASE("sums are written as they are read, and nothing else is one") {
  for (const char* sum : {"gate", "up", "down", "gate+up", "gate+up+down", "0.5*up", "gate+0.25*down"}) {
    REQUIRE(part_weights_from_string(sum).has_value());
    CHECK(to_string(*part_weights_from_string(sum)) == sum);
  }
  CHECK(to_string(*part_weights_from_string("down+2*gate")) == "2*gate+down");
  CHECK(part_weights_from_string("gate")->is_gate_alone());
  CHECK_FALSE(part_weights_from_string("2*gate")->is_gate_alone());
  for (const char* none : {"", "+", "gate+", "+up", "gate,up", "gate+gate", "gates", "0*up", "-1*up",
                           "nan*up", "inf*up", "*up", "1x*up", "up*2", "1*"}) {
    CAPTURE(none);
    CHECK_FALSE(part_weights_from_string(none).has_value());
  }
}

TEST_CASE("a tensor for each expert's matrix, under the names of many families") {
  const experts e;
  struct {
    const char* router;
    const char* gate;
    const char* up;
    const char* down;
  } const names[] = {
      {"h.1.mlp.gate.weight", "h.1.mlp.experts.{expert}.gate_proj.weight",
       "h.1.mlp.experts.{expert}.up_proj.weight", "h.1.mlp.experts.{expert}.down_proj.weight"},
      {"h.1.block_sparse_moe.gate.weight", "h.1.block_sparse_moe.experts.{expert}.w1.weight",
       "h.1.block_sparse_moe.experts.{expert}.w3.weight", "h.1.block_sparse_moe.experts.{expert}.w2.weight"},
      {"blk.1.ffn_gate_inp.weight", "blk.1.ffn_gate.{expert}.weight", "blk.1.ffn_up.{expert}.weight",
       "blk.1.ffn_down.{expert}.weight"},
  };
  for (const auto& n : names) {
    CAPTURE(n.gate);
    checkpoint_builder builder;
    builder.add<float>(n.router, {N, e.d}, e.gate.router);
    e.add_linears(builder, n.gate, n.up, n.down);
    const searched s(builder, "gate+0.5*up+2*down");
    REQUIRE(s.found.size() == 1);
    CHECK(s.found.omissions.empty());
    check_shows(s.found[0], e, all);
    const auto& parts = s.found[0].measured;
    CHECK(parts[0].weight == 1);
    CHECK(parts[1].weight == 0.5);
    CHECK(parts[2].weight == 2);
    CHECK(parts[1].name == n.up);
    CHECK(parts[2].name == n.down);
    CHECK(parts[2].layout == gate_layout::ndf);
    CHECK(parts[2].layout_known_by == "its shape");
    check_shows(searched(builder, "down").found[0], e, {expert_part::down});
    CHECK(searched(builder, "gate").found[0].measured.empty());
  }
}

TEST_CASE("fused gates hold the up projections as their other half; down lies as its shape says") {
  const experts e;
  const index_t f = e.f;
  const index_t d = e.d;
  using place = std::function<index_t(index_t, index_t, index_t, index_t)>;
  struct {
    const char* router;
    const char* gate;
    const char* down;
    std::vector<index_t> shape;
    place where;
    bool turned;
  } const forms[] = {
      {"router.layer.weight",
       "input_linear.weight",
       "output_linear.weight",
       {N, 2 * f, d},
       [&](index_t x, index_t i, index_t j, index_t up) { return ((x * 2 + up) * f + i) * d + j; },
       true},
      {"mlp.gate.weight",
       "mlp.mlp1_weight",
       "mlp.mlp2_weight",
       {N, 2 * f, d},
       [&](index_t x, index_t i, index_t j, index_t up) { return ((x * f + i) * 2 + up) * d + j; },
       true},
      {"feed_forward.router.weight",
       "feed_forward.experts.gate_up_proj",
       "feed_forward.experts.down_proj",
       {N, d, 2 * f},
       [&](index_t x, index_t i, index_t j, index_t up) { return ((x * d + j) * 2 + up) * f + i; },
       false},
      {"mlp.router.weight",
       "mlp.experts.gate_up_proj",
       "mlp.experts.down_proj",
       {N, d, 2 * f},
       [&](index_t x, index_t i, index_t j, index_t up) { return ((x * d + j) * f + i) * 2 + up; },
       false},
  };
  for (const auto& form : forms) {
    CAPTURE(form.gate);
    checkpoint_builder builder;
    builder.add<float>(form.router, {N, d}, e.gate.router);
    builder.add<bf16>(form.gate, form.shape, e.fused(form.where));
    builder.add<bf16>(form.down, form.turned ? std::vector{N, d, f} : std::vector{N, f, d},
                      form.turned ? ndf(e.down) : e.down.gates);
    const searched s(builder, "gate+up+down");
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], e, all);
    CHECK(s.found[0].measured[2].name == form.down);
    CHECK(s.found[0].measured[2].layout == (form.turned ? gate_layout::ndf : gate_layout::nfd));
    check_shows(searched(builder, "up").found[0], e, {expert_part::up});
  }
}

TEST_CASE("flattened stacks, and names that have two words for up") {
  const experts e;
  const auto build = [&](std::initializer_list<const char*> ups) {
    checkpoint_builder builder;
    builder.add<float>("router.layer.weight", {N, e.d}, e.gate.router);
    builder.add<bf16>("experts.mlp.w1", {N * e.f, e.d}, e.gate.gates);
    for (const char* up : ups) {
      builder.add<bf16>(up, {N * e.f, e.d}, e.up.gates);
    }
    builder.add<bf16>("experts.mlp.w2", {N * e.f, e.d}, e.down.gates);
    return builder;
  };
  check_shows(searched(build({"experts.mlp.v1"}), "gate+up+down").found[0], e, all);
  CHECK(contains(reason_of(searched(build({"experts.mlp.v1", "experts.mlp.w3"}), "up")),
                 "both 'experts.mlp.w3' or 'experts.mlp.v1' are there"));
  CHECK(contains(reason_of(searched(build({}), "gate+up")),
                 "its up projections, which of asks for, cannot be told: there is no 'experts.mlp.w3' or "
                 "'experts.mlp.v1'"));
}

TEST_CASE("a down projection as wide as it is high: torch's Linear, config.json or the caller must tell") {
  const experts e(8, 8);
  SUBCASE("Linear") {
    checkpoint_builder builder;
    builder.add<float>("mlp.gate.weight", {N, 8}, e.gate.router);
    e.add_linears(builder, "mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight",
                  "mlp.experts.{expert}.down_proj.weight");
    const searched s(builder, "gate+up+down");
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], e, all);
    CHECK(s.found[0].measured[2].layout_known_by == "torch's Linear");
    // Gates that the caller says are [D, F] are no Linear's, and neither need their neighbours be.
    moe_search turned;
    turned.layout = gate_layout::ndf;
    CHECK(contains(reason_of(searched(builder, "down", turned)), "of shape [8, 8] may be"));
  }
  SUBCASE("a stack") {
    checkpoint_builder builder;
    builder.add<float>("mlp.router.weight", {N, 8}, e.gate.router);
    builder.add<bf16>(
        "mlp.experts.gate_up_proj", {N, 8, 16},
        e.fused([](index_t x, index_t i, index_t j, index_t up) { return ((x * 8 + j) * 8 + i) * 2 + up; }));
    builder.add<bf16>("mlp.experts.down_proj", {N, 8, 8}, e.down.gates);
    CHECK(contains(reason_of(searched(builder, "gate+up+down")),
                   "'mlp.experts.down_proj' of shape [4, 8, 8] may be [N, F, D] (layout_of_down nfd) or "
                   "[N, D, F] (layout_of_down ndf): say which"));
    check_shows(searched(builder, "gate+up").found[0], e, {expert_part::gate, expert_part::up});
    moe_search told;
    told.layout_of_down = gate_layout::nfd;
    check_shows(searched(builder, "gate+up+down", told).found[0], e, all);
    told.layout_of_down = gate_layout::n2fd_concatenated;
    CHECK(
        contains(reason_of(searched(builder, "down", told)), "which is not [N, 2F, D], gate before up with"));
    const searched gptoss(builder, "gate+up+down", {}, R"({"model_type": "gpt_oss"})");
    REQUIRE(gptoss.found.size() == 1);
    check_shows(gptoss.found[0], e, all);
    CHECK(gptoss.found[0].measured[2].layout_known_by == "config.json");
  }
}

TEST_CASE("experts without a gate have up and down; a gate that is asked for is missed") {
  const experts e;
  checkpoint_builder builder;
  builder.add<float>("backbone.layers.1.mixer.gate.weight", {N, e.d}, e.gate.router);
  e.add_linears(builder, "", "backbone.layers.1.mixer.experts.{expert}.up_proj.weight",
                "backbone.layers.1.mixer.experts.{expert}.down_proj.weight");
  check_shows(searched(builder, "up+down").found[0], e, {expert_part::up, expert_part::down});
  CHECK(contains(reason_of(searched(builder, "gate+down")),
                 "its experts have no gate: of them there are up and down alone (of up, down, up+down)"));
}

TEST_CASE("what is missing, of another shape, or unnamed is refused") {
  const experts e;
  const auto build = [&](index_t downs, std::vector<index_t> shape, const std::string& name) {
    checkpoint_builder builder;
    builder.add<float>("mlp.gate.weight", {N, e.d}, e.gate.router);
    for (index_t x = 0; x < N; ++x) {
      const std::string expert = "mlp.experts." + std::to_string(x);
      builder.add<bf16>(expert + name, {e.f, e.d}, one_expert(e.gate, x));
      if (x < downs) {
        builder.add<bf16>(expert + ".down_proj.weight", shape,
                          std::vector<float>(static_cast<std::size_t>(shape[0] * shape[1])));
      }
    }
    return builder;
  };
  CHECK(contains(reason_of(searched(build(N - 1, {e.d, e.f}, ".gate_proj.weight"), "down")),
                 "there is no 'mlp.experts.3.down_proj.weight'"));
  CHECK(contains(reason_of(searched(build(N, {e.d, e.f + 1}, ".gate_proj.weight"), "down")),
                 "has shape [10, 7], which is not [N, D, F] or [N, F, D] with N = 4, F = 6, D = 10"));
  moe_search named;
  named.patterns = name_patterns{"mlp.gate.weight", "mlp.experts.{expert}.first.weight"};
  CHECK(contains(reason_of(searched(build(N, {e.d, e.f}, ".first.weight"), "down", named)),
                 "'mlp.experts.{expert}.first.weight' does not tell what they are called"));
}

TEST_CASE("experts that see a latent: up is seen through it, down is not measured") {
  const experts e(6, 4);
  const index_t d = 10;
  checkpoint_builder builder;
  builder.add<float>("layers.1.mlp.gate.weight", {N, d}, random_layer(9, N, 1, d).router);
  builder.add<float>("layers.1.mlp.latent_proj.weight", {4, d},
                     std::vector<float>(static_cast<std::size_t>(4 * d), 1));
  e.add_linears(builder, "layers.1.mlp.experts.{expert}.gate_proj.weight",
                "layers.1.mlp.experts.{expert}.up_proj.weight",
                "layers.1.mlp.experts.{expert}.down_proj.weight");
  const searched s(builder, "gate+up");
  REQUIRE(s.found.size() == 1);
  CHECK(s.found[0].latent != nullptr);
  check_shows(s.found[0], e, {expert_part::gate, expert_part::up});
  CHECK(contains(reason_of(searched(builder, "gate+down")), "its experts see a latent"));
}

}  // namespace test_expert_parts
