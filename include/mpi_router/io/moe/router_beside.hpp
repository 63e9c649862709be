// The router beside the matrices of experts, and how it lies.
#pragma once

#include <mpi_router/io/moe/expert_weights.hpp>
#include <mpi_router/io/moe/remainder.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

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
           !is_noise(w.name()) && experts.front().fit_router(w) &&
           network_of_router(model, w.name(), name).empty();
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

/// How a router lies whose two axes are these, where one way alone has a number that config.json knows.
[[nodiscard]] inline std::optional<router_layout> layout_of_config(
    index_t first, index_t last, const std::optional<model_config>& config) {
  const auto is_known = [&](index_t rows, index_t dim) {
    return config && (config->num_experts == rows || config->hidden_dim == dim);
  };
  const bool as_it_is = is_known(first, last);
  return as_it_is == is_known(last, first) ? std::nullopt
                                           : std::optional(as_it_is ? router_layout::nd : router_layout::dn);
}

/// How a router lies beside such matrices: so that it has a row for each expert, of an extent that they have.
/// Both ways are a question, but where torch's Linear has [out, in], or where config.json knows one of them
/// alone.
[[nodiscard]] inline router_choice router_beside(const weight& router,
                                                 const std::vector<expert_weights>& matrices,
                                                 const moe_search& wanted,
                                                 const std::optional<model_config>& config) {
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
  const auto known = doubtful ? layout_of_config(first, last, config) : std::nullopt;
  if (doubtful && !wanted.layout_of_router && !known) {
    return {nd,
            {last, first},
            core::concatenate("the router has shape ", to_string(shape), ", which may be [N, D] (",
                              wanted.words.layout_of_router, " nd) or [D, N] (",
                              wanted.words.layout_of_router, " dn): say which")};
  }
  if (as_it_is || turned) {
    const auto how = wanted.layout_of_router.value_or(known.value_or(as_it_is ? nd : dn));
    return {how, how == nd ? router_shape{first, last} : router_shape{last, first}, ""};
  }
  const bool has_last = any([&](const auto& each) { return each.has_axis(last); });
  return {nd, has_last ? router_shape{first, last} : router_shape{last, first}, ""};
}

}  // namespace detail::moe

MPIROUTER_END
