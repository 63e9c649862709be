// What is known of a packed format in the registers of an instruction set, so that sweep.hpp can read its
// rows.
#pragma once

#include <mpi_router/backend/packed/order.hpp>
#include <mpi_router/backend/packed/widen.hpp>
#include <mpi_router/core/packed_format.hpp>

MPIROUTER_BEGIN

namespace detail::kernels {

/// The codes of a view, decoded in the registers of an xsimd architecture: beside its packed_format
///
///   batch, order     of floats; how the columns of a chunk lie in registers
///   chunk            columns that are decoded at a time
///   scales_sums      whether a block has a `scale` to multiply sums of its weights with; or they come scaled
///   divisor          what all weights are divided by
///   is_kept          whether decoded weights are worth a store and a load, in kept_bytes each: as floats, or
///                    in 16 bits as keep(o, k, to) and load_kept(from) have it
///   watch            sees the codes of chunks and finds NaN that `load` does not give: see(o, k, size),
///                    is_found()
///   block            columns of a row that share a scale
///   open(r, b, d)    block b of a row, seen from column d on, which is in it
///   open_beside(o, r, d)  the same as open of row r, whose scales are those of the open block o
///   load(o, k)       chunk k of an open block, decoded; codes_of(o, k) is where it begins
///
/// and, where there are sums in double,
///
///   wide, load_doubles(c)  doubles_at_once registers of the codes at c, in the order of memory
template <class View, class Arch>
struct packed_codes;

/// The watch of a format whose NaN come out as such.
struct no_watch {
  template <class Block, class Size>
  MPIROUTER_ALWAYS_INLINE void see(const Block&, index_t, Size) noexcept {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr bool is_found() noexcept { return false; }
};

}  // namespace detail::kernels

MPIROUTER_END
