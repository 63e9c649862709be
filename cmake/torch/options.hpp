// Options as the arguments of a schema, where choices are words, and as the structs of the C interface.
#pragma once

#include <mpi_router/c/mpi_router.h>

#include <ATen/core/ivalue.h>
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

namespace mpi_router_torch {

/// The string_view and the optional of this libtorch: its own before 2, later those of the standard.
using text = decltype(std::declval<const at::IValue&>().toStringView());
template <class T>
using optional = std::decay_t<decltype(std::declval<const at::IValue&>().toOptional<T>())>;

/// The words of a choice, by number.
template <std::size_t Count>
struct choice {
  const char* name;
  const char* const words[Count];

  [[nodiscard]] std::int32_t number(text word) const {
    std::string all;
    for (std::size_t i = 0; i < Count; ++i) {
      if (word == text(words[i])) {
        return static_cast<std::int32_t>(i);
      }
      all += (i > 0 ? ", " : "") + std::string(words[i]);
    }
    TORCH_CHECK_VALUE(false, "mpi_router: ", name, " is \"", std::string(word.data(), word.size()),
                      "\", which is none of ", all);
  }
  [[nodiscard]] text word(std::int32_t number) const {
    TORCH_CHECK_VALUE(number >= 0 && static_cast<std::size_t>(number) < Count, "mpi_router: ", name, " is ",
                      number, ", which is none of its values");
    return words[number];
  }
};

inline constexpr choice<2> radius_rules{"radius_rule", {"scale_free", "fixed"}};
inline constexpr choice<2> degenerate_rows{"degenerate", {"keep", "zero"}};
inline constexpr choice<3> throughs{"through", {"all", "last", "none"}};
inline constexpr choice<3> score_functions{"score_function", {"softmax", "sigmoid", "sqrtsoftplus"}};
inline constexpr choice<2> orders{"order", {"score_then_select", "select_then_score"}};
inline constexpr choice<3> group_scores{"group_score", {"top2_sum", "top_k_share_sum", "max"}};

inline mpi_router_options options_of(double radius, text radius_rule, text degenerate,
                                     std::int64_t total_experts, std::int64_t steps, text through) {
  mpi_router_options o = mpi_router_default_options();
  o.radius = radius;
  o.radius_rule = radius_rules.number(radius_rule);
  o.degenerate = degenerate_rows.number(degenerate);
  o.total_experts = total_experts;
  o.steps = steps;
  o.through = throughs.number(through);
  return o;
}

/// body(arguments of the schema…)
template <class Body>
auto with_arguments(const mpi_router_options& o, const Body& body) {
  return body(o.radius, radius_rules.word(o.radius_rule), degenerate_rows.word(o.degenerate), o.total_experts,
              o.steps, throughs.word(o.through));
}

inline mpi_router_gating_options gating_of(std::int64_t top_k, text score_function, text order,
                                           optional<bool> renormalize, text group_score,
                                           double scaling_factor, std::int64_t n_group,
                                           std::int64_t topk_group) {
  mpi_router_gating_options o = mpi_router_default_gating_options(top_k);
  o.score_function = score_functions.number(score_function);
  o.order = orders.number(order);
  o.renormalize = renormalize.has_value() ? static_cast<std::int32_t>(*renormalize) : o.renormalize;
  o.group_score = group_scores.number(group_score);
  o.scaling_factor = scaling_factor;
  o.n_group = n_group;
  o.topk_group = topk_group;
  return o;
}

template <class Body>
auto with_arguments(const mpi_router_gating_options& o, const Body& body) {
  return body(o.top_k, score_functions.word(o.score_function), orders.word(o.order),
              optional<bool>(o.renormalize != 0), group_scores.word(o.group_score), o.scaling_factor,
              o.n_group, o.topk_group);
}

}  // namespace mpi_router_torch
