#include "assemble.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

namespace verify {

namespace {

using mpi_router::checkpoint;
using mpi_router::stored_tensor;
using mpi_router::to_string;          // of a type
using mpi_router::detail::to_string;  // of a shape

/// The tensors that hold the gates: one for all experts, or one for each, by its number.
struct gate_tensors {
  std::map<index_t, const stored_tensor*> tensors;
  bool one_each = false;

  [[nodiscard]] const stored_tensor& first() const { return *tensors.begin()->second; }
  /// Experts that one of these tensors holds, if the layer has so many.
  [[nodiscard]] index_t held_by_one(index_t experts) const { return one_each ? 1 : experts; }
};

gate_tensors find_gates(const checkpoint& model, const std::string& pattern) {
  gate_tensors found;
  found.one_each = pattern.find(expert_mark) != pattern.npos;
  if (!found.one_each) {
    if (const auto* t = model.find(pattern)) {
      found.tensors.emplace(0, t);
    }
    return found;
  }
  for (const auto* t : tensors_with(model, std::string_view(pattern).substr(0, pattern.find(expert_mark)))) {
    if (const auto number = match_expert(pattern, t->name())) {
      found.tensors.emplace(*number, t);
    }
  }
  return found;
}

/// A tensor beside `t` that scales it: then its numbers are not the weights, whatever its type.
const stored_tensor* scale_of(const checkpoint& model, const stored_tensor& t) {
  std::string_view stem = t.name();
  if (stem.ends_with(".weight")) {
    stem.remove_suffix(std::string_view("weight").size());
  }
  for (const auto* other : tensors_with(model, stem)) {
    std::string_view rest = std::string_view(other->name()).substr(stem.size());
    rest.remove_prefix(std::min(rest.find_first_not_of("._"), rest.size()));
    const bool of_activations = rest.starts_with("input") || rest.starts_with("output") ||
                                rest.starts_with("act") || rest.starts_with("k_") || rest.starts_with("v_");
    const bool scale = rest.find("scale") != rest.npos || rest.find("absmax") != rest.npos;
    if (scale && !of_activations && other != &t) {
      return other;
    }
  }
  return nullptr;
}

/// Why the numbers of this tensor are not to be read as they are; empty if they are.
std::string unreadable(const checkpoint& model, const stored_tensor& t) {
  if (!is_floating(t.type())) {
    return fmt::format(
        "'{}' is stored as {}, packed weights, which are not supported: write the model out in bf16 first, "
        "with the scales multiplied in",
        t.name(), to_string(t.type()));
  }
  if (const auto* scale = scale_of(model, t)) {
    return fmt::format(
        "'{}' is {}, but '{}' is beside it: it was cast without its scales, and its numbers "
        "are not the weights; write the model out again with the scales multiplied in",
        t.name(), to_string(t.type()), scale->name());
  }
  return "";
}

/// Whether every gate can be stored so.
bool fits(layout how, const gate_tensors& gates, index_t experts, index_t hidden_dim) {
  return std::ranges::all_of(gates.tensors, [&](const auto& each) {
    return ffn_dim_of(how, each.second->shape(), gates.held_by_one(experts), hidden_dim).has_value();
  });
}
bool fits_any(const std::vector<layout>& layouts, const gate_tensors& gates, index_t experts,
              index_t hidden_dim) {
  return std::ranges::any_of(layouts, [&](auto how) { return fits(how, gates, experts, hidden_dim); });
}

/// Experts that the gates hold, of a layer whose router has `rows`.
index_t count_experts(const gate_tensors& gates, index_t rows) {
  if (gates.one_each) {
    return static_cast<index_t>(gates.tensors.size());
  }
  const auto shape = gates.first().shape();
  return shape.size() == 3 ? std::min(shape[0], rows) : rows;
}

/// What is wrong with the numbers of the experts, where each has a tensor of its own.
std::string wrong_numbers(const gate_tensors& gates, const std::string& pattern, index_t rows) {
  if (!gates.one_each) {
    return "";
  }
  const auto name = [&](index_t e) { return replace(pattern, expert_mark, std::to_string(e)); };
  if (const auto beyond = gates.tensors.lower_bound(rows); beyond != gates.tensors.end()) {
    return fmt::format("the router has {} rows, but there is a '{}' too", rows, name(beyond->first));
  }
  const auto count = static_cast<index_t>(gates.tensors.size());
  for (index_t e = 0; e < count; ++e) {
    if (!gates.tensors.contains(e)) {
      return fmt::format(
          "{} of its {} experts are not here, the first is '{}'; is this one shard of several?", rows - count,
          rows, name(e));
    }
  }
  return "";
}

/// Torch's Linear keeps [out, in], so that a square weight of its own is no question.
bool is_linear(const gate_tensors& gates, const std::string& pattern) {
  return gates.one_each && gates.first().rank() == 2 && pattern.ends_with(".weight");
}

/// A layout and what says so, or a question. One rule for all families: a layout is taken if no other of the
/// same kind has such shapes; if config.json names an architecture that has but the one; if torch's Linear
/// leaves no choice; or if the user says so.
struct layout_choice {
  std::optional<layout> how;
  std::string known_by;
  std::string reason;
};

std::string list(const std::vector<layout>& layouts) {
  std::string out;
  for (const layout how : layouts) {
    out += fmt::format("{}{} (--layout {})", out.empty() ? "" : " or ", meaning_of(how), flag_of(how));
  }
  return out;
}

layout_choice choose_layout(const gate_search& wanted, const gate_tensors& gates, index_t experts,
                            index_t hidden_dim) {
  std::vector<layout> fitting;
  std::vector<layout> possible;
  for (const layout how : wanted.layouts) {
    for (const layout other : {how, transposed(how)}) {
      if (fits(other, gates, experts, hidden_dim) && std::ranges::find(possible, other) == possible.end()) {
        possible.push_back(other);
      }
    }
    if (fits(how, gates, experts, hidden_dim)) {
      fitting.push_back(how);
    }
  }
  const auto& first = gates.first();
  if (fitting.empty()) {
    const auto odd = std::ranges::find_if(gates.tensors, [&](const auto& each) {
      return !fits_any(wanted.layouts, {{each}, gates.one_each}, experts, hidden_dim);
    });
    const auto& shown = odd == gates.tensors.end() ? first : *odd->second;
    return {{},
            "",
            fmt::format("'{}' has shape {}, which is not {} with the router's N = {}, D = {}", shown.name(),
                        to_string(shown.shape()), list(wanted.layouts), experts, hidden_dim)};
  }
  if (wanted.asked) {
    return {fitting[0], "--layout", ""};
  }
  if (possible.size() == 1) {
    return {fitting[0], "its shape", ""};
  }
  if (wanted.of_architecture && std::ranges::find(fitting, *wanted.of_architecture) != fitting.end()) {
    return {wanted.of_architecture, "config.json", ""};
  }
  if (fitting.size() == 1 && is_linear(gates, wanted.pattern)) {
    return {fitting[0], "torch's Linear", ""};
  }
  return {{},
          "",
          fmt::format("'{}' of shape {} may be {}: say which", first.name(), to_string(first.shape()),
                      list(possible))};
}

moe_layer build(const stored_tensor& router, const gate_search& wanted, const gate_tensors& gates,
                const layout_choice& chosen, index_t experts) {
  moe_layer layer;
  layer.name = shared_prefix(router.name(), gates.first().name());
  layer.family = wanted.family;
  layer.router = &router;
  layer.router_how = wanted.router_how;
  layer.gate_name = wanted.pattern;
  layer.how = *chosen.how;
  layer.how_known = chosen.known_by;
  layer.num_experts = experts;
  layer.router_rows = rows_of(router, wanted.router_how);
  layer.hidden_dim = hidden_dim_of(router, wanted.router_how);
  for (index_t e = 0; e < experts; ++e) {
    const auto* tensor = gates.one_each ? gates.tensors.at(e) : &gates.first();
    const auto ffn_dim = ffn_dim_of(layer.how, tensor->shape(), gates.held_by_one(experts), layer.hidden_dim);
    layer.gates.push_back({.tensor = tensor,
                           .index = gates.one_each ? 0 : e,
                           .how = layer.how,
                           .ffn_dim = *ffn_dim,
                           .hidden_dim = layer.hidden_dim});
    layer.ffn_dim = std::max(layer.ffn_dim, *ffn_dim);
  }
  return layer;
}

/// The router's own faults, seen beside its gates.
std::string wrong_router(const stored_tensor& router, const gate_search& wanted, const gate_tensors& gates) {
  const auto shape = router.shape();
  if (shape.size() != 2 || shape[0] == 0 || shape[1] == 0) {
    return fmt::format("the router has shape {}, not [N, D]", to_string(shape));
  }
  const auto other = wanted.router_how == router_layout::nd ? router_layout::dn : router_layout::nd;
  const auto held = gates.one_each ? static_cast<index_t>(gates.tensors.size()) : gates.first().shape()[0];
  const bool turned = rows_of(router, other) == held &&
                      fits_any(wanted.layouts, gates, held, hidden_dim_of(router, other)) &&
                      !fits_any(wanted.layouts, gates, held, hidden_dim_of(router, wanted.router_how));
  if (turned) {
    return fmt::format(
        "the router has shape {} and there are {} experts: it seems stored {} (--router-layout {})",
        to_string(shape), held, other == router_layout::dn ? "[D, N]" : "[N, D]",
        other == router_layout::dn ? "dn" : "nd");
  }
  return "";
}

}  // namespace

bool moe_layer::is_uniform() const {
  return std::ranges::all_of(gates, [&](const auto& g) { return g.ffn_dim == ffn_dim; });
}

std::span<const stored_tensor* const> tensors_with(const checkpoint& model, std::string_view prefix) {
  const auto all = model.tensors();
  const auto begin =
      std::ranges::lower_bound(all, prefix, {}, [](const auto* t) { return std::string_view(t->name()); });
  const auto end =
      std::find_if_not(begin, all.end(), [&](const auto* t) { return t->name().starts_with(prefix); });
  return {begin, end};
}

attempt assemble(const checkpoint& model, const stored_tensor& router, const gate_search& wanted) {
  const auto gates = find_gates(model, wanted.pattern);
  if (gates.tensors.empty() || gates.first().rank() == 0) {
    return {};
  }
  const auto held = static_cast<index_t>(gates.tensors.size());
  const auto refuse = [&](std::string reason, index_t rows) { return attempt{{}, std::move(reason), rows}; };
  if (auto reason = wrong_router(router, wanted, gates); !reason.empty()) {
    return refuse(std::move(reason), gates.one_each ? held : gates.first().shape()[0]);
  }
  const index_t rows = rows_of(router, wanted.router_how);
  const index_t experts = count_experts(gates, rows);
  if (auto reason = wrong_numbers(gates, wanted.pattern, rows); !reason.empty()) {
    return refuse(std::move(reason), std::max(rows, held));
  }
  if (auto reason = unreadable(model, router); !reason.empty()) {
    return refuse(std::move(reason), rows);
  }
  for (const auto& [number, tensor] : gates.tensors) {
    if (auto reason = unreadable(model, *tensor); !reason.empty()) {
      return refuse(std::move(reason), rows);
    }
  }
  const auto chosen = choose_layout(wanted, gates, experts, hidden_dim_of(router, wanted.router_how));
  if (!chosen.how) {
    return refuse(chosen.reason, rows);
  }
  return {build(router, wanted, gates, chosen, experts), "", rows};
}

}  // namespace verify
