// Which way a call takes: weights with a contiguous axis never the generic one, whatever the device has.
#include <doctest/doctest.h>

#include "plan_support.hpp"

using namespace plan_test;

namespace {

[[nodiscard]] expert_strides gate_rows_of(const expert_shape& s) {
  return {2 * s.ffn_dim * s.hidden_dim, s.hidden_dim, 1};
}
[[nodiscard]] expert_strides gate_columns_of(const expert_shape& s) {
  return {2 * s.ffn_dim * s.hidden_dim, 1, 2 * s.ffn_dim};
}

/// One read by rows or panels, with shared memory that fits, or two by vectors; exactly one of these.
template <class Path>
[[nodiscard]] int ways(const Path& p) {
  return (p.rows.vectors > 0 ? 1 : 0) + (p.panels.lanes > 0 ? 1 : 0) + (p.in_vectors ? 1 : 0);
}

[[nodiscard]] laws check_forward(const cuda::context& ctx, const expert_shape& s, int element_bytes) {
  laws l;
  for (const expert_strides& strides : {gate_rows_of(s), gate_columns_of(s)}) {
    const forward_path p(ctx, s, strides, element_bytes, 1, nullptr);
    l.hold(ways(p) == 1, "one way");
    l.hold(p.rows.vectors == 0 || strides.hidden == 1, "rows that are contiguous");
    l.hold(p.panels.lanes == 0 || strides.ffn == 1, "panels of contiguous columns");
    l.hold(p.rows.shared_bytes <= ctx.shared_memory && p.panels.shared_bytes <= ctx.shared_memory,
           "shared memory fits");
  }
  return l;
}

template <class T, class G>
[[nodiscard]] laws check_backward(const cuda::context& ctx, const expert_shape& s) {
  laws l;
  for (const vjp_mode mode : {vjp_mode::factored, vjp_mode::write, vjp_mode::accumulate}) {
    for (const expert_strides& strides : {gate_rows_of(s), gate_columns_of(s)}) {
      const backward_path<T, G> p(ctx, s, strides, strides, mode, nullptr);
      l.hold(ways(p) == 1, "one way");
      l.hold(p.rows.vectors == 0 || strides.hidden == 1, "rows that are contiguous");
      l.hold(p.panels.lanes == 0 || strides.ffn == 1, "panels of contiguous columns");
      l.hold(p.rows.shared_bytes <= ctx.shared_memory && p.panels.shared_bytes <= ctx.shared_memory,
             "shared memory fits");
      l.hold(p.panels.lanes > 0 || strides.ffn != 1 || strides.hidden == 1 || ctx.capability < 90 ||
                 ctx.shared_memory < 200000 || s.hidden_dim > 16384,
             "columns are read once where a cluster holds a panel");
      const bool fits_both = mode != vjp_mode::accumulate || sizeof(G) < 4 || ctx.shared_memory > 160000;
      l.hold(p.rows.vectors > 0 || strides.hidden != 1 || s.hidden_dim > (fits_both ? 8192 : 6064),
             "rows are read once as far as a block holds them");
    }
  }
  return l;
}

}  // namespace

TEST_CASE("weights with a contiguous axis do not go the generic way, forward or backward") {
  for_each_device_and_shape({}, [](const cuda::context& ctx, const expert_shape& s) {
    for (const int element_bytes : {2, 4}) {
      const laws l = check_forward(ctx, s, element_bytes);
      CHECK_MESSAGE(l.kept(), l.broken(), ": ", element_bytes, " bytes, ", name(ctx, s));
    }
    for (const laws& l : {check_backward<bf16, bf16>(ctx, s), check_backward<f16, f16>(ctx, s),
                          check_backward<bf16, float>(ctx, s), check_backward<float, float>(ctx, s)}) {
      CHECK_MESSAGE(l.kept(), l.broken(), ": backward ", name(ctx, s));
    }
  });
}

TEST_CASE("f64, and weights without a contiguous axis, go the generic way") {
  const cuda::context h100 = device(132, 90, 227);
  const expert_shape s{8, 64, 256};
  CHECK(ways(forward_path(h100, s, gate_rows_of(s), 8, 1, nullptr)) == 0);
  CHECK(ways(forward_path(h100, s, {32768, 512, 2}, 2, 1, nullptr)) == 0);
  CHECK(ways(backward_path<double, double>(h100, s, gate_rows_of(s), gate_rows_of(s), vjp_mode::write,
                                           nullptr)) == 0);
  CHECK(ways(backward_path<bf16, bf16>(h100, s, {32768, 512, 2}, gate_rows_of(s), vjp_mode::write,
                                       nullptr)) == 0);
  // What becomes of the products does not matter to how they are taken.
  CHECK(ways(backward_path<bf16, double>(h100, s, gate_rows_of(s), gate_rows_of(s), vjp_mode::write,
                                         nullptr)) == 1);
  CHECK(ways(backward_path<bf16, bf16>(h100, s, gate_rows_of(s), {32768, 512, 2}, vjp_mode::write,
                                       nullptr)) == 1);
  CHECK(backward_path<bf16, bf16>(h100, s, gate_columns_of(s), gate_rows_of(s), vjp_mode::write, nullptr)
            .in_vectors);
}

TEST_CASE("columns two apart are read once on sm_90, where those of the gradient are, too") {
  const cuda::context h100 = device(132, 90, 227);
  const expert_shape s{8, 64, 256};
  const expert_strides pairs{2 * 64 * 256, 2, 128};
  const auto path = [&](const cuda::context& ctx, const expert_strides& gradient, vjp_mode mode) {
    return backward_path<bf16, bf16>(ctx, s, pairs, gradient, mode, nullptr);
  };
  for (const vjp_mode mode : {vjp_mode::factored, vjp_mode::write, vjp_mode::accumulate}) {
    CHECK(ways(path(h100, pairs, mode)) == 1);
    CHECK(path(h100, pairs, mode).in_pairs);
    CHECK(ways(path(h100, {2 * 64 * 256 + 1, 2, 128}, mode)) == 0);
    CHECK(ways(path(h100, {64 * 256, 1, 64}, mode)) == 0);
    CHECK(ways(path(device(108, 80, 163), pairs, mode)) == 0);
  }
  const forward_path forward(h100, s, pairs, 2, 1, nullptr);
  CHECK(forward.in_pairs);
  CHECK(ways(forward) == 1);
  CHECK(forward.panels.part.tiles_per_expert == 2);  // of 32 columns
  CHECK_FALSE(forward_path(h100, s, gate_columns_of(s), 2, 1, nullptr).in_pairs);
}
