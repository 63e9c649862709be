// The experts of a ggml tensor of any type as operators, for router_rows and whatever else takes them.
#pragma once

#include <mpi_router/backend/dense.hpp>
#include <mpi_router/backend/packed_operator.hpp>
#include <mpi_router/core/operator_variant.hpp>
#include <mpi_router/ggml/views.hpp>

#include <memory>
#include <span>

MPIROUTER_BEGIN

template <class Kernels>
class one_read_backend;

namespace ggml {

namespace detail {

template <class Backend, class... InRegisters>
using operator_of_experts =
    operator_variant<dense_operator<float, float, Backend>, dense_operator<bf16, float, Backend>,
                     dense_operator<f16, float, Backend>, rows_operator<quantised_matrix, float>,
                     InRegisters...>;

/// Backends without kernels over packed weights go row by row.
template <class Backend>
struct operator_with {
  using type = operator_of_experts<Backend>;
  static constexpr bool has_registers = false;
};
template <class Kernels>
struct operator_with<one_read_backend<Kernels>> {
  using backend = one_read_backend<Kernels>;
  using type = operator_of_experts<backend, operator_in_registers<q8_0_view, backend>,
                                   operator_in_registers<q4_k_view, backend>,
                                   operator_in_registers<mxfp4_blocks_view, backend>>;
  static constexpr bool has_registers = true;
};

/// The operator of a quantised matrix: in registers where the backend and the type have it, else by rows.
template <class Backend>
[[nodiscard]] typename operator_with<Backend>::type operator_of(const quantised_matrix& a,
                                                                std::span<float> row,
                                                                const Backend& backend) {
  using any = typename operator_with<Backend>::type;
  if constexpr (operator_with<Backend>::has_registers) {
    if (const auto view = a.view()) {
      return std::visit(
          [&]<class View>(const View& v) -> any {
            if constexpr (std::constructible_from<any, operator_in_registers<View, Backend>>) {
              return any(gram(v, backend));
            } else {
              return any(gram_of_rows(a, row));
            }
          },
          *view);
    }
  }
  return any(gram_of_rows(a, row));
}

}  // namespace detail

/// M = AᵀA of an expert of a tensor of any type, with sums in float: by the backend where A is dense; where
/// it is quantised, in registers (Q8_0, Q4_K, MXFP4 with `simd` or `dispatch`) or row by row.
template <class Backend>
using expert_operator = typename detail::operator_with<Backend>::type;

/// That of expert i. `row`: D floats of the caller's, into which rows are decoded where they must be (it may
/// be empty where the tensor is dense); one operator a thread. With `simd` include backend/packed.hpp, with
/// `dispatch` backend/packed_dispatch.hpp. O(1). Throws usage_error where i is out of range, or rows are
/// decoded and `row` is not of D floats.
template <class Backend = reference>
[[nodiscard]] expert_operator<Backend> gram_of_expert(const any_experts& experts, index_t i,
                                                      std::span<float> row, const Backend& backend = {}) {
  return std::visit(
      [&]<class Experts>(const Experts& e) {
        if constexpr (std::same_as<Experts, quantised_experts>) {
          return detail::operator_of(e[i], row, backend);
        } else {
          return expert_operator<Backend>(gram<float>(e[i], backend));
        }
      },
      experts);
}

/// N, F and D of experts of whatever type.
[[nodiscard]] inline expert_shape shape_of(const any_experts& experts) {
  return std::visit([](const auto& e) { return e.shape(); }, experts);
}

/// A model of GramOperators, the experts of one tensor:
///
///   const ggml::expert_operators<simd> experts(tensor);
///   router_rows(experts, router, rows, options, workspace);
///
/// The tensor's memory must outlive it. It holds N · D floats of scratch, allocated where the tensor is
/// quantised; each operator is for one thread at a time, different ones are for as many as there are.
template <class Backend = reference>
class expert_operators {
 public:
  /// Throws usage_error as experts().
  explicit expert_operators(const ::ggml_tensor* t, Backend backend = {})
      : experts_(experts(t)), backend_(backend) {
    const auto [n, f, d] = shape_of(experts_);
    if (std::holds_alternative<quantised_experts>(experts_)) {
      scratch_ = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(n * d));
    }
  }

  [[nodiscard]] index_t num_experts() const { return shape_of(experts_).num_experts; }
  [[nodiscard]] expert_operator<Backend> operator()(index_t i) const {
    const index_t d = shape_of(experts_).hidden_dim;
    const auto row = scratch_ == nullptr
                         ? std::span<float>()
                         : std::span<float>(scratch_.get() + i * d, static_cast<std::size_t>(d));
    return gram_of_expert(experts_, i, row, backend_);
  }

 private:
  any_experts experts_;
  [[no_unique_address]] Backend backend_;
  std::unique_ptr<float[]> scratch_;
};

}  // namespace ggml
MPIROUTER_END
