// The names and layouts that known model families give their tensors.
#pragma once

#include "config.hpp"
#include "layout.hpp"

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace verify {

/// A layout that every release of an architecture has.
struct architecture_layout {
  std::string_view architecture;  ///< what its names begin with, see model_config::names
  layout how;
};

/// How one family names the router and the gates of a layer. {layer} is empty or ends with a dot.
struct family {
  std::string_view name;
  std::string_view router;
  std::string_view gate;
  std::vector<layout> layouts;  ///< more than one: releases differ
  std::vector<architecture_layout> architectures;
};

[[nodiscard]] std::span<const family> families();

/// The layout of the architecture that config.json names, if the family knows it.
[[nodiscard]] std::optional<layout> layout_of_architecture(const family& f, const model_config& config);

/// The families, a few lines each, for --help.
[[nodiscard]] std::string describe_families();

}  // namespace verify
