// Experts on a GPU that are decoded as they are read: packed weights, or whatever a functor of yours makes of
// memory.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/packed_format.hpp>
#include <mpi_router/cuda/detail/decoded/codes.cuh>
#include <mpi_router/cuda/detail/decoded/ggml_codes.cuh>
#include <mpi_router/cuda/types.hpp>

#include <array>
#include <utility>

MPIROUTER_CUDA_BEGIN

/// Gate matrices [N, F, D] that kernels see row by row. `Rows` is a plain value that a kernel is given:
/// `rows.of(e)`, on the device, is expert e, and of that `load(f, d, out)` decodes eight elements of row f
/// from column d on, a multiple of eight below D, into float (&out)[8], zeros beyond D. Any number of threads
/// may do so at once. What a functor of yours reads is not compared with what a call writes, unless it has
/// `ranges(N)`, of core::address_range: the two must not overlap.
///
///   struct halved {                       // another expert's weights, halved
///     const float* data; index_t f, d;
///     struct expert {
///       const float* data; index_t d;
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

MPIROUTER_CUDA_END

MPIROUTER_CUDA_DETAIL_BEGIN

/// Bytes of a row, and from the first byte of a matrix to its last; of the scales likewise where these lie
/// apart.
template <class View>
struct packed_bytes {
  index_t row;
  index_t scale_row = 0;
  index_t codes;
  index_t scales = 0;

  explicit packed_bytes(const View& a) {
    if constexpr (requires { a.block_cols; }) {
      row = a.cols;
      scale_row = packed::parts_of(a.cols, a.block_cols) * mpi_router::detail::kernels::size_of(a.scale_type);
      scales = extent(packed::parts_of(a.rows, a.block_rows), scale_row, a.scale_row_bytes);
    } else if constexpr (requires { a.scales; }) {
      row = a.cols / 2;
      scale_row = a.cols / 32;
      scales = extent(a.rows, scale_row, a.scale_row_bytes);
    } else {
      using format = mpi_router::detail::kernels::packed_format<View>;
      row = a.cols / format::block_cols * format::block_bytes;
    }
    codes = extent(a.rows, row, a.row_bytes);
  }

 private:
  [[nodiscard]] static index_t extent(index_t rows, index_t bytes, index_t stride) {
    return rows == 0 || bytes == 0 ? 0 : (rows - 1) * stride + bytes;
  }
};

/// Throws usage_error where such matrices cannot be, or not be decoded here. stride, scale_stride: bytes from
/// expert to expert; of a table the widest.
template <class View>
void expect_packed(View a, index_t num_experts, index_t stride, index_t scale_stride) {
  constexpr const char* name = "cuda::packed_experts";
  if (num_experts == 0) a.rows = 0;  // null is allowed
  mpi_router::detail::kernels::packed_format<View>::check(a, name);
  const packed_bytes<View> bytes(a);
  const auto expect_apart = [&](const char* what, index_t apart, index_t row) {
    core::expect(num_experts <= 1 || (apart >= row && apart <= most_bytes / num_experts), name, ": ", what,
                 " of ", num_experts, " experts, ", apart, " bytes apart, whose rows take ", row);
  };
  expect_apart("codes", stride, bytes.row);
  expect_apart("scales", scale_stride, bytes.scale_row);
  core::expect(a.row_bytes <= most_row_bytes, name, ": rows ", a.row_bytes, " bytes apart");
  if constexpr (requires { a.scale_row_bytes; }) {
    core::expect(a.scale_row_bytes <= most_row_bytes, name, ": scales ", a.scale_row_bytes, " bytes apart");
  }
  if constexpr (requires { a.block_cols; }) {
    core::expect(a.block_cols % decoded_columns == 0 || a.block_cols >= a.cols, name, ": blocks of ",
                 a.block_cols, " columns, where a multiple of 8, or all of D = ", a.cols, ", are decoded");
  }
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// Where one packed gate matrix lies: its codes, or blocks, and its scales if these lie apart. Device memory.
struct packed_address {
  const void* codes = nullptr;
  const void* scales = nullptr;
};

/// Packed gate matrices of one shape and format as Rows. Made by packed_experts(). Strides in bytes, from
/// expert to expert; a table, in device memory, says in their place where each one is.
template <class View>
class packed_batch {
 public:
  packed_batch(const View& like, const packed_address* table, index_t expert_bytes,
               index_t scale_expert_bytes)
      : like_(like), table_(table), expert_bytes_(expert_bytes), scale_expert_bytes_(scale_expert_bytes) {}

  [[nodiscard]] __device__ __forceinline__ detail::packed_rows<View> of(int e) const {
    const packed_address at = table_ != nullptr ? table_[e] : address(e);
    return {like_, static_cast<detail::byte_pointer>(at.codes), static_cast<detail::byte_pointer>(at.scales)};
  }
  /// Rows that share scales: a part of an expert begins at a multiple of them.
  [[nodiscard]] index_t block_rows() const {
    if constexpr (requires { like_.block_rows; }) {
      return like_.block_rows;
    } else {
      return 1;
    }
  }
  /// Columns that share scales, likewise.
  [[nodiscard]] index_t block_cols() const {
    if constexpr (requires { like_.block_cols; }) {
      return like_.block_cols;
    } else {
      return mpi_router::detail::kernels::packed_format<View>::block_cols;
    }
  }
  /// The bytes of `count` experts, codes and scales; none where they are in a table, which the host does not
  /// read.
  [[nodiscard]] std::array<core::address_range, 2> ranges(index_t count) const {
    if (table_ != nullptr || count == 0) return {};
    const detail::packed_bytes<View> bytes(like_);
    const auto from = [count](const void* data, index_t expert, index_t size) {
      return data == nullptr || size == 0
                 ? core::address_range{}
                 : mpi_router::detail::addresses_of(static_cast<const unsigned char*>(data),
                                                    (count - 1) * expert + size);
    };
    const packed_address first = address(0);
    return {from(first.codes, expert_bytes_, bytes.codes),
            from(first.scales, scale_expert_bytes_, bytes.scales)};
  }

 private:
  [[nodiscard]] MPIROUTER_HOST_DEVICE packed_address address(int e) const {
    if constexpr (requires { like_.scales; }) {
      return {static_cast<const unsigned char*>(like_.codes) + e * expert_bytes_,
              static_cast<const unsigned char*>(like_.scales) + e * scale_expert_bytes_};
    } else {
      return {static_cast<const unsigned char*>(like_.blocks) + e * expert_bytes_, nullptr};
    }
  }

  View like_;
  const packed_address* table_;
  index_t expert_bytes_;
  index_t scale_expert_bytes_;
};

/// N packed gate matrices of core/packed_views.hpp (fp8_view, mxfp4_view, mxfp4_blocks_view, q8_0_view,
/// q4_k_view) in device memory, as they are in a checkpoint: `first` is the first of them, the next begin
/// `expert_bytes` on, their scales, where these lie apart, `scale_expert_bytes` on. At any addresses; fastest
/// where codes are aligned to 8 bytes (FP8, with scales in f32; Q4_K), 4 (MXFP4), 2 (Q8_0). O(1). Throws
/// usage_error where such matrices cannot be or would lie over each other, and on FP8 blocks of columns that
/// are neither a multiple of eight nor all.
template <class View>
[[nodiscard]] decoded_experts<packed_batch<View>> packed_experts(const View& first, index_t num_experts,
                                                                 index_t expert_bytes,
                                                                 index_t scale_expert_bytes = 0) {
  detail::expect_packed(first, num_experts, expert_bytes, scale_expert_bytes);
  return {packed_batch<View>(first, nullptr, expert_bytes, scale_expert_bytes),
          {num_experts, first.rows, first.cols}};
}
/// The same matrices, each where a table [N] in device memory says, which the host does not look at: a null
/// address there is not seen. `like` gives extents and strides alone.
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
  const detail::packed_bytes<View> bytes(like);
  detail::expect_packed(like, num_experts, bytes.row, bytes.scale_row);
  return {packed_batch<View>(like, table, 0, 0), {num_experts, like.rows, like.cols}};
}

MPIROUTER_CUDA_END
