#if !defined(MPIROUTER_C_PLAIN)
#include "any_operator.hpp"

#include <mpi_router/backend/dense.hpp>
#include <mpi_router/backend/runtime_dispatch.hpp>

#include <memory>

namespace mpi_router_c {
namespace {

template <class Op>
any_operator<scalar_of<Op>> behind_functions(Op op) {
  using S = scalar_of<Op>;
  using matrix = typename any_operator<S>::matrix;
  const auto shared = std::make_shared<Op>(std::move(op));  // std::function copies what it holds
  any_operator<S> any{.hidden_dim = shared->dimension(),
                      .neurons = shared->ffn_dim(),
                      .apply_ = [shared](auto x, auto u) { return shared->apply(x, u); },
                      .apply_scaled_ = [shared](auto x, auto u) { return shared->apply_scaled(x, u); },
                      .images_ = {}};
  if constexpr (std::same_as<S, double>) {
    any.images_ = [shared](const matrix& x) { return detail::images_of(*shared, x); };
  }
  return any;
}

}  // namespace

any_operator<double> operator_in_double(const mpi_router_experts& experts, index_t i) {
  return with_type(experts.dtype, [&]<class T>(std::type_identity<T>) {
    return behind_functions(gram_in_double(view_of<const T>(experts)[i], dispatch{}));
  });
}

any_operator<float> operator_in_float(const mpi_router_experts& experts, index_t i,
                                      std::vector<float>& rounded) {
  return with_type(experts.dtype, [&]<class T>(std::type_identity<T>) {
    const auto a = view_of<const T>(experts)[i];
    if constexpr (std::same_as<T, double>) {
      rounded.resize(static_cast<std::size_t>(a.rows() * a.cols()));
      const auto floats = gate_fd(rounded.data(), a.rows(), a.cols());
      for (index_t f = 0; f < a.rows(); ++f) {
        for (index_t d = 0; d < a.cols(); ++d) {
          floats(f, d) = static_cast<float>(a(f, d));
        }
      }
      return behind_functions(gram(matrix_view<const float>(floats), dispatch{}));
    } else {
      return behind_functions(gram(a, dispatch{}));
    }
  });
}

std::vector<double> row_in_double(const mpi_router_matrix& rows, index_t i) {
  std::vector<double> out(static_cast<std::size_t>(rows.shape[1]));
  with_type(rows.dtype, [&]<class T>(std::type_identity<T>) {
    const auto row = view_of<const T>(rows).row(i);
    for (index_t d = 0; d < row.size(); ++d) {
      out[static_cast<std::size_t>(d)] = widen<double>(row[d]);
    }
  });
  return out;
}

}  // namespace mpi_router_c
#endif
