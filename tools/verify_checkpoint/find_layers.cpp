#include "find_layers.hpp"

#include "hints.hpp"

#include <mpi_router/io/moe_layers.hpp>

#include <fmt/format.h>

namespace verify {

moe_layers find_some(const mpi_router::checkpoint& model, const arguments& a) {
  return find_some(
      model, a, [&](const omission& other) { return commands_for(a.again, model.path().string(), other); });
}

moe_layers find_some(const mpi_router::checkpoint& model, const arguments& a, const command_maker& commands) {
  auto found = mpi_router::find_moe_layers(model, naming(a));
  if (found.empty()) {
    std::string reasons;
    for (const auto& other : found.omissions) {
      reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", other.name, other.reason);
      for (const auto& command : commands(other)) {
        reasons += "; if it is so: " + command;
      }
    }
    throw input_error(
        reasons.empty()
            ? fmt::format(
                  "{}: no MoE layer found among its {} tensors; --router, --gate and --layout name them",
                  model.path().string(), model.weights().size())
            : fmt::format("{}: no MoE layer can be used: {}", model.path().string(), reasons));
  }
  return found;
}

}  // namespace verify
