// What tensor names say: which layer, which expert, a router or neither.
#pragma once

#include <mpi_router/core/config.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace verify {

using mpi_router::index_t;

inline constexpr std::string_view layer_mark = "{layer}";
inline constexpr std::string_view expert_mark = "{expert}";

/// `pattern` with every `mark` replaced.
[[nodiscard]] std::string replace(std::string pattern, std::string_view mark, std::string_view value);

/// What {layer} must stand for so that `pattern` is `name`.
[[nodiscard]] std::optional<std::string> match_layer(std::string_view pattern, std::string_view name);

/// The number that {expert} must stand for so that `pattern` is `name`.
[[nodiscard]] std::optional<index_t> match_expert(std::string_view pattern, std::string_view name);

/// The dotted components that both names begin with.
[[nodiscard]] std::string shared_prefix(std::string_view a, std::string_view b);

/// "layers.2" before "layers.10": runs of digits compare as numbers.
[[nodiscard]] bool natural_less(std::string_view a, std::string_view b);

/// `name` with its numbers as stars, to say "layers.*.…" once instead of for each layer.
[[nodiscard]] std::string with_stars(std::string_view name);

/// "0-2, 5" of ascending numbers; after `most` runs there are dots.
[[nodiscard]] std::string ranges_of(const std::vector<index_t>& numbers, std::size_t most = 12);

enum class tensor_role { other, router, expert, optimizer, adapter };

/// What a tensor is, by the look of its name.
struct tensor_part {
  tensor_role role = tensor_role::other;
  std::string block = {};              ///< what a router and its experts begin with, "model.layers.3.mlp."
  std::optional<index_t> expert = {};  ///< of an expert's tensor that has a number
  bool plain_gate = false;             ///< a router by nothing but "gate", as dense layers have it too
};

[[nodiscard]] tensor_part part_of(std::string_view name);

/// Whether an expert's tensor looks like its gate, not like its up or down projection.
[[nodiscard]] bool looks_like_gate(std::string_view name);

/// The number of a layer and what stands before it: "model.layers." and 3. Nothing without a number.
struct layer_place {
  std::string series;
  index_t number = 0;
};
[[nodiscard]] std::optional<layer_place> place_of_layer(std::string_view block);

}  // namespace verify
