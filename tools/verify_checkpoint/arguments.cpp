#include "arguments.hpp"

#include <fmt/format.h>

#include <cmath>

namespace verify {

void require(bool condition, const std::string& message) {
  if (!condition) {
    throw input_error(message);
  }
}

void check(const arguments& a) {
  require(std::isfinite(a.tolerance) && a.tolerance > 0 && a.tolerance < 1,
          "--tolerance must lie between 0 and 1");
  constexpr index_t most = 1'000'000'000;
  require(a.max_steps >= 0 && a.max_steps <= most,
          fmt::format("--max-steps must lie between 0 and {}", most));
  require(!a.require_angle || (std::isfinite(*a.require_angle) && *a.require_angle > 0),
          "--require-angle must be positive");
  require(a.recondition.steps >= 0 && a.recondition.steps <= most,
          fmt::format("--steps must lie between 0 and {}", most));
  for (const auto& length : {a.radius, a.c_prime}) {
    require(!length || (std::isfinite(*length) && *length > 0), "--radius and --c-prime must be positive");
  }
  require(a.layers.empty() || numbers_of_list(a.layers).has_value(),
          fmt::format("--layers takes numbers, 3,17-20, not '{}'", a.layers));
  require(!a.sample || *a.sample >= 1, "--sample must be at least 1");
  require(a.threads >= 0 && a.threads <= 4096, "--threads must lie between 1 and 4096");
  require(a.router.empty() == a.gate.empty(), "--router and --gate go together");
  require(a.layout.empty() || mpi_router::gate_layout_from_string(a.layout).has_value(),
          fmt::format("there is no layout '{}'; --help lists them", a.layout));
  require(mpi_router::part_weights_from_string(a.of).has_value(),
          fmt::format("--of takes gate, up and down, each once, with + between them, not '{}'", a.of));
  require((a.router.find("{layer}") == std::string::npos) == (a.gate.find("{layer}") == std::string::npos),
          "{layer} must stand in both --router and --gate, or in neither");
  require(a.router.find("{expert}") == std::string::npos,
          "{expert} belongs into --gate: a router has all experts' rows");
}

selection selected(const arguments& a) {
  return {a.layers.empty() ? std::vector<index_t>() : *numbers_of_list(a.layers), a.sample};
}

mpi_router::moe_search naming(const arguments& a) {
  mpi_router::moe_search wanted;
  if (!a.router.empty()) {
    wanted.patterns = mpi_router::name_patterns{a.router, a.gate};
  }
  wanted.layout = mpi_router::gate_layout_from_string(a.layout);
  using mpi_router::router_layout;
  if (!a.layout_of_router.empty()) {
    wanted.layout_of_router = a.layout_of_router == "dn" ? router_layout::dn : router_layout::nd;
  }
  wanted.of = *mpi_router::part_weights_from_string(a.of);
  wanted.layout_of_down = mpi_router::gate_layout_from_string(a.layout_of_down);
  wanted.words = {.layout = "--layout",
                  .layout_of_router = "--router-layout",
                  .layout_of_down = "--down-layout",
                  .of = "--of",
                  .patterns = "--router and --gate",
                  .patterns_and_layout = "--router, --gate and --layout"};
  return wanted;
}

}  // namespace verify
