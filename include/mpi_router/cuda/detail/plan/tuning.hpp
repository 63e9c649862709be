// The numbers that plans and kernels are made of, each with its source: what the hardware sets, what the code
// of the kernels sets, and what was chosen by timing (on H100 and H200, by bench/cuda).
#pragma once

#include <mpi_router/core/config.hpp>

#include <cstddef>

MPIROUTER_BEGIN_TYPES
namespace cuda::detail {

// --- What a call may ask for

constexpr index_t most_hidden = 32768;  // D: ints count the bytes of rows in rings and clusters
/// N and F: an int holds twice as much, such as F and a tile beyond it, and a grid has as many blocks.
constexpr index_t most_extent = 0x3fffffff;
/// Tiles of all experts together. Ints count them in the kernels, a few steps past the last: by at most 16
/// groups of a block, or three times the 8 members of a team.
constexpr index_t most_tiles = 0x7fffffff - 255;
constexpr index_t most_slots = 0x7fffffff;  // of partial sums: an int numbers them
constexpr int most_blocks = 65535;  // of a partition: partition::first_tile multiplies two of their numbers

// --- What the hardware sets

constexpr int warp_threads = 32;
constexpr int vector_bytes = 16;  // the widest load of a thread, and the unit of asynchronous copies
constexpr int most_cluster = 8;   // blocks: the largest cluster that every sm_90 takes
constexpr std::size_t plain_shared_memory = std::size_t{48} << 10;  // bytes: what needs no asking for
constexpr std::size_t most_argument_bytes = 4096;                   // of a kernel
constexpr std::size_t workspace_alignment = 256;  // of cudaMalloc, and more than any load needs

// --- The kernels over stored rows

constexpr int most_threads = 512;  // in a block: the hardware has 128 registers for each
constexpr int most_warps = most_threads / warp_threads;
constexpr int sums_at_once = 16;  // the most values that are summed over a group at once
constexpr int most_stages = 8;    // of a ring that bulk copies fill: for so many there are mbarriers
/// Of a ring that the threads fill: ring_view::pop waits for 1, 2 or 3 copies, numbers that code must name.
constexpr int most_stages_of_threads = 4;
/// The backward reads a tile's stage until it is done with the tile: with a single stage it would wait for a
/// copy that only it can start.
constexpr int least_stages = 2;
/// In a row whose vectors threads own one each; in longer ones two or more. Timed.
constexpr int most_vectors_alone = 256;
/// Of a tile: stored rows, and 16-byte vectors in a thread's registers (rows × vectors of a row). Kernels are
/// compiled for tiles of half as many rows where a thread has `halves` vectors of a row, or can have no more.
struct tile_limits {
  int rows = 0;
  int vectors = 0;
  int halves = 0;
};
/// What a tile may take, and columns of a row that a thread can own. The kernels are compiled for these: 128
/// registers must hold them.
constexpr tile_limits forward_tile{8, 8};
constexpr int forward_most_columns = 32;
/// Whether a forward keeps a tile, of `rows` × `vectors` to a thread, in its registers from the dots to the
/// image, so that its stage can be filled anew meanwhile. Beside a thread's 32 columns of the row and the
/// image whole tiles would spill, and so would any of 16 bits where threads copy: there a tile is read from
/// its stage a second time.
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr bool forward_keeps_tile(int vectors, int rows,
                                                                      int element_bytes, bool threads_copy) {
  const bool is_large = vectors * vector_bytes / element_bytes >= forward_most_columns &&
                        rows * vectors >= forward_tile.vectors;
  return !is_large && (!threads_copy || element_bytes != 2);
}
/// Whether threads that copy start the copies of a row as soon as they have lifted what is in its place,
/// where a tile is read twice; else of all rows behind the last. A single vector of a row is too little to do
/// between them, and a gradient that is written takes its turn there. Timed.
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr bool copies_by_row(int vectors, bool writes) {
  return vectors > 1 && !writes;
}
constexpr tile_limits vjp_tile_alone{8, 8};
/// Where the gradient that is added to travels through the ring, too. Timed: four rows take 0.97 to 1.09 of
/// the time of two where a thread has one vector of each, and one row 1.00 to 1.18 where it has two; but 0.94
/// where two rows cost a group.
constexpr tile_limits vjp_tile_with_old{2, 4, 2};
constexpr int vjp_most_columns = 16;
/// Bytes of shared memory that no ring takes. A margin: no kernel has static shared memory beside its rings.
constexpr int spare_shared_memory = 2048;
/// What the leader of a cluster is sent takes at most one part in 4 of its shared memory: the rings need the
/// rest.
constexpr int inbox_share = 4;

// --- The kernel over stored columns

constexpr int panel_threads = 512;
constexpr int panel_most_lanes = 8;  // that share a row's part of a panel: 8 · 16 bytes are a line of L2

/// How much of a panel a thread has at once: up to `panel_passes` rows, of which it has r and u in registers.
/// The first `panel_doubled` have two places in the ring, so that the next panel's can arrive before those of
/// this one are done with; the others have one. For the shared memory of sm_90, of sm_80, and of sm_86, sm_89
/// and sm_120; `middle` is for a backward on sm_90.
enum class panel_depth { deep, even, low, middle };
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int panel_passes(panel_depth depth) {
  return depth == panel_depth::low ? 8 : 16;
}
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int panel_doubled(panel_depth depth) {
  return depth == panel_depth::deep ? 8 : depth == panel_depth::middle ? 4 : 2;
}
/// Lanes with less than 32 bytes of a row, a sector of memory, read it twice: two reads along the rows take
/// half the time. (Plans for sm_80 with one lane are as they were.)
[[nodiscard]] constexpr int panel_least_lanes(panel_depth depth) { return depth == panel_depth::low ? 2 : 1; }
/// What a backward, and weights two apart, are compiled for besides panel_most_lanes: enough for D ≤ 16384.
constexpr int panel_less_lanes = 4;
constexpr int panel_factored_blocks = 4;
/// Of a backward on sm_90, which keeps its rows in shared memory as well: beside rings of 8 doubled passes
/// and of an old gradient the leader of a cluster has no room to finish, which only a long backward has time
/// for.
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr panel_depth panel_vjp_depth(bool factored, bool with_old) {
  return factored ? panel_depth::middle : with_old ? panel_depth::even : panel_depth::deep;
}
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int panel_slots(panel_depth depth) {
  return panel_passes(depth) + panel_doubled(depth);
}

/// Of these in a cluster the parts of a panel's projections are read by every thread; of more they are added
/// up first.
constexpr int panel_few_blocks = 2;
/// Places of 16 bytes for a thread in the ring of what a gradient is added to.
constexpr int panel_old_slots = 6;
/// Copies of the first panel that are started ahead of what comes before its first dots, be it loads or code:
/// these would queue behind more of them.
constexpr int panel_early_passes = 6;
/// Elements of a row whose loads a thread has under way while the first copies start: up to D = 2048 all.
constexpr int panel_early_loads = 4;
/// Where tensor cores multiply, and more rows are a block's: up to D = 8192.
constexpr int panel_more_early_loads = 16;
/// Places for what 4 warps say of the largest projections of a panel, of all and of those with z̄.
constexpr int panel_largest = 8;
/// Bytes around a copy that are fetched into L2: a line, or two where a neighbour reads what lies beside.
constexpr int panel_line = 128;
constexpr int panel_team_line = 256;

// --- The generic kernels, and those after a read of the weights

constexpr int generic_threads = 256;
constexpr int generic_warps = generic_threads / warp_threads;
constexpr int dots_at_once = 4;     // rows that a warp multiplies by a vector at once
constexpr int sums_lanes = 16;      // threads side by side over a row where a block sums up rows: 256 bytes
constexpr int outer_rows = 64;      // of a gradient that a block writes, at least
constexpr int most_grid_y = 65535;  // a grid's second extent has 16 bits
constexpr int most_generic_rows = 1024;    // blocks of one expert that write a gradient; each takes some rows
constexpr int finish_most_threads = 512;   // the hardware has 128 registers for each
constexpr int finish_least_threads = 128;  // where there are more experts than multiprocessors
/// In place of these where ranks must agree in their bits: some may have fewer multiprocessors.
constexpr int finish_many_experts = 128;
constexpr int finish_kept = 4;             // fours of an image that stay in a thread's registers: all that
constexpr int finish_kept_columns = 8192;  // columns make, 4 · 4 · 512. Longer images are read twice

// --- The kernel over rows that are decoded as they are read

constexpr int decoded_columns = 8;  // that a thread decodes at once: bytes of codes, or half as many
constexpr index_t most_row_bytes = 0x7fffffff;    // from row to row: kernels multiply 32 bits
constexpr index_t most_bytes = index_t{1} << 60;  // from the first expert to the last
/// Pieces of so many columns that a thread has of a row, in a block of up to most_threads: the kernel is
/// compiled for these. Two from where a block would have more than four warps.
[[nodiscard]] constexpr int decoded_pieces(index_t hidden) {
  const index_t columns_of_a_warp = index_t{warp_threads} * decoded_columns;
  return hidden <= columns_of_a_warp * 4 ? 1 : hidden <= columns_of_a_warp * most_warps * 2 ? 2 : 8;
}
/// Rows of a tile, whose dots are summed over the block at once: with one or two pieces registers hold them
/// beside the bytes of the next tile and a thread's part of the vectors and of the image; with eight they
/// spill.
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int decoded_rows(int pieces) {
  return pieces < 4 ? 4 / pieces : 1;
}
/// Threads that a multiprocessor has at once, for their loads to hide the memory's latency.
constexpr int decoded_threads = 512;

// --- The gates

constexpr int most_gate_experts = 8192;   // their keys and loads take 64 KiB of shared memory
constexpr int most_ranked = 8;            // experts that are chosen by rank: a sorting network's inputs
constexpr int most_ranked_experts = 256;  // 8 lanes with 32 each, a bit of a word for each
constexpr int gate_ranks_threads = 128;
/// Blocks of the ranking kernel on a multiprocessor at once. The next kernel's take their places while this
/// one's still run: with fewer, that of a gate after a gate comes too late.
constexpr int gate_ranks_blocks = 8;
constexpr int most_experts_in_registers = 512;  // of the warp's kernel: 16 in each lane
constexpr int gate_warps = 8;                   // of a block that needs little shared memory
/// Of the other kernel, where a lane has `kept` experts in registers.
[[nodiscard]] constexpr int gate_kernel_blocks(int kept) { return kept > 0 && kept <= 4 ? 5 : 2; }
/// Where blocks count loads: about as many as run at once.
constexpr int gate_blocks_per_multiprocessor = 5;
constexpr int balance_threads = 256;
constexpr int most_grid = 0x7fffffff;  // a grid's first extent

// --- Messages between GPUs

/// Floats of the directions in a message that goes while weights are read, about: 4 MiB. Of smaller ones the
/// latency takes as long.
constexpr index_t message_floats = 1 << 20;
constexpr index_t least_message_floats = 1 << 17;
/// Blocks that add up what ranks sent: so many are at work at once on any device, and more take turns.
constexpr index_t most_sum_blocks = 4096;

// --- Dealing tiles to blocks

/// In per cent, how many blocks of those that the device holds must be at work where each is given rows of a
/// single expert: that saves more than the others would do. Timed.
constexpr int enough_blocks = 93;

}  // namespace cuda::detail
MPIROUTER_END_TYPES
