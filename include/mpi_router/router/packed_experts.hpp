// The experts of a layer whose gates are packed, as operators for router_rows: nothing is decoded but what is
// in registers, or the row at hand.
#pragma once

#include <mpi_router/backend/packed_operator.hpp>
#include <mpi_router/core/matrix_rows.hpp>
#include <mpi_router/core/operator_variant.hpp>
#include <mpi_router/io/moe/packed_gates.hpp>

#include <memory>
#include <optional>
#include <span>
#include <variant>
#include <vector>

MPIROUTER_BEGIN

namespace detail {

template <class Backend>
struct packed_alternatives {
  template <class... Views>
  using of = operator_variant<rows_operator<packed_gate, float>, operator_in_registers<Views, Backend>...>;
};

}  // namespace detail

/// M = AᵀA of a packed gate matrix of whatever format: by the kernels of `Backend` where it has some, else
/// row by row. See packed_operator and rows_operator.
template <class Backend>
using any_packed_operator = core::of_packed_views<detail::packed_alternatives<Backend>::template of>;

/// The operators of a layer whose gates are packed, one for each expert, of dimension layer.gate_dim():
///
///   const packed_experts experts(layer, simd{});  // backend/packed.hpp, or dispatch{}: packed_dispatch.hpp
///   router_rows(experts, router, rows, options, workspace);
///
/// The layer's checkpoint must outlive it. It holds a row of floats for each expert that goes row by row, and
/// no other data; each operator is for one thread at a time, different ones are for as many as there are.
template <class Backend>
class packed_experts {
 public:
  /// Throws file_error where a gate is not packed, or is packed along F.
  explicit packed_experts(const moe_layer& layer, Backend backend = {}) : backend_(backend) {
    std::size_t rows_by_row = 0;
    for (const auto& block : layer.gates) {
      const auto gate = packed_gate_of(block);
      if (!gate) {
        block.tensor->fail("is ", block.tensor->stored_as(),
                           ": no packed rows along D; visit_gate and load_experts take it");
      }
      auto& expert = experts_.emplace_back(expert_of{*gate, gate->view(), rows_by_row});
      if (!expert.view) ++rows_by_row;
    }
    dimension_ = layer.gate_dim();
    scratch_ = std::make_unique<float[]>(rows_by_row * static_cast<std::size_t>(dimension_));
    for (index_t i = 0; i < num_experts(); ++i) {
      static_cast<void>((*this)(i));  // what throws, throws now
    }
  }

  [[nodiscard]] index_t num_experts() const noexcept { return static_cast<index_t>(experts_.size()); }

  [[nodiscard]] any_packed_operator<Backend> operator()(index_t i) const {
    using any = any_packed_operator<Backend>;
    const auto& expert = experts_[static_cast<std::size_t>(i)];
    if (!expert.view) {
      const auto d = static_cast<std::size_t>(dimension_);
      return any(gram_of_rows(expert.gate, std::span<float>(scratch_.get() + expert.scratch * d, d)));
    }
    return std::visit([&](const auto& view) { return any(gram(view, backend_)); }, *expert.view);
  }

 private:
  struct expert_of {
    packed_gate gate;
    std::optional<packed::any_view> view;
    std::size_t scratch;
  };

  [[no_unique_address]] Backend backend_;
  std::vector<expert_of> experts_;
  index_t dimension_ = 0;
  std::unique_ptr<float[]> scratch_;
};

MPIROUTER_END
