// Names that are paths of another separator than the dot, as JAX writes them.
#pragma once

#include <mpi_router/core/config.hpp>

#include <algorithm>
#include <string>
#include <string_view>

MPIROUTER_BEGIN

namespace detail {

/// "params.decoder.layers_0.moe_block.wi_0" of "params-decoder-layers_0-moe_block-wi_0" (MaxText) or of the
/// same with slashes (Flax, TensorFlow). A name that has a dot is as it is, and so is one without any.
[[nodiscard]] inline std::string dotted(std::string name) {
  if (name.find('.') == name.npos) {
    const char separator = name.find('/') != name.npos ? '/' : '-';
    std::ranges::replace(name, separator, '.');
  }
  return name;
}

}  // namespace detail

MPIROUTER_END
