// Layers of ggml tensors, and whether the op's rows are those of the formula and of router_rows.
#pragma once

#include "graphs.hpp"

#include <mpi_router/ggml/router_rows.hpp>

#include <support/tolerance.hpp>

#include <cmath>

namespace ggml_test {

using namespace mpi_router;

inline constexpr double bound = test_support::tolerance<float>.identity;

/// C · rAᵀA/‖rAᵀA‖ in double, `steps` times, of each expert.
inline std::vector<double> exact_rows(const ggml_tensor* experts, const ggml_tensor* router, double radius,
                                      index_t steps = 1) {
  const std::vector<double> a = values_of(experts);
  std::vector<double> rows = values_of(router);
  const auto [n, f, d] = expert_shape{experts->ne[2], experts->ne[1], experts->ne[0]};
  for (index_t i = 0; i < n; ++i) {
    double* const r = rows.data() + i * d;
    for (index_t step = 0; step < steps; ++step) {
      std::vector<double> image(static_cast<std::size_t>(d));
      for (index_t row = 0; row < f; ++row) {
        const double* const at = a.data() + (i * f + row) * d;
        double projection = 0;
        for (index_t k = 0; k < d; ++k) projection += at[k] * r[k];
        for (index_t k = 0; k < d; ++k) image[static_cast<std::size_t>(k)] += projection * at[k];
      }
      double norm = 0;
      for (const double x : image) norm = std::hypot(norm, x);
      for (index_t k = 0; k < d; ++k) r[k] = radius * image[static_cast<std::size_t>(k)] / norm;
    }
  }
  return rows;
}

struct layer {
  ggml_tensor* experts;
  ggml_tensor* router;
};
inline layer random_layer(const context& ctx, random_source& random, ggml_type type, index_t d, index_t f,
                          index_t n, ggml_type router_type = GGML_TYPE_F32) {
  return {random_tensor(ctx, random, type, d, f, n, "blk.7.ffn_gate_exps.weight"),
          random_tensor(ctx, random, router_type, d, n, 1, "blk.7.ffn_gate_inp.weight")};
}

/// What router_rows makes over the same operators, outside of any graph.
template <class Backend>
std::vector<float> rows_without_graph(const layer& l, const router_options& options, const Backend& backend) {
  const index_t n = l.router->ne[1];
  const index_t d = l.router->ne[0];
  std::vector<float> out(static_cast<std::size_t>(n * d));
  std::vector<float> workspace(static_cast<std::size_t>(router_rows_workspace(n, d)));
  std::visit(
      [&](const auto& router) {
        router_rows(ggml::expert_operators<Backend>(l.experts, backend), router, row_major(out.data(), n, d),
                    options, workspace);
      },
      ggml::rows(l.router));
  return out;
}

template <class Backend>
void is_the_step(const layer& l, const router_options& options, const context& ctx) {
  const double radius = options.radius.of(l.router->ne[1]);
  const auto exact = exact_rows(l.experts, l.router, radius, options.steps);
  const auto outside = rows_without_graph(l, options, Backend{});
  for (const int threads : {1, 2, 3, 7}) {
    CAPTURE(threads);
    ggml::router_rows_op<Backend> op(options);
    ggml_tensor* rows = op.build(ctx.get(), l.experts, l.router);
    CHECK(std::string(rows->name) == "blk.7.ffn_gate_inp.weight (mpi)");
    compute(ctx, rows, threads);
    CHECK(op.take_error().empty());
    const auto got = floats_of(rows);
    CHECK(test_support::relative_distance(got, exact) <= bound);
    CHECK(got == outside);
    for (const auto s : op.statuses()) CHECK(s == status::ok);
  }
}

}  // namespace ggml_test
