// Checkpoints made here: layers of random numbers in every layout, under any names.
#pragma once

#include <mpi_router/io/safetensors.hpp>

#include <io/files.hpp>
#include <support/random.hpp>

#include <nlohmann/json.hpp>

#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace io_test {

using mpi_router::dtype;
using mpi_router::index_t;
using nlohmann::json;

/// One layer in memory: router rows [N, D] and gates [N, F, D], as bf16 can hold them.
struct layer_data {
  index_t n = 0;
  index_t f = 0;
  index_t d = 0;
  std::vector<float> router;
  std::vector<float> gates;

  [[nodiscard]] float gate(index_t e, index_t i, index_t j) const {
    return gates[static_cast<std::size_t>((e * f + i) * d + j)];
  }
};

inline layer_data random_layer(std::uint64_t seed, index_t n, index_t f, index_t d) {
  test_support::random_source random(seed);
  const auto values = [&](index_t count) {
    std::vector<float> out;
    for (const auto x : test_support::random_vector<mpi_router::bf16>(random, count)) {
      out.push_back(static_cast<float>(x));
    }
    return out;
  };
  layer_data layer{n, f, d, values(n * d), values(n * f * d)};
  return layer;
}

/// The gates with an up projection of other numbers, in any fused layout: `index(e, f, d, up)` is the place
/// of an element.
template <class Index>
std::vector<float> arrange(const layer_data& l, bool fused, Index index) {
  test_support::random_source random(99);
  std::vector<float> out(static_cast<std::size_t>(l.n * l.f * l.d * (fused ? 2 : 1)));
  for (auto& x : out) {
    x = static_cast<float>(random.normal());  // the up projection is what is not overwritten
  }
  for (index_t e = 0; e < l.n; ++e) {
    for (index_t f = 0; f < l.f; ++f) {
      for (index_t d = 0; d < l.d; ++d) {
        out[static_cast<std::size_t>(index(e, f, d))] = l.gate(e, f, d);
      }
    }
  }
  return out;
}

inline std::vector<float> ndf(const layer_data& l) {
  return arrange(l, false, [&](index_t e, index_t f, index_t d) { return (e * l.d + d) * l.f + f; });
}
inline std::vector<float> n2fd_concatenated(const layer_data& l) {
  return arrange(l, true, [&](index_t e, index_t f, index_t d) { return (e * 2 * l.f + f) * l.d + d; });
}
inline std::vector<float> n2fd_interleaved(const layer_data& l) {
  return arrange(l, true, [&](index_t e, index_t f, index_t d) { return (e * 2 * l.f + 2 * f) * l.d + d; });
}
inline std::vector<float> nd2f_concatenated(const layer_data& l) {
  return arrange(l, true, [&](index_t e, index_t f, index_t d) { return (e * l.d + d) * 2 * l.f + f; });
}
inline std::vector<float> nd2f_interleaved(const layer_data& l) {
  return arrange(l, true, [&](index_t e, index_t f, index_t d) { return (e * l.d + d) * 2 * l.f + 2 * f; });
}
inline std::vector<float> n2fd_up_first(const layer_data& l) {
  return arrange(l, true, [&](index_t e, index_t f, index_t d) { return ((e * 2 + 1) * l.f + f) * l.d + d; });
}
inline std::vector<float> nd2f_up_first(const layer_data& l) {
  return arrange(l, true, [&](index_t e, index_t f, index_t d) { return (e * l.d + d) * 2 * l.f + l.f + f; });
}

inline std::vector<float> one_expert(const layer_data& l, index_t e) {
  const auto begin = l.gates.begin() + e * l.f * l.d;
  return {begin, begin + l.f * l.d};
}

/// Collects tensors, which it owns, and writes them.
class checkpoint_builder {
 public:
  template <class T>
  void add(const std::string& name, std::vector<index_t> shape, const std::vector<float>& values) {
    auto& bytes = storage_.emplace_back(values.size() * sizeof(T));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const T value(values[i]);
      std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
    }
    sources_.push_back({name, mpi_router::dtype_of<T>::value, std::move(shape), bytes});
  }
  /// Every byte the same.
  void add_raw(const std::string& name, dtype type, std::vector<index_t> shape, std::byte byte = {}) {
    auto& bytes = storage_.emplace_back(*mpi_router::detail::byte_size(type, shape), byte);
    sources_.push_back({name, type, std::move(shape), bytes});
  }
  void add_bytes(const std::string& name, dtype type, std::vector<index_t> shape,
                 std::vector<std::byte> data) {
    auto& bytes = storage_.emplace_back(std::move(data));
    sources_.push_back({name, type, std::move(shape), bytes});
  }
  void write(const std::filesystem::path& path) const {
    mpi_router::write_safetensors(path, sources_, metadata);
  }
  /// Every tensor into one of `count` shards, in turn, with an index.
  void write_shards(const std::filesystem::path& folder, std::size_t count) const {
    json index{{"metadata", {{"total_size", 1}}}, {"weight_map", json::object()}};
    for (std::size_t s = 0; s < count; ++s) {
      const std::string name = "model-" + std::to_string(s + 1) + ".safetensors";
      std::vector<mpi_router::tensor_source> part;
      for (std::size_t i = s; i < sources_.size(); i += count) {
        part.push_back(sources_[i]);
        index["weight_map"][sources_[i].name] = name;
      }
      mpi_router::write_safetensors(folder / name, part, metadata);
    }
    write_bytes(folder / "model.safetensors.index.json", index.dump(2));
  }

  std::map<std::string, std::string> metadata{{"format", "pt"}};

 private:
  std::deque<std::vector<std::byte>> storage_;
  std::vector<mpi_router::tensor_source> sources_;
};

/// The layer under this project's names.
template <class T = mpi_router::bf16>
void add_layer(checkpoint_builder& builder, const std::string& prefix, const layer_data& layer) {
  builder.add<float>(prefix + "mlp.router.weight", {layer.n, layer.d}, layer.router);
  builder.add<T>(prefix + "mlp.experts.gate_proj", {layer.n, layer.f, layer.d}, layer.gates);
}

}  // namespace io_test
