// Two checkpoints to compare, and what was done between them.
#pragma once

#include "program.hpp"

namespace tool_test {

inline Eigen::MatrixXd gate_of(const layer_data& l, index_t e) {
  Eigen::MatrixXd a(l.f, l.d);
  for (index_t f = 0; f < l.f; ++f) {
    for (index_t d = 0; d < l.d; ++d) {
      a(f, d) = static_cast<double>(l.gate(e, f, d));
    }
  }
  return a;
}

inline Eigen::VectorXd row_of(const layer_data& l, index_t e) {
  return Eigen::Map<const Eigen::VectorXf>(l.router.data() + e * l.d, l.d).cast<double>();
}

/// The experts of these numbers, in this order.
inline layer_data picked(const layer_data& l, const std::vector<index_t>& experts) {
  layer_data out{static_cast<index_t>(experts.size()), l.f, l.d, {}, {}};
  for (const auto e : experts) {
    out.router.insert(out.router.end(), l.router.begin() + e * l.d, l.router.begin() + (e + 1) * l.d);
    const auto gate = io_test::one_expert(l, e);
    out.gates.insert(out.gates.end(), gate.begin(), gate.end());
  }
  return out;
}

/// Some noise on all numbers.
inline layer_data disturbed(layer_data l, float by, std::uint64_t seed = 7) {
  test_support::random_source random(seed);
  for (auto* values : {&l.router, &l.gates}) {
    for (auto& x : *values) {
      x += by * static_cast<float>(random.normal());
    }
  }
  return l;
}

struct models {
  temporary_folder folder;
  std::string a = folder / "a.safetensors";
  std::string b = folder / "b.safetensors";

  template <class T = float>
  void write(const std::string& path, const layer_data& layer,
             const std::string& prefix = "layers.0.") const {
    checkpoint_builder builder;
    add_layer<T>(builder, prefix, layer);
    builder.write(path);
  }
  [[nodiscard]] json compare(std::vector<std::string> flags = {}) const {
    std::vector<std::string> arguments{"compare", a, b};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    CHECK(run(arguments).status == 0);  // the table, too
    return run_json(arguments);
  }
};

}  // namespace tool_test
