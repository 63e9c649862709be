// Gate and up in one under the name that servers give it, `w13`: vLLM and SGLang load gate before up, and
// exchange them for some kernels (FlashInfer's), so that a file which they write may have either first.
#pragma once

#include <mpi_router/io/moe/assemble.hpp>
#include <mpi_router/io/moe/hints.hpp>
#include <mpi_router/io/moe/remainder.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// Whether a stack is called as servers call those that they hold in memory, "w13_weight".
[[nodiscard]] inline bool is_servers_name(std::string_view gates) {
  return gates.find(expert_mark) == gates.npos && components_of(gates).back().starts_with("w13_");
}

/// A layer whose gates a server may have laid out for a kernel is a question in NVFP4: nearly all kernels for
/// it have up first, or the scales in an order of their own.
[[nodiscard]] inline attempt with_order_of_halves(const checkpoint& model, const weight& router,
                                                  gate_search search, attempt made) {
  using enum gate_layout;
  const bool is_question = made.layer && !search.asked && made.layer->layout == n2fd_concatenated &&
                           is_servers_name(search.pattern) && made.layer->gates.front().tensor->is_nvfp4();
  if (!is_question) {
    return made;
  }
  search.layouts = {n2fd_concatenated, n2fd_up_first};
  search.of_architecture.clear();
  made = assemble(model, router, search);
  made.reason +=
      "; a file that a server wrote has them, and the scales of NVFP4, as its kernel does: the names do not "
      "tell, and the files that the server loaded do";
  return made;
}

/// Says of layers under such names that nothing tells which half is the gate.
inline void note_assumed_order(found_parts& found) {
  for (const auto& layer : found.result.layers) {
    if (layer.layout == gate_layout::n2fd_concatenated && is_servers_name(layer.gate_name)) {
      found.result.omissions.push_back(
          {layer.gates.front().tensor->name(),
           core::concatenate("of shape ", to_string(layer.gates.front().tensor->shape()),
                             ", is taken to have gate before up, as vLLM and SGLang load it; what they write "
                             "while they run FlashInfer's kernels has up first, and no name tells"),
           omission_kind::set_aside,
           0,
           0,
           {{patterns_of(layer.router->name(), layer.gate_name), gate_layout::n2fd_up_first,
             layer.layout_of_router}}});
    }
  }
}

}  // namespace detail::moe

MPIROUTER_END
