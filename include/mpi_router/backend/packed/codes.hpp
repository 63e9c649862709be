// What a packed format says of itself, so that sweep.hpp can read its rows.
#pragma once

#include <mpi_router/backend/packed/order.hpp>
#include <mpi_router/backend/packed/widen.hpp>
#include <mpi_router/core/error.hpp>
#include <mpi_router/core/packed_views.hpp>

#include <limits>
#include <string_view>

MPIROUTER_BEGIN

namespace detail::kernels {

/// The codes of a view, decoded in the registers of an xsimd architecture:
///
///   batch, order     of floats; how the columns of a chunk lie in registers
///   chunk            columns that are decoded at a time
///   block_cols       columns that share a scale, where the format fixes them: whole chunks
///   scales_sums      whether a block has a `scale` to multiply sums of its weights with; or they come scaled
///   divisor          what all weights are divided by
///   is_kept          whether decoded weights are worth a store and a load, in kept_bytes each: as floats, or
///                    in 16 bits as keep(o, k, to) and load_kept(from) have it
///   watch            sees the codes of chunks and finds NaN that `load` does not give: see(o, k, size),
///                    is_found()
///   row, block       one row, row_of(a, f); columns of it that share a scale
///   check(a)         throws usage_error where the view cannot be
///   at(a, f, d)      one element, exact
///   open(r, b, d)    block b of a row, seen from column d on, which is in it
///   open_beside(o, r, d)  the same as open of row r, whose scales are those of the open block o
///   load(o, k)       chunk k of an open block, decoded; codes_of(o, k) is where it begins
template <class View, class Arch>
struct packed_codes;

/// The watch of a format whose NaN come out as such.
struct no_watch {
  template <class Block, class Size>
  MPIROUTER_ALWAYS_INLINE void see(const Block&, index_t, Size) noexcept {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr bool is_found() noexcept { return false; }
};

[[nodiscard]] MPIROUTER_ALWAYS_INLINE const std::byte* bytes_at(const void* base, index_t offset) noexcept {
  return static_cast<const std::byte*>(base) + offset;
}

/// Throws usage_error where there cannot be `rows` × `row_bytes` bytes at `data`, `stride` bytes from row to
/// row.
inline void expect_rows(const char* what, const void* data, index_t rows, index_t row_bytes, index_t stride) {
  core::expect(data != nullptr || rows == 0 || row_bytes == 0, what, ": null data for ", rows, " rows of ",
               row_bytes, " bytes");
  core::expect(rows <= 1 || stride >= row_bytes, what, ": rows of ", row_bytes, " bytes, ", stride,
               " bytes apart");
  core::expect(rows == 0 || stride == 0 || stride <= std::numeric_limits<index_t>::max() / rows, what, ": ",
               rows, " rows, ", stride, " bytes apart, cannot be");
}

/// Throws usage_error where [rows, cols] are not whole blocks, or their bytes cannot be at `data`. Returns
/// the bytes of a row.
inline void expect_blocks(const char* what, const void* data, index_t rows, index_t cols, index_t stride,
                          index_t block_cols, index_t block_bytes) {
  core::expect(rows >= 0 && cols >= 0 && cols % block_cols == 0, what, ": [F = ", rows, ", D = ", cols,
               "] in blocks of ", block_cols, " columns");
  expect_rows(what, data, rows, cols / block_cols * block_bytes, stride);
}

}  // namespace detail::kernels

MPIROUTER_END
