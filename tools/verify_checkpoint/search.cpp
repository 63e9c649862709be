#include "search.hpp"

#include "families.hpp"
#include "promises.hpp"
#include "remainder.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace verify {

namespace {

using mpi_router::checkpoint;
using mpi_router::stored_tensor;

/// A layer where two patterns name a router and gates of one family; `tried` if there was something to try.
attempt try_family(const checkpoint& model, const stored_tensor& router, const family& f,
                   const search_options& options, const std::optional<model_config>& config) {
  const auto bound = match_layer(f.router, router.name());
  if (!bound || !(bound->empty() || bound->ends_with('.'))) {
    return {};
  }
  return assemble(model, router,
                  {.family = std::string(f.name),
                   .pattern = replace(std::string(f.gate), layer_mark, *bound),
                   .layouts = options.how ? std::vector{*options.how} : f.layouts,
                   .asked = options.how.has_value(),
                   .of_architecture = config ? layout_of_architecture(f, *config) : std::nullopt,
                   .router_how = options.router_how});
}

void note_failure(const stored_tensor& router, attempt& made, found_parts& found) {
  found.said.insert(&router);
  found.result.others.push_back({router.name(), std::move(made.reason), fate::unseen, 1, made.rows});
}

void note_layer(moe_layer layer, found_parts& found) {
  found.said.insert(layer.router);
  for (const auto& gate : layer.gates) {
    found.said.insert(gate.tensor);
  }
  found.result.layers.push_back(std::move(layer));
}

void find_by_families(const checkpoint& model, const search_options& options,
                      const std::optional<model_config>& config, found_parts& found) {
  for (const auto* router : model.tensors()) {
    const auto role = part_of(router->name()).role;
    if (role == tensor_role::optimizer || role == tensor_role::adapter) {
      continue;
    }
    for (const auto& f : families()) {
      auto made = try_family(model, *router, f, options, config);
      if (made.layer) {
        note_layer(std::move(*made.layer), found);
        break;
      }
      if (!made.reason.empty()) {
        note_failure(*router, made, found);
        break;
      }
    }
  }
}

void find_by_patterns(const checkpoint& model, const search_options& options, found_parts& found) {
  for (const auto* router : model.tensors()) {
    const auto bound = match_layer(options.patterns->router, router->name());
    if (!bound) {
      continue;
    }
    const std::string gate = replace(options.patterns->gate, layer_mark, *bound);
    auto made = assemble(model, *router,
                         {.family = "named by --router and --gate",
                          .pattern = gate,
                          .layouts = {options.how.value_or(layout::nfd)},
                          .asked = options.how.has_value(),
                          .of_architecture = {},
                          .router_how = options.router_how});
    if (made.layer) {
      if (made.layer->name.empty()) {
        made.layer->name = bound->empty() ? router->name() : *bound;
      }
      note_layer(std::move(*made.layer), found);
      continue;
    }
    if (made.reason.empty()) {
      made = {{},
              fmt::format("there is no '{}'", replace(gate, expert_mark, "0")),
              router->rank() == 2 ? rows_of(*router, options.router_how) : 0};
    }
    note_failure(*router, made, found);
  }
}

template <class Named>
void sort_by_name(std::vector<Named>& all) {
  std::ranges::stable_sort(all, natural_less, [](const auto& each) { return std::string_view(each.name); });
}

}  // namespace

search_result find_layers(const checkpoint& model, const search_options& options) {
  found_parts found;
  const auto config = read_config(model.path());
  if (options.patterns) {
    find_by_patterns(model, options, found);
  } else {
    find_by_families(model, options, config, found);
  }
  sort_by_name(found.result.layers);
  note_remainder(model, found);
  sort_by_name(found.result.others);
  note_missing_files(model, found);
  if (config) {
    note_config(*config, found);
  }
  note_idle_rows(config, found);
  return std::move(found.result);
}

}  // namespace verify
