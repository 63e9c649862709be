// The table of docs/families.md, from the families themselves.
#pragma once

#include <mpi_router/io/moe/families.hpp>
#include <mpi_router/io/moe/names.hpp>

#include <string>

namespace io_test {

/// A line for each family: names with … for any prefix and E for the number of an expert.
inline std::string families_table() {
  using mpi_router::detail::moe::substituted;
  std::string out = "| family | router | gate | layout |\n|---|---|---|---|\n";
  for (const auto& family : mpi_router::model_families()) {
    std::string layouts;
    for (const auto layout : family.layouts) {
      layouts += (layouts.empty() ? "" : " or ") + std::string(to_string(layout));
    }
    const auto gate = substituted(substituted(family.gate, "{layer}", "…"), "{expert}", "E");
    out += "| " + std::string(family.name) + " | `" + substituted(family.router, "{layer}", "…") + "`" +
           (family.layout_of_router == mpi_router::router_layout::dn ? " [D, N]" : "") + " | `" + gate + "`" +
           (family.part == mpi_router::expert_part::up ? " (up: no gate)" : "") + " | " + layouts + " |\n";
  }
  return out;
}

}  // namespace io_test
