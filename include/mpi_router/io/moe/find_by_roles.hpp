// Layers under names that no family has: routers and gates by what their names look like and by their shapes.
#pragma once

#include <mpi_router/io/moe/families.hpp>
#include <mpi_router/io/moe/order_of_halves.hpp>
#include <mpi_router/io/moe/router_beside.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// The gates among a block's matrices, and how they may lie.
struct gate_guess {
  const expert_weights* gates = nullptr;
  std::vector<gate_layout> layouts;
  expert_part part = expert_part::gate;
  std::string reason;        ///< why there is none
  bool may_be_both = false;  ///< gate and up too: neither their name nor a down projection tells
};

/// "'a.{expert}.x' [4, 8], 'a.{expert}.y' [8, 4]".
[[nodiscard]] inline std::string list_of(const std::vector<expert_weights>& all) {
  std::string names;
  for (const auto& each : all) {
    names +=
        core::concatenate(names.empty() ? "'" : ", '", each.pattern, "' ", to_string(each.first().shape()));
  }
  return names;
}

/// Whether gates, or gates and up projections in one, have as many neurons as a down projection, as far as
/// that is known. Of two that are named so one must go with them.
[[nodiscard]] inline bool goes_with_down(const expert_weights& gates, index_t of_one,
                                         const std::vector<const expert_weights*>& down,
                                         const router_shape& router) {
  const auto unreadable = [](const auto* m) {
    return !m->first().problem().empty();
  };  // has its codes' shape
  if (unreadable(&gates) || std::ranges::any_of(down, unreadable)) {
    return true;
  }
  const auto [rows, cols] = extents_of(gates, router.rows);
  bool any_known = false;
  for (const auto* each : down) {
    const auto ffn = ffn_dim_of_down(extents_of(*each, router.rows), router.dim);
    if (ffn && (rows == of_one * *ffn || cols == of_one * *ffn)) {
      return true;
    }
    any_known = any_known || ffn;
  }
  return !any_known;
}

/// The one matrix of experts, of so many neurons, where no down projection tells F: names such as "fc1" have
/// up alone, or gate and up, as config.json says.
[[nodiscard]] inline gate_guess guess_by_config(const expert_weights& one, index_t width,
                                                const std::optional<model_config>& config) {
  using enum gate_layout;
  const bool is_up = kind_of(one.pattern) == matrix_kind::up;
  const bool is_either = is_up && !is_beside_gate(one.pattern) && width % 2 == 0;
  const auto held = is_either ? parts_by_config(width / 2, config) : held_parts::up_alone;
  if (held == held_parts::both) {
    return {&one, {n2fd_concatenated, nd2f_concatenated}, expert_part::gate, ""};
  }
  return {&one, {nfd, ndf}, is_up ? expert_part::up : expert_part::gate, "", held == held_parts::unknown};
}

/// Matrices whose name says gate and up: they hold up alone where nothing but config.json tells, and that
/// names an architecture without gates.
[[nodiscard]] inline gate_guess guess_of_both(const expert_weights& both, const router_shape& router,
                                              bool is_alone, const std::optional<model_config>& config) {
  using enum gate_layout;
  const auto [rows, cols] = extents_of(both, router.rows);
  const index_t width = rows == router.dim ? cols : rows;
  const bool is_up = is_alone && config && is_ungated_architecture(*config) &&
                     parts_by_config(width / 2, config) == held_parts::up_alone;
  return is_up ? gate_guess{&both, {nfd, ndf}, expert_part::up, ""}
               : gate_guess{&both, {n2fd_concatenated, nd2f_concatenated}, expert_part::gate, ""};
}

/// A name settles which matrix is the gate, if its shape goes with the down projection's, and, where two are
/// named like that one, if an up projection has a name too; whether one named like a gate or like an up
/// projection holds both, the down projection's F does, or else config.json; and where there is but one
/// matrix, it is the one.
[[nodiscard]] inline gate_guess guess_gates(const std::vector<expert_weights>& all,
                                            const router_shape& router,
                                            const std::optional<model_config>& config) {
  using enum gate_layout;
  const std::vector plain{nfd, ndf};
  const std::vector fused{n2fd_concatenated, nd2f_concatenated};
  const auto gate = of_kind(all, matrix_kind::gate);
  const auto both = of_kind(all, matrix_kind::gate_and_up);
  const auto up = of_kind(all, matrix_kind::up);
  const auto down = of_kind(all, matrix_kind::down);
  if (gate.size() == 1 && both.empty() && (down.size() < 2 || !up.empty()) &&
      goes_with_down(*gate[0], 1, down, router)) {
    return {gate[0], plain, expert_part::gate, ""};
  }
  if (both.size() == 1 && gate.empty() && goes_with_down(*both[0], 2, down, router)) {
    return guess_of_both(*both[0], router, down.empty(), config);
  }
  if (both.size() == 1 && gate.empty() && up.empty() && goes_with_down(*both[0], 1, down, router)) {
    return {both[0], plain, expert_part::up, ""};
  }
  if (gate.size() == 1 && both.empty() && up.empty() && down.size() == 1 &&
      goes_with_down(*gate[0], 2, down, router)) {
    return {gate[0], fused, expert_part::gate, ""};
  }
  const auto* alone = up.size() == 1 ? up[0] : all.size() == 1 && down.empty() ? &all[0] : nullptr;
  const bool is_known = down.size() != 1 || down[0]->first().problem().empty();  // else shaped as its codes
  if (gate.empty() && both.empty() && alone != nullptr && is_known &&
      down.size() + up.size() >= all.size() - (up.empty() ? 1 : 0)) {
    const auto ffn = ffn_dim_of_down(down, router);
    const auto [rows, cols] = extents_of(*alone, router.rows);
    const index_t width = rows == router.dim ? cols : rows;
    if (ffn && width == 2 * *ffn) {
      return {alone, fused, expert_part::gate, ""};
    }
    if (!ffn) {
      return guess_by_config(*alone, width, config);
    }
    if (width == *ffn) {
      return {alone, plain, up.empty() ? expert_part::gate : expert_part::up, ""};
    }
  }
  return {nullptr, {}, expert_part::gate, "names do not tell which is the gate: " + list_of(all)};
}

/// Each of these matrices as the gates, in the layouts that its shape lets it have.
[[nodiscard]] inline std::vector<naming_hint> hints_for(const weight& router,
                                                        const std::vector<expert_weights>& matrices,
                                                        index_t dim) {
  std::vector<naming_hint> out;
  const auto shape = router.shape();
  const bool turned = shape.size() == 2 && shape[1] != dim;
  for (const auto& each : matrices) {
    const auto of = each.first().shape();
    const index_t experts = of.size() == 3 ? of[0] : 1;
    for (const auto layout : {gate_layout::nfd, gate_layout::ndf}) {
      if (ffn_dim_of(layout, of, experts, dim)) {
        out.push_back({patterns_of(router.name(), each.pattern), layout,
                       turned ? router_layout::dn : router_layout::nd});
      }
    }
  }
  return out;
}

/// How gates and up projections in one may lie, where no family has their names. No shape tells rows in turn,
/// as gpt-oss has them, from gate before up: its own words do, or the architecture that config.json names;
/// what both kinds of models are called is a question. So is the order where a name says up alone and only F
/// that there is a gate too: Aria's "fc1" has the gate first, that of FlashAttention's gated MLP last.
[[nodiscard]] inline std::vector<gate_layout> fused_layouts(const weight& router, std::string_view gates,
                                                            const std::optional<model_config>& config) {
  using enum gate_layout;
  const auto c = components_of(gates);
  const auto has = [&](auto... words) {
    return std::ranges::any_of(c, [&](auto part) { return (part.starts_with(words) || ...); });
  };
  if (has("mlp1")) {
    return {n2fd_interleaved};
  }
  if (has("w3w1", "w3_w1", "w31")) {
    return {n2fd_up_first, nd2f_up_first};
  }
  const bool is_gpt_oss = config && config->is_called("gptoss");
  if (is_gpt_oss && has("w13", "gate_up_projs")) {  // vLLM's and unsloth's words for it
    return {n2fd_interleaved, nd2f_interleaved};
  }
  const bool is_named = config && config->names_any();
  const bool may_be_gpt_oss = !is_named && !has("linear_fc1") &&
                              (has("gate_up_projs") || router.name().ends_with("mlp.router.weight"));
  const bool is_hunyuan = has("gate_and_up_proj") && !has("gate_and_up_projs");  // has up before gate
  const bool says_order = kind_of(gates) == matrix_kind::gate_and_up || has("linear_fc1", "dense_h_to_4h");
  std::vector out{n2fd_concatenated, nd2f_concatenated};
  if (is_hunyuan || !says_order) {
    out.insert(out.end(), {n2fd_up_first, nd2f_up_first});
  }
  if (is_gpt_oss || may_be_gpt_oss || has("c_fc")) {  // lm-engine's c_fc
    out.insert(out.end(), {n2fd_interleaved, nd2f_interleaved});
  }
  return out;
}

/// A layer of a router and matrices of experts that no family names so.
[[nodiscard]] inline attempt try_parts(const checkpoint& model, const weight& router,
                                       const std::vector<expert_weights>& matrices, const moe_search& wanted,
                                       const std::optional<model_config>& config) {
  const auto shape = router.shape();
  const auto how = router_beside(router, matrices, wanted, config);
  const auto [rows, dim] = how.shape;
  if (!how.reason.empty()) {
    return {{}, how.reason, rows};
  }
  auto guess = guess_gates(matrices, {rows, dim}, config);
  if (guess.gates == nullptr) {
    return {{},
            guess.reason,
            shape.size() == 2 ? std::min(shape[0], shape[1]) : 0,
            hints_for(router, matrices, dim)};
  }
  const auto& gates = guess.gates->pattern;
  if (guess.may_be_both) {
    const auto both = fused_layouts(router, gates, config);
    guess.layouts.insert(guess.layouts.end(), both.begin(), both.end());
  }
  auto search = search_for(
      "no known family: taken by what names look like and by shapes", gates,
      is_fused(guess.layouts.front()) ? fused_layouts(router, gates, config) : guess.layouts, wanted, config);
  search.part = guess.part;
  search.layout_of_router = wanted.layout_of_router.value_or(how.layout);
  if (gates.ends_with("experts.gate_up_proj")) {
    search.of_architecture = layouts_of_architecture(fused_architectures(), config);
  }
  auto made = assemble(model, router, search);
  if (!made.hints.empty() && guess.may_be_both) {
    made.reason += "; there are no down projections beside it, whose F would tell";
  }
  return with_order_of_halves(model, router, std::move(search), std::move(made));
}

inline void note_attempt(const weight& router, attempt made, found_parts& found) {
  if (made.layer) {
    note_layer(std::move(*made.layer), found);
  } else if (!made.reason.empty()) {
    note_failure(router, made, found);
  }
}

/// What cannot be read may be packed in a way that config.json names.
[[nodiscard]] inline attempt with_packing(attempt made, const checkpoint& model) {
  const auto& unknown = model.packing().unknown;
  if (!made.reason.empty() && !unknown.empty() && !contains(made.reason, unknown)) {
    made.reason += core::concatenate("; config.json names ", unknown, ", which is not known here");
  }
  return made;
}

/// Layers of the blocks that no family's names have.
inline void find_by_roles(const checkpoint& model, const moe_search& wanted,
                          const std::optional<model_config>& config, found_parts& found) {
  for (const auto& [name, block] : blocks_of(model.weights())) {
    const auto said = [&](const auto* w) { return found.said.contains(w); };
    if (std::ranges::any_of(block.routers, said) || std::ranges::any_of(block.experts, said) ||
        is_of_attention(name)) {
      continue;
    }
    auto matrices = matrices_of(name, block);
    const auto* router = router_of(model, name, block, matrices);
    if (router != nullptr && matrices.empty()) {
      matrices = stacks_beside(model, name, *router);
    }
    if (router != nullptr && !matrices.empty()) {
      note_attempt(*router, with_packing(try_parts(model, *router, matrices, wanted, config), model), found);
      for (const auto& each : matrices) {  // whatever became of them is said
        found.said.insert(each.all.begin(), each.all.end());
      }
    }
  }
}

}  // namespace detail::moe

MPIROUTER_END
