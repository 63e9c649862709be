// Checkpoints of random numbers under the names of published models, without a config.json: the layers are
// found, and their numbers are where they should be.
#include "naming_schemes.hpp"
#include "searched.hpp"

#include <mpi_router/io/moe_layers.hpp>

namespace test_naming_schemes {
using namespace io_test;
using namespace mpi_router;

namespace {

/// The numbers of gate e at [f, d], as `layout` stores them in a tensor of `held` experts from `first` on;
/// those of an up projection are negative.
std::vector<float> stored(gate_layout layout, index_t first, index_t held) {
  const bool fused = detail::moe::is_fused(layout);
  const index_t width = fused ? 2 * F : F;
  const bool interleaved = layout == gate_layout::n2fd_interleaved || layout == gate_layout::nd2f_interleaved;
  std::vector<float> out;
  for (index_t e = first; e < first + held; ++e) {
    const auto element = [&](index_t w, index_t d) {
      const bool up = fused && (interleaved ? w % 2 == 1 : w >= F);
      const index_t f = interleaved ? w / 2 : w % F;
      out.push_back(static_cast<float>((e * F + f) * D + d + 1) * (up ? -1.0F : 1.0F));
    };
    if (detail::moe::ffn_comes_first(layout)) {
      for (index_t w = 0; w < width; ++w) {
        for (index_t d = 0; d < D; ++d) element(w, d);
      }
    } else {
      for (index_t d = 0; d < D; ++d) {
        for (index_t w = 0; w < width; ++w) element(w, d);
      }
    }
  }
  return out;
}

void add_router(checkpoint_builder& builder, const naming_scheme& scheme) {
  std::vector<float> values;
  for (index_t i = 0; i < N * D; ++i) {
    values.push_back(static_cast<float>(scheme.router_is_turned ? i % N * D + i / N : i));
  }
  builder.add<float>(scheme.router, scheme.router_is_turned ? std::vector{D, N} : std::vector{N, D}, values);
}

void add_gates(checkpoint_builder& builder, const naming_scheme& scheme) {
  const index_t width = detail::moe::is_fused(scheme.layout) ? 2 * F : F;
  const auto one =
      detail::moe::ffn_comes_first(scheme.layout) ? std::vector{width, D} : std::vector{D, width};
  const std::string gate = scheme.gate;
  const std::string mark = "{expert}";
  const auto at = gate.find(mark);
  if (at == gate.npos) {
    const auto shape = scheme.is_flat ? std::vector{N * one[0], one[1]} : std::vector{N, one[0], one[1]};
    builder.add<float>(gate, shape, stored(scheme.layout, 0, N));
    return;
  }
  for (index_t e = 0; e < N; ++e) {
    builder.add<float>(std::string(gate).replace(at, mark.size(), std::to_string(e)), one,
                       stored(scheme.layout, e, 1));
  }
}

/// The down projections, where the gates' name says up alone, and only F that they hold both.
void add_fc2(checkpoint_builder& builder, const naming_scheme& scheme) {
  std::string name = scheme.gate;
  const auto fc1 = name.find("fc1");
  if (fc1 == name.npos) {
    return;
  }
  name[fc1 + 2] = '2';
  constexpr std::string_view mark = "{expert}";
  const auto at = name.find(mark);
  const auto add = [&](const std::string& own, const std::vector<index_t>& shape) {
    builder.add<float>(own, shape, std::vector<float>(static_cast<std::size_t>(element_count(shape)), 1.0F));
  };
  if (at == name.npos) {
    add(name, {N, F, D});
    return;
  }
  for (index_t e = 0; e < N; ++e) {
    add(std::string(name).replace(at, mark.size(), std::to_string(e)), {D, F});
  }
}

/// How many numbers of the layer are not those of its experts and its router.
index_t count_wrong(const moe_layer& layer) {
  index_t wrong = 0;
  for (index_t e = 0; e < N; ++e) {
    visit_gate<double>(layer.gates[static_cast<std::size_t>(e)], [&](const auto& a) {
      for (index_t f = 0; f < F; ++f) {
        for (index_t d = 0; d < D; ++d) {
          wrong += widen<double>(a(f, d)) == static_cast<double>((e * F + f) * D + d + 1) ? 0 : 1;
        }
      }
    });
    visit_router_row<double>(layer, e, [&](const auto& row) {
      for (index_t d = 0; d < D; ++d) {
        wrong += widen<double>(row[d]) == static_cast<double>(e * D + d) ? 0 : 1;
      }
    });
  }
  return wrong;
}

}  // namespace

TEST_CASE("the names of published models, and the table of them") {
  std::string table = "| models | router | gate | layout | found as |\n|---|---|---|---|---|\n";
  for (const auto& scheme : naming_schemes) {
    CAPTURE(scheme.models);
    checkpoint_builder builder;
    add_router(builder, scheme);
    add_gates(builder, scheme);
    add_fc2(builder, scheme);
    const temporary_folder folder;
    builder.write(folder / "model.safetensors");
    const checkpoint model(folder / "model.safetensors");
    const auto found = find_moe_layers(model);
    REQUIRE(found.size() == 1);
    CHECK(found.omissions.empty());
    const auto& layer = found[0];
    CHECK(layer.layout == scheme.layout);
    REQUIRE(layer.shape() == expert_shape{N, F, D});
    CHECK(count_wrong(layer) == 0);
    table += scheme_line(scheme, layer.family);
  }
  const auto page = read_bytes(MPIROUTER_TEST_DATA "/../../docs/families.md");
  if (!contains(page, table)) {
    MESSAGE("docs/families.md should have this table:\n" << table);
  }
  CHECK(contains(page, table));
}

}  // namespace test_naming_schemes
