#include "families.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <span>

namespace verify {

namespace {

using mpi_router::checkpoint;
using mpi_router::stored_tensor;
using mpi_router::to_string;          // of a type
using mpi_router::detail::to_string;  // of a shape

/// How one family names the router and the gates of a layer. {layer} is empty or ends with a dot.
struct family {
  std::string_view name;
  std::string_view router;
  std::string_view gate;
  std::vector<layout> layouts;  ///< more than one: releases differ, and D against 2F must tell them apart
};

const std::vector<family>& families() {
  using enum layout;
  static const std::vector<family> table{
      {"mpi_router", "{layer}mlp.router.weight", "{layer}mlp.experts.gate_proj", {nfd}},
      {"OLMoE, Qwen-MoE, DeepSeek, GLM",
       "{layer}mlp.gate.weight",
       "{layer}mlp.experts.{expert}.gate_proj.weight",
       {nfd}},
      {"Hunyuan", "{layer}mlp.gate.wg.weight", "{layer}mlp.experts.{expert}.gate_proj.weight", {nfd}},
      {"Mixtral, Phi-MoE, MiniMax",
       "{layer}block_sparse_moe.gate.weight",
       "{layer}block_sparse_moe.experts.{expert}.w1.weight",
       {nfd}},
      {"MegaBlocks, DBRX", "{layer}router.layer.weight", "{layer}experts.mlp.w1", {nfd}},
      {"Granite-MoE",
       "{layer}block_sparse_moe.router.layer.weight",
       "{layer}block_sparse_moe.input_linear.weight",
       {n2fd_concatenated}},
      {"gpt-oss", "{layer}mlp.router.weight", "{layer}mlp.experts.gate_up_proj", {nd2f_interleaved}},
      {"Llama-4",
       "{layer}feed_forward.router.weight",
       "{layer}feed_forward.experts.gate_up_proj",
       {nd2f_concatenated}},
      {"Qwen3-VL, Qwen3.5",
       "{layer}mlp.gate.weight",
       "{layer}mlp.experts.gate_up_proj",
       {nd2f_concatenated, n2fd_concatenated}},
      {"Jamba",
       "{layer}feed_forward.router.weight",
       "{layer}feed_forward.experts.{expert}.gate_proj.weight",
       {nfd}},
      {"LFM2-MoE",
       "{layer}feed_forward.gate.weight",
       "{layer}feed_forward.experts.{expert}.w1.weight",
       {nfd}},
  };
  return table;
}

constexpr std::string_view layer_mark = "{layer}";
constexpr std::string_view expert_mark = "{expert}";
constexpr std::string_view name_them = "--router, --gate and --layout name the tensors of other models";

/// `pattern` with every `mark` replaced.
std::string replace(std::string pattern, std::string_view mark, std::string_view value) {
  for (auto at = pattern.find(mark); at != pattern.npos; at = pattern.find(mark, at + value.size())) {
    pattern.replace(at, mark.size(), value);
  }
  return pattern;
}

/// What {layer} must stand for so that `pattern` is `name`.
std::optional<std::string> match_layer(std::string_view pattern, std::string_view name) {
  const auto at = pattern.find(layer_mark);
  if (at == pattern.npos) {
    return pattern == name ? std::optional<std::string>("") : std::nullopt;
  }
  const auto before = pattern.substr(0, at);
  const auto after = pattern.substr(at + layer_mark.size());
  if (name.size() < before.size() + after.size() || !name.starts_with(before) || !name.ends_with(after)) {
    return std::nullopt;
  }
  return std::string(name.substr(before.size(), name.size() - before.size() - after.size()));
}

/// The dotted components that both names begin with.
std::string shared_prefix(std::string_view a, std::string_view b) {
  std::size_t shared = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()) && a[i] == b[i]; ++i) {
    shared = a[i] == '.' ? i : shared;
  }
  return std::string(a.substr(0, shared));
}

/// "layers.2" before "layers.10": runs of digits compare as numbers.
bool natural_less(std::string_view a, std::string_view b) {
  const auto digits = [](std::string_view& text) {
    const auto end = std::min(text.find_first_not_of("0123456789"), text.size());
    auto run = text.substr(0, end);
    text.remove_prefix(end);
    run.remove_prefix(std::min(run.find_first_not_of('0'), run.size()));
    return run;
  };
  const auto whole_a = a;
  const auto whole_b = b;
  while (!a.empty() && !b.empty()) {
    const auto run_a = digits(a);
    const auto run_b = digits(b);
    if (run_a != run_b) {
      return run_a.size() != run_b.size() ? run_a.size() < run_b.size() : run_a < run_b;
    }
    if (a.empty() || b.empty() || a[0] != b[0]) {
      break;
    }
    a.remove_prefix(1);
    b.remove_prefix(1);
  }
  return a.empty() != b.empty() ? a.empty() : a != b ? a < b : whole_a < whole_b;
}

/// A layer, or why there is none.
struct attempt {
  std::optional<moe_layer> layer;
  std::string reason;
};

/// The tensors that hold the gates: one for all experts, or one for each.
struct gate_tensors {
  std::vector<const stored_tensor*> tensors;
  bool one_each = false;
};

/// Finds the gate tensors of a layer; empty with a reason where some experts are missing, without one where
/// all are.
std::pair<gate_tensors, std::string> find_gates(const checkpoint& model, const std::string& pattern,
                                                index_t experts) {
  gate_tensors found;
  found.one_each = pattern.find(expert_mark) != pattern.npos;
  if (!found.one_each) {
    if (const auto* t = model.find(pattern)) {
      found.tensors.push_back(t);
    }
    return {found, ""};
  }
  index_t missing = 0;
  std::string first_missing;
  for (index_t e = 0; e < experts; ++e) {
    const std::string name = replace(pattern, expert_mark, std::to_string(e));
    if (const auto* t = model.find(name)) {
      found.tensors.push_back(t);
    } else if (missing++ == 0) {
      first_missing = name;
    }
  }
  if (found.tensors.empty()) {
    return {found, ""};
  }
  if (missing > 0) {
    return {{},
            fmt::format("{} of its {} experts are not here, the first is '{}'; is this one shard of several?",
                        missing, experts, first_missing)};
  }
  const std::string beyond = replace(pattern, expert_mark, std::to_string(experts));
  if (model.find(beyond) != nullptr) {
    return {{}, fmt::format("the router has {} rows, but there is a '{}' too", experts, beyond)};
  }
  return {found, ""};
}

/// Puts a layer together from a router and the pattern of its gates; neither layer nor reason where there are
/// no gates.
attempt assemble(const checkpoint& model, const stored_tensor& router, const std::string& gate_pattern,
                 std::span<const layout> layouts, std::string_view family_name) {
  const auto shape = router.shape();
  if (shape.size() != 2 || shape[0] == 0 || shape[1] == 0) {
    const bool gates = !find_gates(model, gate_pattern, 1).first.tensors.empty();
    return {{}, gates ? fmt::format("the router has shape {}, not [N, D]", to_string(shape)) : ""};
  }
  const index_t experts = shape[0];
  const index_t hidden_dim = shape[1];
  const auto [gates, problem] = find_gates(model, gate_pattern, experts);
  if (gates.tensors.empty()) {
    return {{}, problem};
  }
  for (const auto* t : {&router, gates.tensors.front()}) {
    if (!is_floating(t->type())) {
      return {{},
              fmt::format("'{}' is stored as {}; convert it to bf16, f16, f32 or f64 first", t->name(),
                          to_string(t->type()))};
    }
  }
  const auto& first = *gates.tensors.front();
  for (const auto* t : gates.tensors) {
    if (t->type() != first.type() || !std::ranges::equal(t->shape(), first.shape())) {
      return {{},
              fmt::format("its experts differ: '{}' is {} {}, '{}' is {} {}", first.name(),
                          to_string(first.shape()), to_string(first.type()), t->name(), to_string(t->shape()),
                          to_string(t->type()))};
    }
  }

  std::vector<layout> fitting;
  for (const layout how : layouts) {
    if (ffn_dim_of(how, first.shape(), gates.one_each ? 1 : experts, hidden_dim)) {
      fitting.push_back(how);
    }
  }
  if (fitting.size() != 1) {
    std::string wanted;
    for (const layout how : fitting.empty() ? std::vector(layouts.begin(), layouts.end()) : fitting) {
      wanted +=
          fmt::format("{}{} (--layout {})", wanted.empty() ? "" : " or ", meaning_of(how), flag_of(how));
    }
    return {{},
            fitting.empty()
                ? fmt::format("'{}' has shape {}, which is not {} with the router's N = {}, D = {}",
                              first.name(), to_string(first.shape()), wanted, experts, hidden_dim)
                : fmt::format("'{}' of shape {} may be {}: say which", first.name(), to_string(first.shape()),
                              wanted)};
  }

  moe_layer layer;
  layer.name = shared_prefix(router.name(), first.name());
  layer.family = family_name;
  layer.router = &router;
  layer.num_experts = experts;
  layer.hidden_dim = hidden_dim;
  layer.ffn_dim = *ffn_dim_of(fitting[0], first.shape(), gates.one_each ? 1 : experts, hidden_dim);
  for (index_t e = 0; e < experts; ++e) {
    layer.gates.push_back({.tensor = gates.one_each ? gates.tensors[static_cast<std::size_t>(e)] : &first,
                           .index = gates.one_each ? 0 : e,
                           .how = fitting[0],
                           .ffn_dim = layer.ffn_dim,
                           .hidden_dim = hidden_dim});
  }
  return {std::move(layer), ""};
}

/// Whether two patterns name a router and gates of one family for {layer} = `bound`.
attempt try_family(const checkpoint& model, const stored_tensor& router, const family& f,
                   const search_options& options) {
  const auto bound = match_layer(f.router, router.name());
  if (!bound || !(bound->empty() || bound->ends_with('.'))) {
    return {};
  }
  const auto layouts = options.how ? std::vector{*options.how} : f.layouts;
  return assemble(model, router, replace(std::string(f.gate), layer_mark, *bound), layouts, f.name);
}

/// `name` with its numbers as stars, to say "layers.*.…" once instead of for each layer.
std::string with_stars(std::string_view name) {
  std::string out;
  for (std::size_t begin = 0; begin <= name.size();) {
    const auto end = std::min(name.find('.', begin), name.size());
    const auto part = name.substr(begin, end - begin);
    const bool number = !part.empty() && part.find_first_not_of("0123456789") == part.npos;
    out += (begin == 0 ? "" : ".") + std::string(number ? "*" : part);
    begin = end + 1;
  }
  return out;
}

/// The block that a router or an expert belongs to, by the look of its name; nothing for other tensors.
std::optional<std::string> block_of_router(std::string_view name) {
  for (const std::string_view end :
       {"router.weight", "router.layer.weight", "gate.weight", "gate.wg.weight"}) {
    if (name.ends_with(end) && (name.size() == end.size() || name[name.size() - end.size() - 1] == '.')) {
      return std::string(name.substr(0, name.size() - end.size()));
    }
  }
  return std::nullopt;
}
std::optional<std::string> block_of_gate(std::string_view name) {
  const std::string_view mark = "experts.";
  const auto at = name.starts_with(mark) ? 0 : name.find(".experts.") + 1;
  if (at == 0 && !name.starts_with(mark)) {
    return std::nullopt;
  }
  const auto rest = name.substr(at + mark.size());
  const bool gate = (rest.find("gate") != rest.npos || rest.find("w1") != rest.npos) &&
                    !rest.ends_with("bias") && !rest.ends_with("_scales");
  return gate ? std::optional(std::string(name.substr(0, at))) : std::nullopt;
}

/// Routers and gates, by the look of their names, of blocks about which nothing has been said yet.
std::vector<unmatched> leftovers(const checkpoint& model, const std::set<std::string>& said) {
  std::map<std::string, std::pair<std::string, int>> groups;  // pattern: reason, count
  const auto add = [&](const stored_tensor* t, const std::string& reason) {
    ++groups.try_emplace(with_stars(t->name()), reason, 0).first->second.second;
  };
  std::set<std::string> with_gates;
  for (const auto* t : model.tensors()) {
    const auto block = block_of_gate(t->name());
    if (!block || said.contains(*block)) {
      continue;
    }
    with_gates.insert(*block);
    add(t,
        t->name().ends_with("_blocks")
            ? "packed 4-bit weights (MXFP4), which are not supported: write the model out in bf16 first"
            : fmt::format("looks like experts, but no router goes with them that a known family names so; {}",
                          name_them));
  }
  for (const auto* t : model.tensors()) {
    const auto block = block_of_router(t->name());
    if (block && !said.contains(*block) && !with_gates.contains(*block)) {
      add(t, fmt::format("looks like a router, but there are no experts beside it; {}", name_them));
    }
  }
  std::vector<unmatched> out;
  out.reserve(groups.size());
  for (const auto& [pattern, group] : groups) {
    out.push_back(
        {group.second > 1 ? fmt::format("{} ({} tensors)", pattern, group.second) : pattern, group.first});
  }
  return out;
}

search_result find_by_patterns(const checkpoint& model, const search_options& options) {
  search_result result;
  const std::vector layouts{options.how.value_or(layout::nfd)};
  for (const auto* router : model.tensors()) {
    const auto bound = match_layer(options.patterns->router, router->name());
    if (!bound) {
      continue;
    }
    const std::string gate = replace(options.patterns->gate, layer_mark, *bound);
    auto made = assemble(model, *router, gate, layouts, "named by --router and --gate");
    if (made.layer) {
      if (made.layer->name.empty()) {
        made.layer->name = bound->empty() ? router->name() : *bound;
      }
      result.layers.push_back(std::move(*made.layer));
    } else {
      result.others.push_back(
          {router->name(), made.reason.empty()
                               ? fmt::format("there is no '{}'", replace(gate, expert_mark, "0"))
                               : made.reason});
    }
  }
  return result;
}

}  // namespace

search_result find_layers(const checkpoint& model, const search_options& options) {
  search_result result;
  if (options.patterns) {
    result = find_by_patterns(model, options);
  } else {
    std::set<std::string> said;
    for (const auto* router : model.tensors()) {
      for (const auto& f : families()) {
        auto made = try_family(model, *router, f, options);
        if (made.layer || !made.reason.empty()) {
          said.insert(block_of_router(router->name()).value_or(""));
        }
        if (made.layer) {
          result.layers.push_back(std::move(*made.layer));
          break;
        }
        if (!made.reason.empty()) {
          result.others.push_back({router->name(), made.reason});
          break;
        }
      }
    }
    auto rest = leftovers(model, said);
    std::move(rest.begin(), rest.end(), std::back_inserter(result.others));
  }
  std::stable_sort(result.layers.begin(), result.layers.end(),
                   [](const auto& a, const auto& b) { return natural_less(a.name, b.name); });
  std::stable_sort(result.others.begin(), result.others.end(),
                   [](const auto& a, const auto& b) { return natural_less(a.name, b.name); });
  return result;
}

std::string describe_families() {
  std::string out;
  for (const auto& f : families()) {
    std::string layouts;
    for (const layout how : f.layouts) {
      layouts += (layouts.empty() ? "" : " or ") + std::string(flag_of(how));
    }
    out +=
        fmt::format("  {}\n      {}\n      {}  {}\n", f.name, replace(std::string(f.router), layer_mark, "…"),
                    replace(replace(std::string(f.gate), layer_mark, "…"), expert_mark, "E"), layouts);
  }
  return out;
}

}  // namespace verify
