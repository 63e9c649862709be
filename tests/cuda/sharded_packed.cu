// Rows of the flat [N·F, D] and slices of D of every packed format, over ranks that are threads on one GPU;
// parts that cannot be.
#include "packed_ranks.hpp"
#include "sharded_types.hpp"

namespace sharded_checks {
namespace {

/// Addresses that nothing is read from.
unsigned char nothing[1];

fp8_view fp8_rows(index_t rows, index_t cols) {
  fp8_view a;
  a.codes = a.scales = nothing;
  a.rows = rows, a.cols = a.row_bytes = cols;
  a.scale_row_bytes = 4 * packed::parts_of(cols, a.block_cols);
  return a;
}

void refused_runs() {
  const expert_shape whole{3, 200, 256};
  const auto run = [&](const auto& rows, index_t first) {
    return [&rows, first, &whole] { static_cast<void>(cuda::packed_row_run(rows, first, whole)); };
  };
  const fp8_view hundred = fp8_rows(100, 256), none = fp8_rows(0, 256), narrow = fp8_rows(100, 128);
  refused("packed_row_run: 100 neurons from 64 on, where each 128 share scales", run(hundred, 64));
  refused("packed_row_run: 99 neurons from 101 on, where each 128 share scales", run(hundred, 301));
  refused("100 rows from 501 on, of 600", run(hundred, 501));
  refused("rows of 128 elements, of a whole with D = 256", run(narrow, 0));
  run(hundred, 128)();  // from a block of scales into the next expert
  run(hundred, 328)();
  run(hundred, 150)();  // the last block of an expert, and on
  run(none, 600)();
  fp8_view blockless = hundred, odd = hundred;
  blockless.block_rows = 0;
  odd.block_cols = 100;
  refused("in blocks of [0, 128]", run(blockless, 0));
  refused("blocks of 100 columns", run(odd, 0));
  q8_0_view unaligned{nothing, 4, 250, 272};
  refused("D = 250] in blocks of 32",
          [&] { static_cast<void>(cuda::packed_row_run(unaligned, 0, {3, 200, 250})); });
}

void refused_slices() {
  const auto slice = [](const auto& view, index_t first, index_t hidden, index_t bytes, index_t scale_bytes) {
    return [=] {
      static_cast<void>(
          cuda::decoded_column_slice(cuda::packed_experts(view, 2, bytes, scale_bytes), first, hidden));
    };
  };
  const fp8_view two_blocks = fp8_rows(4, 200), part = fp8_rows(4, 64);
  refused("decoded_column_slice: 200 columns from 64 on, where each 128 share scales",
          slice(two_blocks, 64, 512, 1024, 8));
  slice(two_blocks, 128, 328, 1024, 8)();
  slice(part, 64, 512, 256, 4)();  // within a block
  refused("64 columns from 65 on, where each 128 share scales", slice(part, 65, 512, 256, 4));
  refused("64 columns from 512 on, of 512", slice(part, 512, 512, 256, 4));
  const q4_k_view of_ggml{nothing, 4, 256, 144};
  refused("256 columns from 32 on, where each 256 share scales", slice(of_ggml, 32, 512, 576, 0));
  const mxfp4_view fours{nothing, 4, 64, 32, nothing, 2};
  refused("64 columns from 16 on, where each 32 share scales", slice(fours, 16, 512, 128, 8));
  slice(fours, 32, 512, 128, 8)();
}

}  // namespace

void packed_parts_are_refused() {
  refused_runs();
  refused_slices();
}

void packed_on_one_gpu() {
  packed_parts_are_refused();
  rows_and_columns<packed_layer<fp8_view>>("fp8");
  rows_and_columns<packed_layer<mxfp4_blocks_view>>("mxfp4 blocks");
  rows_and_columns<packed_layer<q8_0_view>>("q8_0");
  rows_and_columns<packed_layer<q4_k_view>>("q4_k");
}

}  // namespace sharded_checks
