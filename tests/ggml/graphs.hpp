// Contexts, tensors and graphs of the real ggml, as tests want them.
#pragma once

#include <mpi_router/core/scalar.hpp>

#include <doctest/doctest.h>
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <support/messages.hpp>
#include <support/random.hpp>

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace ggml_test {

using mpi_router::index_t;
using test_support::random_source;

struct delete_context {
  void operator()(ggml_context* ctx) const { ggml_free(ctx); }
};
using context = std::unique_ptr<ggml_context, delete_context>;

/// A context with memory for tensors, or, without, for their headers alone.
inline context new_context(bool has_memory = true, std::size_t megabytes = 32) {
  return context(ggml_init({.mem_size = megabytes << 20, .mem_buffer = nullptr, .no_alloc = !has_memory}));
}

inline std::size_t bytes_of_row(const ggml_tensor* t) { return ggml_row_size(t->type, t->ne[0]); }

/// Writes `values` to a contiguous tensor of any type that ggml converts floats to.
inline void fill(ggml_tensor* t, std::span<const float> values) {
  REQUIRE(static_cast<std::int64_t>(values.size()) == ggml_nelements(t));
  if (t->type == GGML_TYPE_F32) {
    std::memcpy(t->data, values.data(), values.size() * sizeof(float));
    return;
  }
  const std::vector<float> importance(static_cast<std::size_t>(t->ne[0]), 1.0F);
  ggml_quantize_chunk(t->type, values.data(), t->data, 0, ggml_nrows(t), t->ne[0], importance.data());
}

/// [ne0, ne1, ne2] with nearly normal values.
inline ggml_tensor* random_tensor(const context& ctx, random_source& random, ggml_type type, index_t d,
                                  index_t f, index_t n, const char* name) {
  ggml_tensor* t = ggml_new_tensor_3d(ctx.get(), type, d, f, n);
  ggml_set_name(t, name);
  fill(t, test_support::random_vector<float>(random, d * f * n));
  return t;
}

/// The elements in double, as ggml itself reads them; rows as nb[] says.
inline std::vector<double> values_of(const ggml_tensor* t) {
  std::vector<double> out;
  std::vector<float> row(static_cast<std::size_t>(t->ne[0]));
  for (index_t n = 0; n < t->ne[2]; ++n) {
    for (index_t f = 0; f < t->ne[1]; ++f) {
      const auto* at = static_cast<const char*>(t->data) + static_cast<std::size_t>(n) * t->nb[2] +
                       static_cast<std::size_t>(f) * t->nb[1];
      if (t->type == GGML_TYPE_F32) {
        for (index_t d = 0; d < t->ne[0]; ++d) {
          std::memcpy(&row[static_cast<std::size_t>(d)], at + static_cast<std::size_t>(d) * t->nb[0],
                      sizeof(float));
        }
      } else {
        ggml_get_type_traits(t->type)->to_float(at, row.data(), t->ne[0]);
      }
      out.insert(out.end(), row.begin(), row.end());
    }
  }
  return out;
}

/// Computes what leads to `result` with so many threads.
inline void compute(const context& ctx, ggml_tensor* result, int threads) {
  ggml_cgraph* graph = ggml_new_graph(ctx.get());
  ggml_build_forward_expand(graph, result);
  REQUIRE(ggml_graph_compute_with_ctx(ctx.get(), graph, threads) == GGML_STATUS_SUCCESS);
}

/// A kind of buffer that the CPU backend keeps weights in, but not in ggml's own layout; null where it has
/// none.
inline ggml_backend_buffer_type_t foreign_buffer_type() {
  using extra_bufts = ggml_backend_buffer_type_t* (*)(ggml_backend_dev_t);
  const auto registry = ggml_backend_cpu_reg();
  const auto extra = reinterpret_cast<extra_bufts>(
      ggml_backend_reg_get_proc_address(registry, "ggml_backend_dev_get_extra_bufts"));
  REQUIRE((extra != nullptr));
  ggml_backend_buffer_type_t foreign = nullptr;
  auto* const types = extra(ggml_backend_reg_dev_get(registry, 0));
  for (auto* type = types; type != nullptr && *type != nullptr; ++type) {
    if (!ggml_backend_buft_is_host(*type)) foreign = *type;
  }
  return foreign;
}

inline std::vector<float> floats_of(const ggml_tensor* t) {
  const auto* data = static_cast<const float*>(t->data);
  return {data, data + ggml_nelements(t)};
}

}  // namespace ggml_test
