// Layers that JAX's scan over them left in one tensor, as MaxText has them: each as weights of its own.
#pragma once

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

/// Whether a router and a stack of experts agree that this axis is that of the layers: without it they are
/// [D, N] or [N, D], and [N, D, F] or [N, F, D].
[[nodiscard]] inline bool agree_on(std::size_t axis, std::span<const index_t> router,
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
  return router[axis] == stack[axis] && router[axis] > 0 && (fits(r[0], r[1]) || fits(r[1], r[0]));
}

/// What the tensors of one stem are shaped like that may tell of a scan.
struct scan_shapes {
  std::set<std::vector<index_t>> routers;  ///< of three axes
  std::set<std::vector<index_t>> stacks;   ///< of four
};

/// The block that a router lies in: its name before the component that names it so.
[[nodiscard]] inline std::string_view block_of_router(std::string_view name, std::string_view stem) {
  const auto rest = name.substr(stem.size());
  const auto word = std::min(rest.find("gate"), rest.find("router"));
  return word == rest.npos ? std::string_view() : name.substr(0, name.rfind('.', stem.size() + word) + 1);
}

[[nodiscard]] inline std::map<std::string, scan_shapes> shapes_by_stem(std::span<const weight> weights) {
  std::map<std::string, scan_shapes> out;
  std::set<std::string_view> seen;
  for (const auto& router : weights) {
    const auto stem = stem_of_scan(router.name());
    const auto block = block_of_router(router.name(), stem);
    if (stem.empty() || block.empty() || router.plain() == nullptr || router.rank() != 3) {
      continue;
    }
    auto& shapes = out[std::string(stem)];
    shapes.routers.emplace(router.shape().begin(), router.shape().end());
    if (!seen.insert(block).second) {
      continue;
    }
    for (auto w = std::ranges::lower_bound(weights, block, {},
                                           [](const auto& x) { return std::string_view(x.name()); });
         w != weights.end() && w->name().starts_with(block); ++w) {
      if (w->plain() != nullptr && w->rank() == 4) {
        shapes.stacks.emplace(w->shape().begin(), w->shape().end());
      }
    }
  }
  return out;
}

/// The scan that routers and stacks tell of; nothing where none do, or where it may be along either axis.
[[nodiscard]] inline std::optional<scan> scan_of(const std::string& stem, const scan_shapes& shapes) {
  constexpr std::size_t most_shapes = 16;  // more are no scan over layers that are alike
  constexpr index_t most_layers = 4096;
  std::set<std::pair<std::size_t, index_t>> told;  // axis and extent
  for (const auto& router : shapes.routers) {
    for (const auto& stack : shapes.stacks) {
      if (shapes.routers.size() > most_shapes || shapes.stacks.size() > most_shapes) {
        return std::nullopt;
      }
      for (const std::size_t axis : {0U, 1U}) {
        if (agree_on(axis, router, stack)) {
          told.emplace(axis, router[axis]);
        }
      }
    }
  }
  return told.size() == 1 && told.begin()->second <= most_layers
             ? std::optional(scan{stem, told.begin()->first, told.begin()->second})
             : std::nullopt;
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

/// The weights, in the order of their names, those of scans in their layers.
[[nodiscard]] inline std::vector<weight> split_scans(std::vector<weight> weights) {
  std::vector<scan> scans;
  for (const auto& [stem, shapes] : shapes_by_stem(weights)) {
    if (const auto found = scan_of(stem, shapes)) {
      scans.push_back(*found);
    }
  }
  for (const auto& all : scans) {
    std::vector<weight> out;
    for (auto& w : weights) {
      const bool held = w.plain() != nullptr && stem_of_scan(w.name()) == all.stem &&
                        static_cast<std::size_t>(w.rank()) > all.axis && w.shape()[all.axis] == all.layers &&
                        element_count(w.shape()) > 0;
      for (index_t i = 0; held && i < all.layers; ++i) {
        out.push_back(layer_of_scan(w, all, i));
      }
      if (!held) {
        out.push_back(std::move(w));
      }
    }
    std::ranges::sort(out, {}, &weight::name);
    weights = std::move(out);
  }
  return weights;
}

}  // namespace detail

MPIROUTER_END
