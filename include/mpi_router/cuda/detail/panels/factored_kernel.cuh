// The factored backward over stored columns of bf16 ([N, D, F]), by tensor cores: y, w, z̄ and r̄ as in
// vjp_kernel.cuh. Rows and projections are floats in three parts of bf16, which have all bits of a float that
// is no less than 2^-110, and 2^-133 otherwise: what is lost is as small beside the largest of a row, which
// is scaled to 1.
#pragma once

#include <mpi_router/cuda/detail/device/dual_row.cuh>
#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/panels/loaded_row.cuh>
#include <mpi_router/cuda/detail/panels/sweep.cuh>
#include <mpi_router/cuda/detail/panels/tiles.cuh>
#include <mpi_router/cuda/detail/plan/panel_tiles.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// The factors of one expert: the parts of r and z̄, and r̄, in the registers of the block. Args:
/// panel_vjp_args.
template <class Sweep, class Args, int lanes>
class panel_factors {
 public:
  __device__ __forceinline__ panel_factors(Sweep& sweep, const Args& a, int expert)
      : sweep_(sweep),
        args_(a),
        expert_(expert),
        dead_(a.dual.saved.statuses != nullptr && a.dual.saved.statuses[expert] != status::ok) {
    load_rows();
    split_rows();
    clear(u_);
    if (sweep.tile == expert * sweep.a.part.tiles_per_expert && sweep.at.member(sweep.a.part.team) == 0 &&
        a.factors.dual_row != nullptr) {
      write_dual_row();
    }
  }

  __device__ __forceinline__ void panel() {
    shift_.begin_tile();
    float mine = 0.0F;  // of the panel's projections, for the first threads
    const float* w = project<false>(mine);
    while (true) {
      const float factor = dead_ ? 0.0F : shift_.retry(most_);
      if (factor == 0.0F) [[likely]] {
        break;
      }
      multiply(r_, factor);
      multiply(z_, factor);
      split_rows();
      w = project<true>(mine);
    }
    write_projection(mine);
    if (most_dual_ != 0) {
      scale_.admit(most_dual_, shift_.exponent(),
                   [&](float image_factor, float) { multiply(u_, image_factor); });
    }
    lift(w, most_dual_ != 0 ? scale_.image_factor : 0.0F);
  }

  __device__ __forceinline__ void end() {
    halve_over_warp<sums, 2, sums / 4>(u_, sweep_.at.lane);
    const slot_header header{0.0F, exponent_unset, scale_.image + exponents_.dual, 0};
    const auto rows = [&](const auto& put) {
      const auto& at = sweep_.at;
      const int first =
          at.rank * at.block_rows + at.thread / 32 * tiles::warp_rows + row() % tiles::warp_rows;
#pragma unroll
      for (int i = 0; i < sums / 4; ++i) {
        const int pass = column() * 4 + i * (8 / tiles::warp_rows) + row() / tiles::warp_rows;
        put(first + pass * pass_rows, u_[i]);
      }
    };
    sweep_.end_expert_of(expert_, header, rows, [&](const image_parts& image) {
      if (dead_ && args_.grad_router.data != nullptr && args_.dual.passes_on()) [[unlikely]] {
        pass_on_rarely(args_.dual.grad_rows, args_.grad_router, expert_, sweep_.a.hidden);
      } else {
        collect_expert(image, args_.grad_router, expert_, dead_, sweep_.a.hidden);
      }
    });
  }

 private:
  using tiles = panel_tiles<lanes>;
  static constexpr int passes = Sweep::passes;
  static constexpr int pass_rows = Sweep::place::pass_rows;
  static constexpr int panel_columns = Sweep::place::panel;
  static constexpr int down = passes / tiles::tile_passes;  // tiles, one below the other
  static constexpr int across = tiles::across;
  static constexpr int loads = passes / lanes;
  static constexpr int sums = 2 * down;  // of r̄
  static constexpr int doubled = panel_doubled(Sweep::depth);
  static constexpr int every = passes / doubled;
  static constexpr int half = across;  // of the sums that a thread has of a probe, after the first exchange
  static constexpr int all = 2 * panel_columns;
  static_assert(doubled % tiles::tile_passes == 0 && tiles::tile_passes % every == 0,
                "a tile lies in doubled passes, or in others");
  static_assert(2 * all / warp_threads <= panel_largest);

  /// Of a tile's sums a thread has those of row() and row() + 8 with columns 2 column() and the next.
  [[nodiscard]] __device__ __forceinline__ int row() const { return sweep_.at.lane / 4; }
  [[nodiscard]] __device__ __forceinline__ int column() const { return sweep_.at.lane % 4; }

  __device__ __forceinline__ void load_rows() {
    using own_row = panel_loaded_row<passes, lanes>;
    const auto load = [&](const any_matrix& rows) {
      return own_row(rows, expert_, sweep_.a.hidden, sweep_.at.first_row - sweep_.at.lane / lanes,
                     sweep_.group);
    };
    const own_row row = load(args_.rows);
    const own_row upstream = load(args_.dual.grad_rows);
    const own_row direction = load(args_.dual.direction);
    const double norm = args_.dual.saved.image_norm[expert_];
    sweep_.begin_expert([&] {
      exponents_ = dual_rows(row, upstream, direction, norm, args_.dual.radius, dead_, sweep_.group,
                             sweep_.memory.scratch, sweep_.turn, r_, z_);
    });
  }
  /// The operands of r and z̄: of each tile's 16 rows the parts of r in columns 0 to 2, of z̄ in 4 to 6.
  __device__ __forceinline__ void split_rows() {
    const bool is_dual = row() >= 4;
    const bf16_part part(row() % 4);
#pragma unroll
    for (int i = 0; i < down; ++i) {
      const auto of_row = [&](int k) {
        const int from = i % 2 * tiles::side + k;
        const float r = __shfl_sync(0xffffffffU, r_[i / 2], from);
        const float z = __shfl_sync(0xffffffffU, z_[i / 2], from);
        return is_dual ? z : r;
      };
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float x = of_row(2 * column() + 8 * h), y = of_row(2 * column() + 1 + 8 * h);
        probes_[i][h] = part(x, y);
      }
    }
  }
  __device__ __forceinline__ void write_dual_row() const {
    float* const to = args_.factors.dual_row + static_cast<long long>(expert_) * sweep_.a.hidden;
    const int lane = sweep_.at.lane;
    const int first = sweep_.at.first_row - lane / lanes + lane % tiles::warp_rows;
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      const int at = first + (lane / tiles::warp_rows + i * lanes) * pass_rows;
      if (at < min(sweep_.a.hidden, (sweep_.at.rank + 1) * sweep_.at.block_rows)) {
        to[at] = scale_by(z_[i], exponents_.dual);
      }
    }
  }

  /// The warp's sums of the panel at hand with r and z̄, tile by tile as the passes arrive. Starts the copies
  /// of the next panel's doubled passes.
  template <bool again, int i>
  __device__ __forceinline__ void dot_tiles(std::uint32_t at, float (&dots)[across][4]) {
    if constexpr (i < down) {
      constexpr int p = i * tiles::tile_passes;
      if (p < sweep_.ring.passes()) {
        if constexpr (!again) {
          wait_for_copy_groups<passes - p - tiles::tile_passes + p / every>();
        }
        __syncwarp();  // other lanes' copies have arrived; and the first: nobody lifts what is copied to
                       // below
        const std::uint32_t base = at + sweep_.ring.bytes_to(p);
#pragma unroll
        for (int j = 0; j < across; ++j) {
          tile_bits a;
          load_tile_transposed(base ^ (j * 2 * vector_bytes), a);
          multiply_tile(a, probes_[i], dots[j]);
        }
      }
      if constexpr (!again) {
        push_passes<p / every, (p + tiles::tile_passes) / every>(sweep_.ring);
      }
      dot_tiles<again, i + 1>(at, dots);
    }
  }
  /// The projections of the panel: returns those with z̄ as lift() reads them; each of the first threads has
  /// one in `mine`.
  template <bool again>
  __device__ __forceinline__ const float* project(float& mine) {
    auto& exchange = sweep_.exchange;
    const auto& at = sweep_.at;
    const int lane = at.lane;
    float dots[across][4] = {};
    dot_tiles<again, 0>(ring_at(lane / 16 * 8 + lane % 8, lane / 8 % 2), dots);
    float y[2 * across];
#pragma unroll
    for (int j = 0; j < across; ++j) {
      y[2 * j] = dots[j][0] + dots[j][1];
      y[2 * j + 1] = dots[j][2] + dots[j][3];
    }
    halve_over_warp<2 * half, 1, half>(y, lane);
    float* const own = exchange.by_warp() + at.thread / 32 * all;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      own[i * 32 + lane] = y[i];
    }
    float* const to = sweep_.memory.probes + turn_ * (panel_tile_floats(lanes) / 2);
    turn_ ^= 1;
    exchange.send(at);
    const float* const parts = exchange.receive(at);
    auto* const most =
        reinterpret_cast<unsigned*>(to + panel_columns);  // of each warp: all, and those with z̄
    if (at.thread < all) {
      mine = 0.0F;
      for (int b = 0; b < at.blocks; ++b) {
        mine += parts[b * all + at.thread];
      }
      mine = dead_ ? 0.0F : mine;  // no gradient, whatever the weights hold
      if (is_dual()) {
        to[tiles::dual_place(tiles::column(at.thread))] = mine;
      }
      const unsigned both = largest_over_warp(mine);
      const unsigned dual = largest_over_warp(is_dual() ? mine : 0.0F);
      if (lane == 0) {
        most[at.thread / 32] = both;
        most[all / 32 + at.thread / 32] = dual;
      }
    }
    __syncthreads();
    most_ = most_dual_ = 0;
#pragma unroll
    for (int i = 0; i < all / 32; ++i) {
      most_ = max(most_, most[i]);
      most_dual_ = max(most_dual_, most[all / 32 + i]);
    }
    return to;
  }
  /// Whether the projection that this thread adds up is with z̄.
  [[nodiscard]] __device__ __forceinline__ bool is_dual() const {
    return tiles::probe(sweep_.at.thread) != 0;
  }
  __device__ __forceinline__ void write_projection(float mine) const {
    float* const to = is_dual() ? args_.factors.dual_projection : args_.factors.projection;
    const int at = (sweep_.mine - expert_ * sweep_.a.part.tiles_per_expert) * panel_columns +
                   tiles::column(sweep_.at.thread);
    if (sweep_.at.rank == 0 && sweep_.at.thread < all && to != nullptr && at < sweep_.a.ffn) {
      to[static_cast<long long>(expert_) * sweep_.a.ffn + at] =
          scale_by(mine, (is_dual() ? exponents_.dual : exponents_.row) - shift_.exponent());
    }
  }
  /// r̄ += the panel times w · factor. Starts the copies of the next panel's other passes.
  __device__ __forceinline__ void lift(const float* w, float factor) {
    const bf16_part part(row());
    unsigned b[across][2];
#pragma unroll
    for (int j = 0; j < across; ++j) {
      const float4 x = *reinterpret_cast<const float4*>(w + column() * (panel_columns / 4) + j * 4);
      b[j][0] = part(x.x * factor, x.y * factor);
      b[j][1] = part(x.z * factor, x.w * factor);
    }
    const int lane = sweep_.at.lane;
    const std::uint32_t at = ring_at(lane % 16, lane / 16);
#pragma unroll
    for (int n = 0; n < down; ++n) {
      const int p = (n * tiles::tile_passes + doubled) % passes;
      const int i = p / tiles::tile_passes;
      if (p < sweep_.ring.passes()) {
        float sum[4] = {};
        const std::uint32_t base = at + sweep_.ring.bytes_to(p);
#pragma unroll
        for (int j = 0; j < across; ++j) {
          tile_bits a;
          load_tile(base ^ (j * 2 * vector_bytes), a);
          multiply_tile(a, b[j], sum);
        }
        u_[2 * i] += sum[0] + sum[1];
        u_[2 * i + 1] += sum[2] + sum[3];
      }
      if (p >= doubled) {
        __syncwarp();
#pragma unroll
        for (int k = 0; k < tiles::tile_passes; ++k) {
          sweep_.ring.push(p + k);
        }
      }
    }
  }
  /// The address of a piece of a tile's row in the first slots of the warp. The ring begins at a multiple of
  /// 128 bytes, so that tiles to the right differ in bits of their own.
  [[nodiscard]] __device__ __forceinline__ std::uint32_t ring_at(int x, int piece) const {
    return shared_address(sweep_.memory.ring) + sweep_.at.thread / 32 * (32 * vector_bytes) +
           tiles::offset(x, piece);
  }

  Sweep& sweep_;
  const Args& args_;
  int expert_;
  bool dead_;
  row_exponents exponents_;
  float r_[loads];
  float z_[loads];
  unsigned probes_[down][2];
  float u_[sums];
  int turn_ = 0;        // of the sums with z̄
  unsigned most_;       // bits of the panel's largest projection
  unsigned most_dual_;  // and with z̄
  row_shift shift_;
  sum_scale scale_;
};

template <class Args, int lanes>
__global__ void __launch_bounds__(panel_threads, 1) panel_factored_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) unsigned char shared[];
  using sweep_of_two = panel_sweep<bf16, lanes, panel_depth::deep, panel_line, 2, 0, true>;
  sweep_of_two sweep(a.sweep, shared);
  sweep.ring.clear_rest();
  for_each_panel<panel_factors<sweep_of_two, Args, lanes>>(sweep, a);
}

MPIROUTER_CUDA_DETAIL_END
