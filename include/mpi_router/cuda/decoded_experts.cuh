// Experts on a GPU that are decoded as they are read: packed weights, or whatever a functor of yours makes of
// memory.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/packed_format.hpp>
#include <mpi_router/cuda/detail/decoded/codes.cuh>
#include <mpi_router/cuda/types.hpp>

#include <array>
#include <span>
#include <utility>

MPIROUTER_CUDA_BEGIN

/// Gate matrices [N, F, D] that kernels see row by row. `Rows` is a plain value that a kernel is given:
/// `rows.of(e)`, on the device, is expert e, and of that `load(f, d, out)` decodes eight elements of row f
/// from column d on, a multiple of eight below D, into float (&out)[8], zeros beyond D. Any number of threads
/// may do so at once. What a functor of yours reads is not compared with what a call writes, unless it has
/// `ranges(N)`, of core::address_range: the two must not overlap.
///
///   struct halved {                       // another expert's weights, halved
///     const float* data; int f, d;
///     struct expert {
///       const float* data; int d;
///       __device__ void load(int row, int column, float (&out)[8]) const {
///         for (int i = 0; i < 8; ++i) out[i] = column + i < d ? data[row * d + column + i] / 2 : 0;
///       }
///     };
///     __device__ expert of(int e) const { return {data + e * f * d, d}; }
///   };
///   cuda::decoded_experts experts(halved{data, 768, 2048}, {64, 768, 2048});
///
/// Throws usage_error on negative extents.
template <class Rows>
class decoded_experts {
 public:
  decoded_experts(Rows rows, const expert_shape& shape) : rows_(std::move(rows)), shape_(shape) {
    const auto [n, f, d] = shape;
    core::expect(n >= 0 && f >= 0 && d >= 0, "cuda::decoded_experts: a shape of [", n, ", ", f, ", ", d, "]");
  }

  [[nodiscard]] const Rows& rows() const noexcept { return rows_; }
  [[nodiscard]] const expert_shape& shape() const noexcept { return shape_; }
  [[nodiscard]] index_t num_experts() const noexcept { return shape_.num_experts; }
  [[nodiscard]] index_t ffn_dim() const noexcept { return shape_.ffn_dim; }
  [[nodiscard]] index_t hidden_dim() const noexcept { return shape_.hidden_dim; }
  /// The memory that the weights lie in, where `Rows` says (ranges(N)).
  [[nodiscard]] auto ranges() const
    requires requires(const Rows& r) { r.ranges(index_t{}); }
  {
    return rows_.ranges(shape_.num_experts);
  }
  /// Whether there is nothing to read: every image is zero.
  [[nodiscard]] bool empty() const noexcept {
    return shape_.num_experts == 0 || shape_.ffn_dim == 0 || shape_.hidden_dim == 0;
  }

 private:
  Rows rows_;
  expert_shape shape_;
};

/// Where one packed gate matrix lies: its codes, or blocks, and its scales if these lie apart. Device memory.
struct packed_address {
  const void* codes = nullptr;
  const void* scales = nullptr;
};

/// Packed gate matrices of one shape and format as Rows. Made by packed_experts().
template <class View>
class packed_batch {
 public:
  packed_batch(const View& like, const packed_address* table, index_t expert_bytes, index_t scale_bytes)
      : like_(like), table_(table), expert_bytes_(expert_bytes), scale_bytes_(scale_bytes) {}

  [[nodiscard]] __device__ __forceinline__ detail::packed_rows<View> of(int e) const {
    const packed_address at = table_ != nullptr ? table_[e] : address(e);
    return {like_, static_cast<detail::byte_pointer>(at.codes), static_cast<detail::byte_pointer>(at.scales)};
  }
  /// The bytes of `count` experts, codes and scales; none where they are in a table, which the host does not
  /// read.
  [[nodiscard]] std::array<core::address_range, 2> ranges(index_t count) const {
    if (table_ != nullptr || count == 0) return {};
    const auto from = [count](const void* data, index_t expert, index_t bytes) {
      return data == nullptr ? core::address_range{}
                             : mpi_router::detail::addresses_of(static_cast<const unsigned char*>(data),
                                                                (count - 1) * expert + bytes);
    };
    const packed_address first = address(0);
    return {from(first.codes, expert_bytes_, code_bytes()), from(first.scales, scale_bytes_, scale_bytes())};
  }

 private:
  static constexpr bool has_scales = requires(const View& a) { a.scales; };

  [[nodiscard]] MPIROUTER_HOST_DEVICE packed_address address(int e) const {
    if constexpr (has_scales) {
      return {static_cast<const unsigned char*>(like_.codes) + e * expert_bytes_,
              static_cast<const unsigned char*>(like_.scales) + e * scale_bytes_};
    } else {
      return {static_cast<const unsigned char*>(like_.blocks) + e * expert_bytes_, nullptr};
    }
  }
  /// From the first byte of an expert to its last.
  [[nodiscard]] index_t code_bytes() const { return like_.rows * like_.row_bytes; }
  [[nodiscard]] index_t scale_bytes() const {
    if constexpr (requires { like_.block_rows; }) {
      return packed::parts_of(like_.rows, like_.block_rows) * like_.scale_row_bytes;
    } else if constexpr (has_scales) {
      return like_.rows * like_.scale_row_bytes;
    } else {
      return 0;
    }
  }

  View like_;
  const packed_address* table_;
  index_t expert_bytes_;
  index_t scale_bytes_;
};

MPIROUTER_CUDA_END

MPIROUTER_CUDA_DETAIL_BEGIN

/// What packed_rows asks of a view beyond its format.
template <class View>
void expect_decodable(const View& a) {
  core::expect(a.row_bytes <= 0x7fffffff, "cuda::packed_experts: rows ", a.row_bytes, " bytes apart");
  if constexpr (requires { a.block_cols; }) {
    core::expect(a.scale_row_bytes <= 0x7fffffff, "cuda::packed_experts: scales ", a.scale_row_bytes,
                 " bytes apart");
    core::expect(a.block_cols % decoded_columns == 0 || a.block_cols >= a.cols,
                 "cuda::packed_experts: blocks of ", a.block_cols,
                 " columns, where a multiple of 8, or all of D = ", a.cols, ", are decoded");
  }
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// N packed gate matrices of core/packed_views.hpp (fp8_view, mxfp4_view, mxfp4_blocks_view, q8_0_view,
/// q4_k_view) in device memory, as they are in a checkpoint: `first` is the first of them, the next begin
/// `expert_bytes` on, their scales, where these lie apart, `scale_expert_bytes` on. At any addresses; fastest
/// where codes are aligned to 8 bytes (FP8, Q4_K), 4 (MXFP4), 2 (Q8_0). Throws usage_error where such a
/// matrix cannot be, and on FP8 blocks of columns that are neither a multiple of eight nor all.
template <class View>
[[nodiscard]] decoded_experts<packed_batch<View>> packed_experts(const View& first, index_t num_experts,
                                                                 index_t expert_bytes,
                                                                 index_t scale_expert_bytes = 0) {
  mpi_router::detail::kernels::packed_format<View>::check(first, "cuda::packed_experts");
  detail::expect_decodable(first);
  return {packed_batch<View>(first, nullptr, expert_bytes, scale_expert_bytes),
          {num_experts, first.rows, first.cols}};
}
/// The same matrices, each where a table in device memory says; `like` gives extents and strides alone.
template <class View>
[[nodiscard]] decoded_experts<packed_batch<View>> packed_experts(View like, const packed_address* table,
                                                                 index_t num_experts) {
  core::expect(table != nullptr || num_experts == 0, "cuda::packed_experts: a null table of ", num_experts,
               " experts");
  if constexpr (requires { like.blocks; }) {
    like.blocks = table;
  } else {
    like.codes = like.scales = table;
  }
  mpi_router::detail::kernels::packed_format<View>::check(like, "cuda::packed_experts");
  detail::expect_decodable(like);
  return {packed_batch<View>(like, table, 0, 0), {num_experts, like.rows, like.cols}};
}

MPIROUTER_CUDA_END
