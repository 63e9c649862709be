// Workspaces: their size is what their parts take, and the parts lie side by side, none on another.
#include <doctest/doctest.h>

#include <algorithm>
#include <support/messages.hpp>
#include <utility>

#include "plan_support.hpp"

using namespace plan_test;

namespace {

[[nodiscard]] constexpr std::size_t rounded(index_t bytes) {
  return (static_cast<std::size_t>(bytes) + 255) / 256 * 256;
}

[[nodiscard]] expert_strides rows_of(const expert_shape& s) {
  return {s.ffn_dim * s.hidden_dim, s.hidden_dim, 1};
}
[[nodiscard]] expert_strides columns_of(const expert_shape& s) {
  return {s.ffn_dim * s.hidden_dim, 1, s.ffn_dim};
}

/// Checks that the parts, in their order, fill a workspace of `bytes`.
class parts {
 public:
  template <class T>
  void next(const T* at, index_t count) {
    CHECK(offset(at) == static_cast<std::intptr_t>(used_));
    used_ += rounded(count * static_cast<index_t>(sizeof(T)));
  }
  void next_exponents(const step_exponents& e, index_t experts) {
    next(e.row, experts);
    next(e.projection, experts);
    next(e.image, experts);
  }
  void next_scaled(const scaled_vectors& v, index_t experts, index_t extent) {
    CHECK(v.pitch >= extent);
    CHECK(v.pitch < extent + 8);
    CHECK(v.pitch % 8 == 0);
    next(v.values, experts * v.pitch);
    next(v.exponents, experts);
  }
  void end(std::size_t bytes) const { CHECK(bytes == used_); }
  /// Of two that begin at the same place, one is used: the rest follows the longer.
  void reach(const parts& other) { used_ = std::max(used_, other.used_); }

 private:
  std::size_t used_ = 0;
};

const expert_shape shapes[] = {{1, 1, 1},      {3, 5, 7},       {8, 200, 1000}, {64, 512, 2048},
                               {60, 96, 4096}, {200, 33, 8200}, {2, 40, 16385}};

}  // namespace

TEST_CASE("an arena hands out pieces at multiples of 256") {
  arena a(memory);
  CHECK(offset(a.take<float>(1)) == 0);
  CHECK(offset(a.take<double>(32)) == 256);
  CHECK(offset(a.take<double>(33)) == 512);
  CHECK(a.take<char>(0) != nullptr);
  CHECK(a.used() == 1024);
  arena counter(nullptr);
  CHECK(counter.take<double>(index_t{1} << 59) == nullptr);
  CHECK(counter.take<double>(index_t{1} << 59) == nullptr);
  CHECK(counter.used() == std::size_t{1} << 63);
}

TEST_CASE("the workspace of a forward is its partial sums or its products, and the rows between steps") {
  for (const cuda::context& ctx : {device(20, 80, 99), device(108, 80, 163), device(132, 90, 227)}) {
    for (const expert_shape& s : shapes) {
      for (const int steps : {1, 2, 3, 9}) {
        for (const int element_bytes : {2, 4, 8}) {
          for (const expert_strides& strides :
               {rows_of(s), columns_of(s), expert_strides{1, 2 * s.num_experts, 3}}) {
            CAPTURE(name(ctx, s));
            const forward_path p(ctx, s, strides, element_bytes, steps, memory);
            CHECK(forward_path(ctx, s, strides, element_bytes, steps, nullptr).bytes == p.bytes);
            parts all;
            if (p.rows.vectors > 0 || p.panels.lanes > 0) {
              const bool by_rows = p.rows.vectors > 0;
              CHECK((by_rows ? strides.hidden : strides.ffn) == 1);
              CHECK(element_bytes <= 4);
              const partition& part = by_rows ? p.rows.part : p.panels.part;
              CHECK(p.sums.pitch == (by_rows ? p.rows.pitch : p.panels.pitch));
              CHECK(p.sums.pitch >= s.hidden_dim);
              all.next(p.sums.rows, part.slots() * p.sums.pitch);
              all.next(p.sums.headers, part.slots());
            } else {
              CHECK(p.sums.rows == nullptr);
            }
            parts products;  // of rows of f64, too
            products.next(p.y, s.num_experts * s.ffn_dim);
            products.next(p.u, s.num_experts * s.hidden_dim);
            products.next(p.energies, s.num_experts);
            products.next_exponents(p.exponents, s.num_experts);
            CHECK((p.in_vectors || p.scaled.row.values == nullptr));
            if (p.in_vectors) {
              products.next_scaled(p.scaled.row, s.num_experts, s.hidden_dim);
              products.next_scaled(p.scaled.projection, s.num_experts, s.ffn_dim);
            }
            all.reach(products);
            if (steps > 1) {
              all.next(p.between[0], s.num_experts * s.hidden_dim);
            }
            if (steps > 2) {
              all.next(p.between[1], s.num_experts * s.hidden_dim);
            }
            if (steps > 1) {
              all.next(p.statuses, s.num_experts);
            }
            all.end(p.bytes);
          }
        }
      }
    }
  }
}

TEST_CASE("which way a forward takes") {
  const cuda::context h100 = device(132, 90, 227);
  const auto way = [&](const expert_shape& s, const expert_strides& strides, int element_bytes) {
    const forward_path p(h100, s, strides, element_bytes, 1, memory);
    return p.rows.vectors > 0   ? "rows"
           : p.panels.lanes > 0 ? "panels"
           : p.in_vectors       ? "two reads"
           : p.y != nullptr     ? "generic"
                                : "none";
  };
  const expert_shape s{8, 64, 256};
  CHECK(way(s, rows_of(s), 2) == std::string("rows"));
  CHECK(way(s, rows_of(s), 4) == std::string("rows"));
  CHECK(way(s, rows_of(s), 8) == std::string("generic"));
  CHECK(way(s, {32768, 512, 1}, 2) == std::string("rows"));  // one half of a fused tensor
  CHECK(way(s, columns_of(s), 2) == std::string("panels"));
  CHECK(way(s, columns_of(s), 8) == std::string("generic"));
  CHECK(way(s, {32768, 512, 2}, 2) == std::string("generic"));
  CHECK(way(s, {32768, 2, 128}, 2) == std::string("panels"));  // gate and up interleaved
  CHECK(way(s, {32768, 2, 128}, 4) == std::string("panels"));
  CHECK(way(s, {32768, 2, 129}, 2) == std::string("generic"));
  CHECK(way(s, {32769, 2, 128}, 2) == std::string("generic"));
  CHECK(way(s, {49152, 3, 192}, 2) == std::string("generic"));
  CHECK(way({8, 64, 16385}, {1048640, 16385, 1}, 2) == std::string("two reads"));
  CHECK(way({8, 64, 32769}, {2097216, 1, 64}, 4) == std::string("two reads"));
  CHECK(way({8, 0, 256}, {0, 256, 1}, 2) == std::string("none"));
  CHECK(way({0, 64, 256}, {16384, 256, 1}, 2) == std::string("none"));
  CHECK(way({8, 64, 0}, {0, 0, 1}, 2) == std::string("none"));
}

TEST_CASE("without weights a forward needs what lies between its steps, and without experts nothing") {
  const cuda::context h100 = device(132, 90, 227);
  const auto bytes = [&](const expert_shape& s, int steps) {
    return forward_path(h100, s, rows_of(s), 2, steps, nullptr).bytes;
  };
  CHECK(bytes({8, 0, 256}, 1) == 0);
  CHECK(bytes({8, 0, 256}, 2) == 8 * 256 * 4 + 256);
  CHECK(bytes({8, 0, 256}, 3) == 2 * 8 * 256 * 4 + 256);
  CHECK(bytes({0, 64, 256}, 3) == 0);
  CHECK(bytes({8, 64, 0}, 1) == 0);
  CHECK(bytes({8, 64, 0}, 3) == 256);  // statuses
}

TEST_CASE_TEMPLATE("the workspace of a backward", G, bf16, float, double) {
  const auto check = [](const cuda::context& ctx, const expert_shape& s, const expert_strides& strides,
                        const expert_strides& gradient, vjp_mode mode) {
    CAPTURE(name(ctx, s));
    const backward_path<bf16, G> p(ctx, s, strides, gradient, mode, memory);
    CHECK(backward_path<bf16, G>(ctx, s, strides, gradient, mode, nullptr).bytes == p.bytes);
    const bool by_rows =
        sizeof(G) <= 4 && strides.hidden == 1 && gradient.hidden == 1 && s.hidden_dim <= 8192;
    CHECK((p.rows.vectors > 0) == by_rows);
    const bool by_panels = sizeof(G) <= 4 && strides.hidden != 1 && strides.ffn == 1 && gradient.ffn == 1 &&
                           ctx.capability >= 90 && s.hidden_dim <= 16384;
    CHECK((p.panels.lanes > 0) == by_panels);
    parts all;
    if (by_rows || by_panels) {
      const partition& part = by_rows ? p.rows.part : p.panels.part;
      CHECK(p.sums.pitch == (by_rows ? p.rows.pitch : p.panels.pitch));
      all.next(p.sums.rows, part.slots() * p.sums.pitch);
      all.next(p.sums.headers, part.slots());
    }
    parts products;  // of rows of f64, too
    products.next(p.generic.y, s.num_experts * s.ffn_dim);
    products.next(p.generic.w, s.num_experts * s.ffn_dim);
    products.next(p.generic.dual, s.num_experts * s.hidden_dim);
    products.next(p.generic.u, s.num_experts * s.hidden_dim);
    products.next(p.generic.energy, s.num_experts);
    products.next_exponents(p.generic.exponents, s.num_experts);
    CHECK_FALSE(p.in_pairs);
    CHECK(p.in_vectors == (!by_rows && !by_panels && (strides.hidden == 1 || strides.ffn == 1)));
    if (p.in_vectors) {
      products.next_scaled(p.scaled.row, s.num_experts, s.hidden_dim);
      products.next_scaled(p.scaled.projection, s.num_experts, s.ffn_dim);
      products.next_scaled(p.scaled.dual, s.num_experts, s.hidden_dim);
      products.next_scaled(p.scaled.dual_projection, s.num_experts, s.ffn_dim);
    }
    all.reach(products);
    all.end(p.bytes);
  };
  for (const cuda::context& ctx : {device(108, 80, 163), device(132, 90, 227)}) {
    for (const expert_shape& s : shapes) {
      for (const vjp_mode mode : {vjp_mode::factored, vjp_mode::write, vjp_mode::accumulate}) {
        const expert_strides padded{(s.ffn_dim + 1) * s.hidden_dim, 1, s.ffn_dim + 1};
        check(ctx, s, rows_of(s), rows_of(s), mode);
        check(ctx, s, rows_of(s), {s.ffn_dim * s.hidden_dim * 2, 2 * s.hidden_dim, 2}, mode);
        check(ctx, s, padded, rows_of(s), mode);
        check(ctx, s, padded, columns_of(s), mode);
        check(ctx, s, {s.ffn_dim * s.hidden_dim * 2, 2 * s.hidden_dim, 2}, rows_of(s), mode);
      }
    }
    for (const expert_shape& s : {expert_shape{0, 4, 8}, {3, 0, 8}, {3, 4, 0}}) {
      CHECK(backward_path<bf16, G>(ctx, s, rows_of(s), rows_of(s), vjp_mode::write, nullptr).bytes == 0);
    }
  }
}

TEST_CASE("the old gradient travels through the ring where it fills whole vectors") {
  const auto demand = [](const row_demand& d) { return std::pair(d.extra_bytes, d.tile.rows); };
  CHECK(demand(vjp_demand<bf16, bf16>(vjp_mode::write)) == std::pair(0, 8));
  CHECK(demand(vjp_demand<bf16, bf16>(vjp_mode::factored)) == std::pair(0, 8));
  CHECK(demand(vjp_demand<bf16, bf16>(vjp_mode::accumulate)) == std::pair(2, 2));
  CHECK(demand(vjp_demand<bf16, float>(vjp_mode::accumulate)) == std::pair(4, 2));
  CHECK(demand(vjp_demand<float, float>(vjp_mode::accumulate)) == std::pair(4, 2));
  CHECK(demand(vjp_demand<float, bf16>(vjp_mode::accumulate)) == std::pair(0, 2));
}

namespace {

/// N, F and D up to their bounds, as far as a view of 16-bit elements can have them.
[[nodiscard]] std::vector<expert_shape> largest_shapes() {
  std::vector<index_t> extents;
  for (int log = 0; log <= 30; log += 3) {
    for (const index_t offset : {-1, 0, 1}) {
      const index_t extent = (index_t{1} << log) + offset;
      if (extent >= 1 && extent <= most_extent) {
        extents.push_back(extent);
      }
    }
  }
  std::vector<expert_shape> all;
  for (const index_t n : extents) {
    for (const index_t f : extents) {
      for (const index_t d : {1, 7, 1024, 8193, 16385, 32768}) {
        if (2 * static_cast<double>(n) * static_cast<double>(f) * static_cast<double>(d) <=
            core::most_reach<bf16>) {
          all.push_back({n, f, d});
        }
      }
    }
  }
  return all;
}

[[nodiscard]] laws check_numbers(const forward_path& p, const expert_shape& s) {
  laws l;
  constexpr std::int64_t largest_int = 0x7fffffff;
  const partition& part = p.rows.vectors > 0 ? p.rows.part : p.panels.part;
  l.hold(std::int64_t{part.experts} * part.tiles_per_expert + 255 <= largest_int,
         "an int counts the tiles and some");
  l.hold(part.slots() <= largest_int, "an int numbers the slots");
  l.hold(part.blocks <= 65535, "16 bits number the blocks");
  double bytes = 0;
  if (part.blocks > 0) {
    bytes = static_cast<double>(part.slots()) * (p.sums.pitch * 4.0 + sizeof(slot_header));
    l.hold(s.ffn_dim <= std::int64_t{part.tiles_per_expert} * (p.rows.vectors > 0 ? p.rows.rows : 64),
           "tiles for F");
  }
  double products =
      8.0 * static_cast<double>(s.num_experts) * (static_cast<double>(s.ffn_dim + s.hidden_dim) + 2.5);
  if (p.in_vectors) {
    const auto padded = [](index_t extent) { return static_cast<double>((extent + 7) / 8 * 8 + 1); };
    products += 4.0 * static_cast<double>(s.num_experts) * (padded(s.ffn_dim) + padded(s.hidden_dim));
  }
  bytes = std::max(bytes, products);
  bytes += static_cast<double>(s.num_experts) * (8.0 * static_cast<double>(s.hidden_dim) + 1);  // three steps
  l.hold(static_cast<double>(p.bytes) >= bytes * (1 - 1e-12), "no count of bytes wraps around");
  l.hold(static_cast<double>(p.bytes) <= bytes * (1 + 1e-12) + 13 * 256, "nor takes too many");
  return l;
}

}  // namespace

TEST_CASE("no number of a plan overflows: it fits, or the shape is refused") {
  std::size_t refusals = 0;
  for (const expert_shape& s : largest_shapes()) {
    const expert_strides by_columns{0, 1, 2};
    for (const cuda::context& ctx : {device(20, 80, 163), device(132, 90, 227), device(65535, 90, 227)}) {
      for (const expert_strides& strides : {expert_strides{0, 0, 1}, by_columns, expert_strides{0, 2, 2}}) {
        for (const int element_bytes : {2, 4}) {
          const std::string shape = name(ctx, s);
          const std::string refusal = test_support::message_of([&] {
            const forward_path p(ctx, s, strides, element_bytes, 3, nullptr);
            const laws l = check_numbers(p, s);
            CHECK_MESSAGE(l.kept(), l.broken(), ": ", shape);
          });
          refusals += refusal.empty() ? 0 : 1;
          const bool named =
              test_support::contains(refusal, "cuda: experts " + shape.substr(0, shape.find(']') + 1));
          CHECK_MESSAGE((refusal.empty() || named), refusal);
        }
      }
    }
  }
  CHECK(refusals > 100);
}
