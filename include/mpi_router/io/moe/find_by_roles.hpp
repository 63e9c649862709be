// Layers under names that no family has: routers and gates by what their names look like and by their shapes.
#pragma once

#include <mpi_router/io/moe/assemble.hpp>
#include <mpi_router/io/moe/expert_words.hpp>
#include <mpi_router/io/moe/families.hpp>
#include <mpi_router/io/moe/model_config.hpp>
#include <mpi_router/io/moe/remainder.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// The weights of a block's experts that differ in the number of the expert alone.
struct expert_weights {
  std::string pattern;  ///< with {expert}, or the one name
  std::vector<const weight*> all;

  [[nodiscard]] const weight& first() const { return *all.front(); }
  /// How many experts: one a tensor, or a stack.
  [[nodiscard]] index_t count() const {
    const bool numbered = pattern.find(expert_mark) != pattern.npos;
    return numbered ? static_cast<index_t>(all.size()) : first().shape()[0];
  }
  [[nodiscard]] bool has_axis(index_t extent) const {
    const auto shape = first().shape();
    return extent == shape.back() || extent == shape[shape.size() - 2];
  }
  /// Whether a matrix has a row, or a column, for each of them, of an extent that they have too.
  [[nodiscard]] bool fit_router(const weight& w) const {
    const auto fits = [&](index_t rows, index_t dim) { return rows == count() && has_axis(dim); };
    return w.rank() == 2 && (fits(w.shape()[0], w.shape()[1]) || fits(w.shape()[1], w.shape()[0]));
  }
};

/// The name with {expert} in the place of the expert's number; the name itself where it has none.
[[nodiscard]] inline std::string pattern_of(std::string_view name, std::string_view block, index_t number) {
  for (auto at = name.find_first_of(digits, block.size()); at != name.npos;) {
    const auto end = std::min(name.find_first_not_of(digits, at), name.size());
    if (number_of(name.substr(at, end - at)) == number) {
      return core::concatenate(name.substr(0, at), expert_mark, name.substr(end));
    }
    at = name.find_first_of(digits, end);
  }
  return std::string(name);
}

/// The experts' matrices of a block, by pattern; vectors (biases, scales) are none.
[[nodiscard]] inline std::vector<expert_weights> matrices_of(const std::string& name,
                                                             const block_parts& block) {
  std::map<std::string, expert_weights> by_pattern;
  for (const auto* w : block.experts) {
    const auto number = part_of(w->name()).expert;
    if (w->rank() < 2 || (!number && w->rank() < 3 && w->shape()[0] == 1)) {
      continue;
    }
    auto pattern = number ? pattern_of(w->name(), name, *number) : w->name();
    auto& entry = by_pattern[pattern];
    entry.pattern = std::move(pattern);
    entry.all.push_back(w);
  }
  std::vector<expert_weights> out;
  out.reserve(by_pattern.size());
  for (auto& [pattern, entry] : by_pattern) {
    out.push_back(std::move(entry));
  }
  return out;
}

/// Stacks with a matrix for each row of the router beside it, whose names say nothing of experts: MaxText's
/// "moe_block.wi_0".
[[nodiscard]] inline std::vector<expert_weights> stacks_beside(const checkpoint& model,
                                                               const std::string& name,
                                                               const weight& router) {
  std::vector<expert_weights> out;
  for (const auto& w : model.weights_with(name)) {
    expert_weights stack{w.name(), {&w}};
    const bool is_stack = w.rank() == 3 && w.shape()[0] > 1 && stack.fit_router(router);
    if (is_stack && part_of(w.name()).role == tensor_role::other && !is_shared_word(w.name())) {
      out.push_back(std::move(stack));
    }
  }
  return out;
}

/// The matrices of one kind.
[[nodiscard]] inline std::vector<const expert_weights*> of_kind(const std::vector<expert_weights>& all,
                                                                matrix_kind kind) {
  std::vector<const expert_weights*> out;
  for (const auto& each : all) {
    if (kind_of(each.pattern) == kind) {
      out.push_back(&each);
    }
  }
  return out;
}

/// Rows and columns of one expert's matrix; a flat stack, [N·F, D], has N times the rows.
struct matrix_extents {
  index_t rows = 0;
  index_t cols = 0;
};

[[nodiscard]] inline matrix_extents extents_of(const expert_weights& matrix, index_t experts) {
  const auto shape = matrix.first().shape();
  const index_t rows = shape[shape.size() - 2];
  const bool is_flat =
      shape.size() == 2 && matrix.pattern.find(expert_mark) == std::string::npos && experts > 0;
  return {is_flat && rows % experts == 0 ? rows / experts : rows, shape.back()};
}

/// F of a down projection, the extent beside D; nothing where there is no telling.
[[nodiscard]] inline std::optional<index_t> ffn_dim_of_down(const matrix_extents& down, index_t hidden_dim) {
  const auto [rows, cols] = down;
  return rows == hidden_dim && cols != hidden_dim   ? std::optional(cols)
         : cols == hidden_dim && rows != hidden_dim ? std::optional(rows)
                                                    : std::nullopt;
}

/// The same of the one that there is.
[[nodiscard]] inline std::optional<index_t> ffn_dim_of_down(const std::vector<const expert_weights*>& down,
                                                            const router_shape& router) {
  return down.size() == 1 ? ffn_dim_of_down(extents_of(*down[0], router.rows), router.dim) : std::nullopt;
}

/// The gates among a block's matrices, and how they may lie.
struct gate_guess {
  const expert_weights* gates = nullptr;
  std::vector<gate_layout> layouts;
  expert_part part = expert_part::gate;
  std::string reason;  ///< why there is none
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

/// A name settles which matrix is the gate, if its shape goes with the down projection's, and, where two are
/// named like that one, if an up projection has a name too; whether one named like an up projection holds
/// gate and up, the down projection's F does; and where there is but one matrix, it is the one.
[[nodiscard]] inline gate_guess guess_gates(const std::vector<expert_weights>& all,
                                            const router_shape& router) {
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
    return {both[0], fused, expert_part::gate, ""};
  }
  const auto* alone = up.size() == 1 ? up[0] : all.size() == 1 && down.empty() ? &all[0] : nullptr;
  if (gate.empty() && both.empty() && alone != nullptr &&
      down.size() + up.size() >= all.size() - (up.empty() ? 1 : 0)) {
    const auto ffn = ffn_dim_of_down(down, router);
    const auto [rows, cols] = extents_of(*alone, router.rows);
    const index_t width = rows == router.dim ? cols : rows;
    if (ffn && width == 2 * *ffn) {
      return {alone, fused, expert_part::gate, ""};
    }
    if (!ffn || width == *ffn) {
      return {alone, plain, up.empty() ? expert_part::gate : expert_part::up, ""};
    }
  }
  return {nullptr, {}, expert_part::gate, "names do not tell which is the gate: " + list_of(all)};
}

/// The router of a block: by its name, or the one matrix beside the experts that has a row for each.
[[nodiscard]] inline const weight* router_of(const checkpoint& model, const std::string& name,
                                             const block_parts& block,
                                             const std::vector<expert_weights>& experts) {
  if (block.routers.size() == 1) {
    return block.routers[0];
  }
  if (!block.routers.empty() || experts.empty()) {
    return nullptr;
  }
  const auto is_router = [&](const weight& w) {
    return part_of(w.name()).role != tensor_role::expert && !is_shared_word(w.name()) &&
           experts.front().fit_router(w) && network_of_router(model, w.name()).empty();
  };
  const weight* found = nullptr;
  for (const auto& w : model.weights_with(name)) {
    if (is_router(w)) {
      if (found != nullptr) {
        return nullptr;
      }
      found = &w;
    }
  }
  return found;
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

/// How a router lies beside such matrices: so that it has a row for each expert, of an extent that they have.
/// Both ways are a question, but where torch's Linear has [out, in].
[[nodiscard]] inline router_choice router_beside(const weight& router,
                                                 const std::vector<expert_weights>& matrices,
                                                 const moe_search& wanted) {
  using enum router_layout;
  const auto shape = router.shape();
  const index_t last = shape.empty() ? 0 : shape.back();
  if (shape.size() < 2) {
    return {nd, {0, last}, ""};
  }
  const index_t first = shape[shape.size() - 2];
  const auto any = [&](auto of) { return std::ranges::any_of(matrices, of); };
  const auto is_exact = [&](index_t rows, index_t dim) {
    return any([&](const auto& each) { return each.count() == rows && each.has_axis(dim); });
  };
  const auto is_larger = [&](index_t rows, index_t dim) {  // rows without an expert
    return any([&](const auto& each) { return each.count() < rows && each.has_axis(dim); });
  };
  const bool as_it_is = is_exact(first, last);
  const bool turned = is_exact(last, first);
  const bool doubtful = turned && (as_it_is ? !router.name().ends_with("weight") : is_larger(first, last));
  if (doubtful && !wanted.layout_of_router) {
    return {nd,
            {},
            core::concatenate("the router has shape ", to_string(shape), ", which may be [N, D] (",
                              wanted.words.layout_of_router, " nd) or [D, N] (",
                              wanted.words.layout_of_router, " dn): say which")};
  }
  if (as_it_is || turned) {
    const auto how = wanted.layout_of_router.value_or(as_it_is ? nd : dn);
    return {how, how == nd ? router_shape{first, last} : router_shape{last, first}, ""};
  }
  const bool has_last = any([&](const auto& each) { return each.has_axis(last); });
  return {nd, has_last ? router_shape{first, last} : router_shape{last, first}, ""};
}

/// A layer of a router and matrices of experts that no family names so.
[[nodiscard]] inline attempt try_parts(const checkpoint& model, const weight& router,
                                       const std::vector<expert_weights>& matrices, const moe_search& wanted,
                                       const std::optional<model_config>& config) {
  const auto shape = router.shape();
  const auto how = router_beside(router, matrices, wanted);
  if (!how.reason.empty()) {
    return {{}, how.reason, std::max(shape[0], shape[1])};
  }
  const auto [rows, dim] = how.shape;
  const auto guess = guess_gates(matrices, {rows, dim});
  if (guess.gates == nullptr) {
    return {{},
            guess.reason,
            shape.size() == 2 ? std::min(shape[0], shape[1]) : 0,
            hints_for(router, matrices, dim)};
  }
  auto search = search_for("no known family: taken by what names look like and by shapes",
                           guess.gates->pattern, guess.layouts, wanted, config);
  search.part = guess.part;
  search.layout_of_router = wanted.layout_of_router.value_or(how.layout);
  if (is_fused(guess.layouts.front()) && !search.asked && config && config->is_called("gptoss")) {
    search.layouts = {gate_layout::n2fd_interleaved, gate_layout::nd2f_interleaved};  // whatever the names
  } else if (guess.gates->pattern.ends_with("experts.gate_up_proj")) {
    search.of_architecture = layouts_of_architecture(fused_architectures(), config);
  }
  return assemble(model, router, search);
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
    }
  }
}

}  // namespace detail::moe

MPIROUTER_END
