// Layers that JAX's scan over them left in one tensor, as MaxText has them: each as weights of its own.
#pragma once

#include <mpi_router/io/moe/roles.hpp>
#include <mpi_router/io/weight.hpp>

#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <span>

MPIROUTER_BEGIN

namespace detail {

/// Tensors "STEM.…" that hold several layers each, along one of their axes.
struct scan {
  std::string stem;  ///< "params.decoder.layers"
  std::size_t axis = 0;
  index_t layers = 0;
};

/// The beginning of a name up to the last "layers" or "blocks" that no number follows; empty if there is
/// none.
[[nodiscard]] inline std::string_view stem_of_scan(std::string_view name) {
  for (auto end = name.rfind('.'); end != name.npos && end > 0; end = name.rfind('.', end - 1)) {
    const auto stem = name.substr(0, end);
    if (stem.ends_with("layers") || stem.ends_with("blocks")) {
      const bool numbered = end + 1 < name.size() && name[end + 1] >= '0' && name[end + 1] <= '9';
      return numbered ? std::string_view() : stem;
    }
  }
  return {};
}

/// How many experts a router and a stack of them agree on, if this axis is that of the layers: without it
/// they are [D, N] or [N, D], and [N, D, F] or [N, F, D]. 0 where they do not agree.
[[nodiscard]] inline index_t experts_along(std::size_t axis, std::span<const index_t> router,
                                           std::span<const index_t> stack) {
  const auto without = [axis](std::span<const index_t> shape) {
    std::vector<index_t> out(shape.begin(), shape.end());
    out.erase(out.begin() + static_cast<std::ptrdiff_t>(axis));
    return out;
  };
  const auto r = without(router);
  const auto s = without(stack);
  const auto fits = [&](index_t experts, index_t dim) {
    return s[0] == experts && experts > 1 && (s[1] == dim || s[2] == dim);
  };
  const bool agree = router[axis] == stack[axis] && router[axis] > 0;
  return agree && (fits(r[0], r[1]) || fits(r[1], r[0])) ? s[0] : 0;
}

/// What the tensors of one stem are shaped like that may tell of a scan.
struct scan_shapes {
  std::set<std::vector<index_t>> routers;  ///< of three axes
  std::set<std::vector<index_t>> stacks;   ///< of four
};

[[nodiscard]] inline std::map<std::string, scan_shapes> shapes_by_stem(std::span<const weight> weights) {
  std::map<std::string, scan_shapes> out;
  std::set<std::string> seen;
  for (const auto& router : weights) {
    const auto stem = stem_of_scan(router.name());
    if (stem.empty() || router.plain() == nullptr || router.rank() != 3) {
      continue;
    }
    const auto part = moe::part_of(router.name());
    if (part.role != moe::tensor_role::router) {
      continue;
    }
    auto& shapes = out[std::string(stem)];
    shapes.routers.emplace(router.shape().begin(), router.shape().end());
    if (!seen.insert(part.block).second) {
      continue;
    }
    for (auto w = std::ranges::lower_bound(weights, part.block, {}, &weight::name);
         w != weights.end() && w->name().starts_with(part.block); ++w) {
      if (w->plain() != nullptr && w->rank() == 4) {
        shapes.stacks.emplace(w->shape().begin(), w->shape().end());
      }
    }
  }
  return out;
}

/// The scan that routers and stacks tell of; nothing where none do, or where it may be along either axis and
/// no number of experts tells which.
[[nodiscard]] inline std::optional<scan> scan_of(const std::string& stem, const scan_shapes& shapes,
                                                 std::optional<index_t> num_experts) {
  constexpr std::size_t most_shapes = 16;  // more are no scan over layers that are alike
  constexpr index_t most_layers = 4096;
  if (shapes.routers.size() > most_shapes || shapes.stacks.size() > most_shapes) {
    return std::nullopt;
  }
  std::set<std::pair<std::size_t, index_t>> told;   // axis and extent
  std::set<std::pair<std::size_t, index_t>> named;  // with as many experts as config.json says
  for (const auto& router : shapes.routers) {
    for (const auto& stack : shapes.stacks) {
      for (const std::size_t axis : {0U, 1U}) {
        if (const auto experts = experts_along(axis, router, stack); experts > 0) {
          told.emplace(axis, router[axis]);
          (experts == num_experts ? named : told).emplace(axis, router[axis]);
        }
      }
    }
  }
  const auto& all = named.empty() ? told : named;
  return all.size() == 1 && all.begin()->second <= most_layers
             ? std::optional(scan{stem, all.begin()->first, all.begin()->second})
             : std::nullopt;
}

/// Whether a weight lies in a scan.
[[nodiscard]] inline bool is_held_by(const scan& all, const weight& w) {
  return w.plain() != nullptr && stem_of_scan(w.name()) == all.stem &&
         static_cast<std::size_t>(w.rank()) > all.axis && w.shape()[all.axis] == all.layers &&
         element_count(w.shape()) > 0;
}

/// The scans, by stem, but those whose layers would take more memory than a header that promises them may ask
/// for.
[[nodiscard]] inline std::map<std::string, scan, std::less<>> scans_of(std::span<const weight> weights,
                                                                       std::optional<index_t> num_experts) {
  std::map<std::string, scan, std::less<>> scans;
  for (const auto& [stem, shapes] : shapes_by_stem(weights)) {
    if (const auto found = scan_of(stem, shapes, num_experts)) {
      scans.emplace(stem, *found);
    }
  }
  constexpr double most_bytes = 1U << 26U;
  double bytes = 0;
  for (const auto& w : weights) {
    const auto all = scans.find(stem_of_scan(w.name()));
    if (all != scans.end() && is_held_by(all->second, w)) {
      bytes +=
          static_cast<double>(all->second.layers) * static_cast<double>(sizeof(weight) + w.name().size());
    }
  }
  if (bytes > most_bytes) {
    scans.clear();
  }
  return scans;
}

/// Layer `number` of a tensor that holds all of a scan: named "STEM.3.…".
[[nodiscard]] inline weight layer_of_scan(const weight& w, const scan& all, index_t number) {
  const auto shape = w.shape();
  const auto axis = static_cast<std::ptrdiff_t>(all.axis);
  std::vector<index_t> rest(shape.begin(), shape.end());
  rest.erase(rest.begin() + axis);
  const index_t each =
      std::accumulate(shape.begin() + axis + 1, shape.end(), index_t{1}, std::multiplies<>{});
  return {w, core::concatenate(all.stem, ".", number, w.name().substr(all.stem.size())), std::move(rest),
          strided_part{number * each, each, all.layers * each}};
}

/// The weights, in the order of their names, those of scans in their layers. `num_experts` of a layer, where
/// that is known, tells along which axis a scan is where shapes do not.
[[nodiscard]] inline std::vector<weight> split_scans(std::vector<weight> weights,
                                                     std::optional<index_t> num_experts) {
  const auto scans = scans_of(weights, num_experts);
  if (scans.empty()) {
    return weights;
  }
  std::vector<weight> out;
  for (auto& w : weights) {
    const auto all = scans.find(stem_of_scan(w.name()));
    if (all == scans.end() || !is_held_by(all->second, w)) {
      out.push_back(std::move(w));
      continue;
    }
    for (index_t i = 0; i < all->second.layers; ++i) {
      out.push_back(layer_of_scan(w, all->second, i));
    }
  }
  std::ranges::sort(out, {}, &weight::name);
  return out;
}

}  // namespace detail

MPIROUTER_END
