// A checkpoint that is written, opened and searched for its layers.
#pragma once

#include "checkpoints.hpp"

#include <mpi_router/io/moe_layers.hpp>

#include <string>
#include <utility>
#include <vector>

namespace io_test {

/// The shape of layers where any will do: no two of N, F, 2F and D are alike.
inline constexpr mpi_router::index_t N = 4;
inline constexpr mpi_router::index_t F = 6;
inline constexpr mpi_router::index_t D = 10;

/// A tensor of random numbers; "{}" in its name stands for an expert, each of which has one.
struct random_tensor {
  std::string name;
  std::vector<mpi_router::index_t> shape;
};

/// A checkpoint of these.
inline checkpoint_builder build(const std::vector<random_tensor>& tensors) {
  checkpoint_builder builder;
  unsigned seed = 150;
  for (const auto& [name, shape] : tensors) {
    const auto at = name.find("{}");
    for (mpi_router::index_t e = 0; e < (at == name.npos ? 1 : N); ++e) {
      const auto own = at == name.npos ? name : std::string(name).replace(at, 2, std::to_string(e));
      builder.add<float>(own, shape, random_layer(seed++, 1, 1, mpi_router::element_count(shape)).router);
    }
  }
  return builder;
}

struct searched {
  temporary_folder folder;
  mpi_router::checkpoint model;
  mpi_router::moe_layers found;

  explicit searched(const checkpoint_builder& builder, const mpi_router::moe_search& wanted = {},
                    const std::string& config = "", const std::string& name = "model.safetensors")
      : model((write(builder, config, name), folder.path())), found(find_moe_layers(model, wanted)) {}

  /// For a part of an expert, or a sum of them, such as "gate+up".
  searched(const checkpoint_builder& builder, const std::string& of, mpi_router::moe_search wanted = {},
           const std::string& config = "")
      : searched(builder, (wanted.of = mpi_router::part_weights_from_string(of).value(), std::move(wanted)),
                 config) {}

 private:
  void write(const checkpoint_builder& builder, const std::string& config, const std::string& name) const {
    builder.write(folder / name);
    if (!config.empty()) {
      write_bytes(folder / "config.json", config);
    }
  }
};

/// The one layer, without a word about anything else.
inline const mpi_router::moe_layer& only_layer(const searched& s) {
  for (const auto& each : s.found.omissions) {
    FAIL_CHECK(each.name, ": ", each.reason);
  }
  REQUIRE(s.found.size() == 1);
  return s.found[0];
}

/// The layouts that the first omission offers.
inline std::vector<mpi_router::gate_layout> hinted(const searched& s) {
  std::vector<mpi_router::gate_layout> out;
  for (const auto& hint : s.found.omissions.at(0).hints) {
    out.push_back(hint.layout);
  }
  return out;
}

/// The one reason why there is no layer.
inline std::string reason_of(const searched& s) {
  CHECK(s.found.empty());
  REQUIRE(s.found.omissions.size() == 1);
  CHECK(s.found.omissions[0].kind == mpi_router::omission_kind::unseen);
  CHECK(s.found.omissions[0].layers == 1);
  return s.found.omissions[0].reason;
}

}  // namespace io_test
