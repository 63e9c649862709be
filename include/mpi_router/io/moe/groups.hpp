// Groups of experts within one layer of a model, each with a router of its own: "gate.weight",
// "gate.weight_1", and experts that are numbered through all groups, as ERNIE-4.5-VL has them for text and
// images.
#pragma once

#include <mpi_router/io/moe/choose_layout.hpp>

#include <numeric>
#include <set>

MPIROUTER_BEGIN

namespace detail::moe {

/// The routers of the groups that one of them belongs to; it alone where there are no groups.
struct router_group {
  std::string stem;  ///< the name of the first
  std::vector<const weight*> routers;
  std::size_t number = 0;  ///< of the one that was asked about
};

[[nodiscard]] inline router_group group_of(const checkpoint& model, const weight& router) {
  router_group alone{router.name(), {&router}, 0};
  router_group out = alone;
  const auto last = router.name().rfind('_');
  if (const auto own = last == std::string::npos
                           ? std::nullopt
                           : number_of(std::string_view(router.name()).substr(last + 1))) {
    out.stem = router.name().substr(0, last);
    out.number = static_cast<std::size_t>(*own);
    const auto* first = model.find_weight(out.stem);
    if (first == nullptr) {
      return alone;
    }
    out.routers = {first};
  }
  while (const auto* next = model.find_weight(core::concatenate(out.stem, "_", out.routers.size()))) {
    out.routers.push_back(next);
  }
  const bool all_matrices = std::ranges::all_of(out.routers, [](const auto* w) { return w->rank() == 2; });
  const bool is_one = out.number < out.routers.size() && out.routers[out.number] == &router;
  return all_matrices && is_one ? out : alone;
}

/// The experts of one group, by number; or why they cannot be told.
struct expert_range {
  index_t first = 0;
  index_t count = 0;
  std::string reason;
};

/// Rows of each router, if all are stored so.
[[nodiscard]] inline std::vector<index_t> rows_of(const router_group& group, router_layout layout) {
  std::vector<index_t> out;
  out.reserve(group.routers.size());
  for (const auto* router : group.routers) {
    out.push_back(router->shape()[layout == router_layout::nd ? 0 : 1]);
  }
  return out;
}

/// Whether the shapes of the experts change where a group ends, and there alone.
[[nodiscard]] inline bool shapes_tell(const gate_tensors& gates, const std::vector<index_t>& rows) {
  std::set<index_t> ends;
  index_t end = 0;
  for (const index_t count : rows) {
    ends.insert(end += count);
  }
  for (index_t e = 1; e < end; ++e) {
    const bool same = std::ranges::equal(gates.tensors.at(e)->shape(), gates.tensors.at(e - 1)->shape());
    if (same == ends.contains(e)) {
      return false;
    }
  }
  return true;
}

/// "'a' [64, 8], 'b' [64, 8]".
[[nodiscard]] inline std::string list_of(const router_group& group) {
  std::string out;
  for (const auto* router : group.routers) {
    out += core::concatenate(out.empty() ? "'" : ", '", router->name(), "' ", to_string(router->shape()));
  }
  return out;
}

/// The experts that a router of several has: as many as it has rows, after those of the routers before it.
/// The shapes must show where they begin, or the architecture that config.json names be known for it.
[[nodiscard]] inline expert_range experts_of(const router_group& group, const gate_tensors& gates,
                                             const gate_search& wanted) {
  const auto refuse = [&](const char* why) {
    return expert_range{
        0, 0,
        core::concatenate("its experts are those of several routers, ", list_of(group), ", and ", why, "; ",
                          wanted.words.patterns_and_layout, " cannot tell them apart")};
  };
  const auto held = static_cast<index_t>(gates.tensors.size());
  if (!gates.one_each || gates.tensors.begin()->first != 0 || gates.tensors.rbegin()->first != held - 1) {
    return refuse("they are not numbered from 0 on");
  }
  std::vector<std::vector<index_t>> fitting;
  for (const auto layout :
       {wanted.layout_of_router,
        wanted.layout_of_router == router_layout::nd ? router_layout::dn : router_layout::nd}) {
    const auto rows = rows_of(group, layout);
    if (std::accumulate(rows.begin(), rows.end(), index_t{0}) == held &&
        (!wanted.router_asked || layout == wanted.layout_of_router)) {
      fitting.push_back(rows);
    }
  }
  if (fitting.empty()) {
    return refuse("there are more or fewer of them than rows");
  }
  const auto& rows = fitting.front();
  if (!shapes_tell(gates, rows) && !wanted.groups_in_order) {
    return refuse("their shapes do not show which belong to which");
  }
  const auto end = rows.begin() + static_cast<std::ptrdiff_t>(group.number);
  return {std::accumulate(rows.begin(), end, index_t{0}), *end, ""};
}

/// The gates of these experts, numbered from 0 on.
[[nodiscard]] inline gate_tensors gates_within(const gate_tensors& gates, const expert_range& range) {
  gate_tensors out{{}, gates.one_each};
  for (index_t e = 0; e < range.count; ++e) {
    out.tensors.emplace(e, gates.tensors.at(range.first + e));
  }
  return out;
}

/// Leaves of the gates those of the router's group, where it is one of several; its range, which is empty
/// where it is alone.
[[nodiscard]] inline expert_range keep_group(const checkpoint& model, const weight& router,
                                             const gate_search& wanted, gate_tensors& gates) {
  const auto group = group_of(model, router);
  if (group.routers.size() == 1) {
    return {};
  }
  auto range = experts_of(group, gates, wanted);
  if (range.reason.empty()) {
    gates = gates_within(gates, range);
  }
  return range;
}

}  // namespace detail::moe

MPIROUTER_END
