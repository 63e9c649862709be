// Every layout against the index arithmetic that defines it, and the checks of its edges.
#include <mpi_router/core/concepts.hpp>
#include <mpi_router/core/experts.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>

#include <array>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace test_views {
using namespace mpi_router;
using test_support::contains;
using test_support::message_of;

namespace {

constexpr index_t N = 3;
constexpr index_t F = 4;  // F and D differ, but a layout must be right where they are equal too
constexpr index_t D = 5;

/// A tensor of consecutive numbers: the value is the offset.
std::vector<double> offsets(index_t size) {
  std::vector<double> data(static_cast<std::size_t>(size));
  std::iota(data.begin(), data.end(), 0.0);
  return data;
}

template <class View, class Offset>
void agrees(const View& experts, Offset offset) {
  REQUIRE(experts.num_experts() == N);
  for (index_t n = 0; n < N; ++n) {
    const auto a = experts[n];
    REQUIRE(a.rows() == experts.ffn_dim());
    REQUIRE(a.cols() == experts.hidden_dim());
    for (index_t f = 0; f < a.rows(); ++f) {
      for (index_t d = 0; d < a.cols(); ++d) {
        CHECK(a(f, d) == static_cast<double>(offset(n, f, d)));
      }
    }
  }
}

}  // namespace

TEST_CASE("each named layout addresses the elements that its name says") {
  auto data = offsets(2 * N * F * D);
  for (const index_t hidden : {D, F}) {  // F = D: a guess from shapes would pass silently
    const expert_shape shape{.num_experts = N, .ffn_dim = F, .hidden_dim = hidden};
    const index_t H = hidden;
    agrees(experts_nfd(data.data(), shape),
           [=](index_t n, index_t f, index_t d) { return (n * F + f) * H + d; });
    agrees(experts_ndf(data.data(), shape),
           [=](index_t n, index_t f, index_t d) { return (n * H + d) * F + f; });
    for (const auto half : {fused_half::gate, fused_half::up}) {
      const index_t up = half == fused_half::up ? 1 : 0;
      agrees(experts_n2fd_concatenated(data.data(), shape, half),
             [=](index_t n, index_t f, index_t d) { return (n * 2 * F + up * F + f) * H + d; });
      agrees(experts_n2fd_interleaved(data.data(), shape, half),
             [=](index_t n, index_t f, index_t d) { return (n * 2 * F + 2 * f + up) * H + d; });
      agrees(experts_nd2f_concatenated(data.data(), shape, half),
             [=](index_t n, index_t f, index_t d) { return (n * H + d) * 2 * F + up * F + f; });
      agrees(experts_nd2f_interleaved(data.data(), shape, half),
             [=](index_t n, index_t f, index_t d) { return (n * H + d) * 2 * F + 2 * f + up; });
    }
    agrees(experts_strided(data.data() + 1, shape, {.expert = 2 * H, .ffn = H, .hidden = 1}),
           [=](index_t n, index_t f, index_t d) { return 1 + 2 * n * H + f * H + d; });
    const std::array<double*, N> table{data.data() + 40, data.data(), data.data() + 7};
    const std::array<index_t, N> first{40, 0, 7};
    const auto base = [&](index_t n) { return first[static_cast<std::size_t>(n)]; };
    agrees(experts_fd_pointers(table.data(), shape),
           [&](index_t n, index_t f, index_t d) { return base(n) + f * H + d; });
    agrees(experts_df_pointers(table.data(), shape),
           [&](index_t n, index_t f, index_t d) { return base(n) + d * F + f; });
  }
}

TEST_CASE("matrix and vector views address, slice and convert") {
  auto data = offsets(F * D);
  const auto a = row_major(data.data(), F, D);
  const matrix_view<const double> fixed = a;
  CHECK(fixed(2, 3) == 13);
  CHECK(column_major(data.data(), F, D)(2, 3) == 14);
  CHECK(gate_fd(data.data(), F, D)(1, 2) == 7);
  CHECK(gate_df(data.data(), D, F)(1, 2) == 9);  // stored [D, F], seen as F × D
  CHECK(a.transposed()(3, 2) == 13);
  CHECK(a.middle_rows(1, 2)(1, 0) == 10);
  CHECK(a.middle_cols(2, 2)(1, 1) == 8);
  CHECK(a.row(3)[4] == 19);
  CHECK(a.transposed().row(4)[3] == 19);
  CHECK_FALSE(a.transposed().row(4).is_contiguous());
  const vector_view<const double> whole = data;
  CHECK(whole.size() == F * D);
  CHECK(vector_view<const double>(std::span<double>(data).subspan(3, 2))[1] == 4);
  static_assert(!std::is_constructible_v<vector_view<double>, const std::vector<double>&>);
  static_assert(!std::is_constructible_v<vector_view<double>, vector_view<const double>>);
  static_assert(!std::is_constructible_v<vector_view<double>, vector_view<double, device_space>>);
  static_assert(!std::is_convertible_v<matrix_view<float>, matrix_view<const double>>);
}

TEST_CASE("what does not fit is refused with the shapes in the message") {
  double one = 1;
  CHECK(contains(message_of([&] { (void)row_major(static_cast<double*>(nullptr), 2, 3); }),
                 "null data for shape [2, 3]"));
  CHECK(contains(message_of([&] { (void)row_major(&one, -2, 3); }), "[-2, 3]"));
  CHECK(contains(message_of([&] { vector_view<double>(&one, -1); }), "-1"));
  CHECK(contains(message_of([&] { (void)row_major(&one, 1, 1).middle_rows(1, 1); }), "out of 1"));
  const expert_shape huge{.num_experts = 1LL << 31, .ffn_dim = 1LL << 31, .hidden_dim = 1LL << 31};
  CHECK(contains(message_of([&] { (void)experts_nfd(&one, huge); }), "do not fit in memory"));
  const expert_shape small{.num_experts = 1, .ffn_dim = 1, .hidden_dim = 1};
  CHECK(contains(message_of([&] { (void)experts_nfd(&one, small)[1]; }), "expert 1 out of 1"));
  CHECK(contains(message_of([&] { (void)experts_nfd(&one, small)[-1]; }), "expert -1 out of 1"));
  CHECK(contains(message_of([&] { (void)experts_nfd(static_cast<double*>(nullptr), small); }), "[1, 1, 1]"));
  CHECK(contains(message_of([&] { (void)experts_fd_pointers(static_cast<double* const*>(nullptr), small); }),
                 "pointer table"));
  CHECK(
      experts_nfd(static_cast<double*>(nullptr), {.num_experts = 0, .ffn_dim = 1, .hidden_dim = 1}).empty());
}

TEST_CASE("what no memory can hold is refused before extents and strides are multiplied") {
  double one = 1;
  double* const table[]{&one};
  constexpr index_t large = index_t{1} << 40;
  for (const index_t n : {0, 1}) {  // an empty batch has strides too
    const expert_shape s{.num_experts = n, .ffn_dim = large, .hidden_dim = large};
    const auto refused = [&](auto layout) {
      CHECK(contains(message_of([&] { (void)layout(); }), "do not fit in memory"));
    };
    refused([&] { return experts_nfd(&one, s); });
    refused([&] { return experts_ndf(&one, s); });
    for (const auto half : {fused_half::gate, fused_half::up}) {
      refused([&] { return experts_n2fd_concatenated(&one, s, half); });
      refused([&] { return experts_n2fd_interleaved(&one, s, half); });
      refused([&] { return experts_nd2f_concatenated(&one, s, half); });
      refused([&] { return experts_nd2f_interleaved(&one, s, half); });
    }
    refused([&] { return experts_fd_pointers(table, s); });
    refused([&] { return experts_df_pointers(table, s); });
  }
  const expert_shape small{.num_experts = 2, .ffn_dim = 2, .hidden_dim = 2};
  for (const expert_strides& strides :
       {expert_strides{index_t{1} << 62, 2, 1}, expert_strides{4, -(index_t{1} << 62), 1},
        expert_strides{4, 2, std::numeric_limits<index_t>::min()}}) {
    CHECK(contains(message_of([&] { (void)experts_strided(&one, small, strides); }), "do not fit in memory"));
  }
  CHECK(contains(message_of([&] { (void)row_major(&one, large, large); }), "do not fit in memory"));
  CHECK(contains(message_of([&] { (void)column_major(&one, large, large); }), "do not fit in memory"));
  CHECK(core::overlap(vector_view<double>(&one, large, large), vector_view<double>(&one, 1)));
}

TEST_CASE("a part of a batch shows its experts and knows how many there are in all") {
  auto data = offsets(60);
  const expert_shape shape{.num_experts = 5, .ffn_dim = 2, .hidden_dim = 3};
  const std::array<double*, 5> pointers{&data[0], &data[12], &data[6], &data[24], &data[18]};
  for (const auto& all : {experts_nfd(data.data(), shape), experts_ndf(data.data(), shape),
                          experts_strided(data.data() + 48, shape, {.expert = -12, .ffn = 3, .hidden = 1}),
                          experts_fd_pointers(pointers.data(), shape)}) {
    CHECK(all.total_experts() == 5);
    for (index_t first = 0; first <= 5; ++first) {
      for (index_t count = 0; count <= 5 - first; ++count) {
        const expert_batch_view<const double> part = all.middle_experts(first, count);
        CHECK(part.shape() == expert_shape{count, 2, 3});
        CHECK(part.total_experts() == 5);
        CHECK(part.middle_experts(0, count).total_experts() == 5);
        for (index_t i = 0; i < count; ++i) {
          CHECK(part[i].data() == all[first + i].data());
        }
      }
    }
    for (const auto& [first, count] : {std::pair<index_t, index_t>{-1, 2}, {0, 6}, {5, 1}, {2, -1}}) {
      CHECK(contains(message_of([&] { (void)all.middle_experts(first, count); }), "middle_experts"));
    }
  }
}

TEST_CASE("the memory of a batch is that of all its experts") {
  auto data = offsets(60);
  const expert_shape shape{.num_experts = 3, .ffn_dim = 2, .hidden_dim = 4};
  const auto at = [&](index_t first) { return vector_view<double>(data.data() + first, 1); };
  const auto forwards = experts_nfd(data.data() + 8, shape);
  CHECK_FALSE(core::overlap(core::addresses(forwards), at(7)));
  CHECK(core::overlap(core::addresses(forwards), at(8)));
  CHECK(core::overlap(core::addresses(forwards), at(31)));
  CHECK_FALSE(core::overlap(core::addresses(forwards), at(32)));
  const auto backwards = experts_strided(data.data() + 40, shape, {.expert = -10, .ffn = 4, .hidden = 1});
  CHECK_FALSE(core::overlap(core::addresses(backwards), at(19)));
  CHECK(core::overlap(core::addresses(backwards), at(20)));
  CHECK(core::overlap(core::addresses(backwards), at(47)));
  CHECK_FALSE(core::overlap(core::addresses(backwards), at(48)));
  CHECK_FALSE(core::overlap(core::addresses(experts_nfd(data.data(), {0, 2, 4})), at(0)));
}

TEST_CASE("overlap is seen through strides of either sign") {
  auto data = offsets(20);
  const auto slice = [&](index_t first, index_t size, index_t stride = 1) {
    return vector_view<double>(data.data() + first, size, stride);
  };
  CHECK(core::overlap(slice(0, 5), slice(4, 2)));
  CHECK_FALSE(core::overlap(slice(0, 5), slice(5, 2)));
  CHECK(core::overlap(slice(0, 3, 5), slice(10, 1)));
  CHECK(core::overlap(slice(10, 3, -5), slice(0, 1)));
  CHECK_FALSE(core::overlap(slice(10, 3, -5), slice(11, 1)));
  CHECK_FALSE(core::overlap(slice(3, 0), slice(3, 1)));
  CHECK_FALSE(core::overlap(slice(3, 0), slice(2, 3)));  // nothing lies in the midst of something
  CHECK_FALSE(core::overlap(slice(2, 3), slice(3, 0)));
  CHECK(core::overlap(row_major(data.data(), 4, 5), slice(19, 1)));
}

TEST_CASE("the memory of a matrix is that between its extreme corners, whatever the signs of its strides") {
  auto data = offsets(40);
  for (const index_t down : {-5, 5}) {
    for (const index_t across : {-2, 2}) {
      const matrix_view<double> m(data.data() + 20, 3, 3, down, across);
      const index_t low = 20 + std::min(2 * down, index_t{0}) + std::min(2 * across, index_t{0});
      const index_t high = 20 + std::max(2 * down, index_t{0}) + std::max(2 * across, index_t{0});
      for (index_t i = 0; i < 40; ++i) {
        CHECK(core::overlap(m, vector_view<double>(data.data() + i, 1)) == (i >= low && i <= high));
      }
    }
  }
}

TEST_CASE("views of const elements and transposed ones keep every extent and stride") {
  auto data = offsets(40);
  const vector_view<double> v(data.data() + 30, 3, -4);
  const vector_view<const double> fixed = v;
  CHECK(fixed.stride() == -4);
  CHECK(fixed[2] == 22);
  const matrix_view<double> m(data.data() + 20, 2, 3, -7, 3);
  const matrix_view<const double> same = m;
  for (const auto& one :
       {same, same.transposed().transposed(), same.middle_rows(0, 2), same.middle_cols(0, 3)}) {
    CHECK(one.rows() == 2);
    CHECK(one.cols() == 3);
    CHECK(one.row_stride() == -7);
    CHECK(one.col_stride() == 3);
    CHECK(one(1, 2) == 19);
    CHECK(one.row(1)[2] == 19);
  }
}

TEST_CASE("what has at most one element is contiguous whatever its stride") {
  auto data = offsets(8);
  for (const index_t size : {0, 1, 2, 3}) {
    CHECK(vector_view<double>(data.data(), size).is_contiguous());
    for (const index_t stride : {-1, 0, 2}) {
      CHECK(vector_view<double>(data.data() + 4, size, stride).is_contiguous() == (size <= 1));
    }
  }
}

TEST_CASE("null is the data of what is empty, and of nothing else") {
  double* const null = nullptr;
  for (const index_t rows : {0, 2}) {
    for (const index_t cols : {0, 3}) {
      const bool is_empty = rows == 0 || cols == 0;
      CHECK(message_of([&] { (void)row_major(null, rows, cols); }).empty() == is_empty);
      for (const index_t n : {0, 2}) {
        const expert_shape shape{n, rows, cols};
        CHECK(message_of([&] { (void)experts_nfd(null, shape); }).empty() == (is_empty || n == 0));
      }
    }
  }
  CHECK(message_of([&] { vector_view<double>(null, 0); }).empty());
  CHECK(contains(message_of([&] { vector_view<double>(null, 1); }), "null data for size 1"));
}

TEST_CASE("batches are as large as memory may be with gate and up fused, and no larger") {
  double one = 1;
  const auto said = [&](index_t f, index_t d) {
    return message_of([&] { (void)experts_nfd(&one, {.num_experts = 1, .ffn_dim = f, .hidden_dim = d}); });
  };
  constexpr index_t root = index_t{1} << 28;  // 2^58 doubles are the farthest that is addressed
  CHECK(said(root, 2 * root).empty());
  CHECK(contains(said(2 * root, 2 * root), "do not fit in memory"));
}

}  // namespace test_views
