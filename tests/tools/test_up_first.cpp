// Layouts that have up before gate, plain and packed, through all that reads gates: the table's numbers,
// compare and recondition.
#include "versions.hpp"

#include <io/packed.hpp>

#include <algorithm>
#include <cmath>
#include <tuple>

namespace test_up_first {
using namespace tool_test;

namespace {

using mpi_router::bf16;

/// Numbers that FP8 has too.
std::vector<float> coarse(std::vector<float> values) {
  for (auto& x : values) {
    x = std::clamp(std::round(x * 4) / 4, -3.75F, 3.75F);
  }
  return values;
}
std::vector<std::byte> as_fp8(const std::vector<float>& values) {
  std::vector<std::byte> out;
  for (const float x : values) {
    unsigned code = 0;
    while (packed_test::e4m3_value(code) != static_cast<double>(x)) {
      ++code;
    }
    out.push_back(static_cast<std::byte>(code));
  }
  return out;
}

struct up_first {
  models files;
  layer_data layer = random_layer(90, 4, 6, 10);

  up_first() { layer.gates = coarse(layer.gates); }

  /// The layer with up before gate in file B, half as large where it is packed, with 0.5 for a scale.
  void write(bool turned, bool packed) const {
    const auto [n, f, d] = std::tuple{layer.n, layer.f, layer.d};
    const auto shape = turned ? std::vector{n, d, 2 * f} : std::vector{n, 2 * f, d};
    const auto both = coarse(turned ? io_test::nd2f_up_first(layer) : io_test::n2fd_up_first(layer));
    const std::string name = "layers.0.mlp.experts.w3w1.weight";
    checkpoint_builder builder;
    builder.add<double>("layers.0.mlp.gate.weight", {n, d}, layer.router);
    if (packed) {
      builder.add_bytes(name, dtype::f8_e4m3, shape, as_fp8(both));
      builder.add<float>(name + "_scale", {}, {0.5F});
    } else {
      builder.add<bf16>(name, shape, both);
    }
    builder.write(files.b);
  }
  [[nodiscard]] layer_data truth(bool packed) const {
    auto out = layer;
    for (auto& x : out.gates) {
      x *= packed ? 0.5F : 1.0F;
    }
    return out;
  }
};

}  // namespace

TEST_CASE("up before gate: compare finds the gates, and recondition turns the rows towards them") {
  const up_first m;
  for (const bool turned : {false, true}) {
    for (const bool packed : {false, true}) {
      CAPTURE(turned);
      CAPTURE(packed);
      m.write(turned, packed);
      const auto l = m.truth(packed);
      m.files.write<bf16>(m.files.a, l);
      const auto document = m.files.compare({"--top-k", "2"});
      REQUIRE(document["layers"].size() == 1);
      for (const auto& e : document["layers"][0]["experts"]) {
        CHECK(e["row_cosine"].get<double>() == doctest::Approx(1).epsilon(1e-14));
        CHECK(e["direction_cosine"].get<double>() == doctest::Approx(1).epsilon(1e-12));
        CHECK(e["change_norm"] == 0.0);
        CHECK(e["a"]["sigma1"] == e["b"]["sigma1"]);
      }
      const std::string out = m.files.folder / "out.safetensors";
      std::filesystem::remove(out);
      REQUIRE(run({"recondition", m.files.b, out, "--steps", "3"}).status == 0);
      const mpi_router::checkpoint written(out);
      for (index_t e = 0; e < l.n; ++e) {
        const Eigen::MatrixXd a = gate_of(l, e);
        Eigen::VectorXd row = row_of(l, e);
        const double length = row.norm();
        for (int step = 0; step < 3; ++step) {
          row = length * (a.transpose() * (a * row)).normalized();
        }
        const Eigen::Map<const Eigen::VectorXd> stored(
            written.find("layers.0.mlp.gate.weight")->data<double>() + e * l.d, l.d);
        CHECK((stored - row).norm() < 1e-13 * length);
      }
    }
  }
}

}  // namespace test_up_first
