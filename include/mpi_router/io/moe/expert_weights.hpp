// The matrices of a block's experts, by name: one for each expert, or a stack of all.
#pragma once

#include <mpi_router/io/moe/assemble.hpp>
#include <mpi_router/io/moe/blocks.hpp>

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

/// The name with {expert} in the place of the expert's number, see expert_number; the name itself where it
/// has none.
[[nodiscard]] inline std::string pattern_of(std::string_view name, std::string_view block, index_t number) {
  for (const auto number_in : {&number_of, &number_after_word}) {
    for (auto begin = block.size(); begin < name.size();) {
      const auto end = std::min(name.find('.', begin), name.size());
      const auto part = name.substr(begin, end - begin);
      if (number_in(part) == number) {
        const auto word = part.substr(0, part.find_last_not_of(digits) + 1);
        return core::concatenate(name.substr(0, begin), word, expert_mark, name.substr(end));
      }
      begin = end + 1;
    }
  }
  return std::string(name);
}

/// Megatron's "experts.weight1" and "experts.weight2", each of all experts: no expert 0 has a weight beside
/// them, as it has where GroupedLinear numbers its own.
[[nodiscard]] inline bool is_of_all(const expert_weights& matrices) {
  return matrices.pattern.ends_with("experts.weight{expert}") &&
         std::ranges::none_of(matrices.all, [](const auto* w) { return w->name().ends_with("weight0"); });
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
    if (!is_of_all(entry)) {
      out.push_back(std::move(entry));
      continue;
    }
    for (const auto* w : entry.all) {
      out.push_back({w->name(), {w}});
    }
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
    const bool is_stack = w.rank() >= 3 && w.shape()[0] > 1 && stack.fit_router(router);
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

/// Rows and columns of one expert's matrix; a flat stack, [N·F, D], has N times the rows, and gate and up
/// may have an axis of their own, [N, 2, F, D].
struct matrix_extents {
  index_t rows = 0;
  index_t cols = 0;
};

[[nodiscard]] inline matrix_extents extents_of(const expert_weights& matrix, index_t experts) {
  const auto shape = matrix.first().shape();
  const index_t rows = shape[shape.size() - 2] * (shape.size() == 4 ? shape[1] : 1);
  const bool is_flat =
      shape.size() == 2 && matrix.pattern.find(expert_mark) == std::string::npos && experts > 0;
  return {is_flat && rows % experts == 0 ? rows / experts : rows, shape.back()};
}

/// F of a down projection, the extent beside D; nothing where it has no such axis.
[[nodiscard]] inline std::optional<index_t> ffn_dim_of_down(const matrix_extents& down, index_t hidden_dim) {
  const auto [rows, cols] = down;
  return rows == hidden_dim ? std::optional(cols) : cols == hidden_dim ? std::optional(rows) : std::nullopt;
}

/// The same of the one that there is.
[[nodiscard]] inline std::optional<index_t> ffn_dim_of_down(const std::vector<const expert_weights*>& down,
                                                            const router_shape& router) {
  return down.size() == 1 ? ffn_dim_of_down(extents_of(*down[0], router.rows), router.dim) : std::nullopt;
}

}  // namespace detail::moe

MPIROUTER_END
