// Packed gate matrices as they lie in memory: codes in blocks that share a scale. Pointers and extents;
// nothing is owned, and nothing need be aligned.
#pragma once

#include <mpi_router/core/config.hpp>

MPIROUTER_BEGIN_TYPES

/// What the scales of an fp8_view are stored as; E8M0 is a power of two, 2^(byte − 127), and NaN for 255.
enum class fp8_scale : unsigned char { f32, bf16, f16, e8m0 };

/// FP8 E4M3 without infinities, NaN where all seven bits of the magnitude are set:
/// W[f, d] = code[f, d] · scale[f / block_rows, d / block_cols]. Blocks at the end may be partial. One scale
/// for each row is a block of [1, cols], one for all [rows, cols].
struct fp8_view {
  const void* codes = nullptr;  ///< [rows, cols], a byte each
  index_t rows = 0;             ///< F
  index_t cols = 0;             ///< D
  index_t row_bytes = 0;        ///< from one row of codes to the next
  const void* scales = nullptr;
  fp8_scale scale_type = fp8_scale::f32;
  index_t scale_row_bytes = 0;  ///< from one row of scales to the next
  index_t block_rows = 128;
  index_t block_cols = 128;
};

/// MXFP4 as safetensors files hold it: W[f, d] = E2M1(code[f, d]) · 2^(scale[f, d / 32] − 127), an even
/// column in the low half of its byte; a scale of 255 is NaN.
struct mxfp4_view {
  const void* codes = nullptr;   ///< [rows, cols / 2] bytes
  index_t rows = 0;              ///< F
  index_t cols = 0;              ///< D, a multiple of 32
  index_t row_bytes = 0;         ///< from one row of codes to the next
  const void* scales = nullptr;  ///< [rows, cols / 32] bytes
  index_t scale_row_bytes = 0;   ///< from one row of scales to the next
};

/// Q8_0 of ggml: blocks of 32 columns in 34 bytes, an f16 scale d and 32 signed bytes q. W = d · q.
struct q8_0_view {
  const void* blocks = nullptr;
  index_t rows = 0;       ///< F
  index_t cols = 0;       ///< D, a multiple of 32
  index_t row_bytes = 0;  ///< from one row to the next
};

/// Q4_K of ggml: blocks of 256 columns in 144 bytes: f16 scales d and dmin, for each 32 columns a scale sc
/// and a minimum mn of six bits, and codes q of four. W = d · sc · q − dmin · mn.
struct q4_k_view {
  const void* blocks = nullptr;
  index_t rows = 0;       ///< F
  index_t cols = 0;       ///< D, a multiple of 256
  index_t row_bytes = 0;  ///< from one row to the next
};

namespace core {

/// List<…> of every view whose codes there are kernels for.
template <template <class...> class List>
using of_packed_views = List<fp8_view, mxfp4_view, q8_0_view, q4_k_view>;

}  // namespace core

MPIROUTER_END_TYPES
