// Experts whose columns are spread over GPUs: projections are sums, which go first, and images are pieces.
// Sums in f64, by the generic kernels, or those of experts that are decoded as they are read.
#pragma once

#include <mpi_router/cuda/decoded_experts.cuh>
#include <mpi_router/cuda/detail/decoded/products.cuh>
#include <mpi_router/cuda/detail/generic/launch.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>
#include <mpi_router/cuda/detail/plan/workspace.hpp>
#include <mpi_router/distributed/device_sums.cuh>
#include <mpi_router/distributed/rank_message.cuh>

#include <algorithm>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Images in pieces, each rank's columns of them.
struct column_images {
  const double* pieces;     // [N, columns of the rank], of the first rank; the next `stride` on
  const rank_place* place;  // of the columns, likewise
  const double* energies;   // [N], or null
  long long stride;
  int ranks;

  struct row {
    const column_images& of;
    int expert;

    [[nodiscard]] __device__ __forceinline__ double energy() const {
      return of.energies == nullptr ? 0.0 : of.energies[expert];
    }
    __device__ __forceinline__ void load(int column, double (&out)[4]) const {
      out[0] = out[1] = out[2] = out[3] = 0.0;
      for (int r = 0; r < of.ranks; ++r) {
        const rank_place here = of.place[r * of.stride];
        const double* const piece = of.pieces + r * of.stride + static_cast<long long>(expert) * here.count;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = column + i - here.first;
          if (at >= 0 && at < here.count) out[i] = piece[at];
        }
      }
    }
  };
  [[nodiscard]] __device__ __forceinline__ row of(int expert, int) const { return {*this, expert}; }
};

/// sums = Σ over the ranks of what they sent, in their order.
template <class = void>
__global__ void __launch_bounds__(generic_threads)
    add_ranks_kernel(const double* all, long long stride, int ranks, long long count, double* sums) {
  wait_for_previous_kernel();
  const long long step = static_cast<long long>(gridDim.x) * generic_threads;
  for (long long i = static_cast<long long>(blockIdx.x) * generic_threads + threadIdx.x; i < count;
       i += step) {
    double total = all[i];
    for (int r = 1; r < ranks; ++r) {
      total += all[r * stride + i];
    }
    sums[i] = total;
  }
}

/// The two messages of a call, in doubles: `rows` projections of each expert of all layers; and the places of
/// the layers, then pieces of the images.
struct column_message {
  index_t projections = 0;
  index_t first_piece = 0;
  index_t pieces = 0;
  index_t experts = 0;

  template <class Layers>
  column_message(const Layers& layers, index_t rows) {
    first_piece = whole_lines(static_cast<index_t>(layers.size()));
    pieces = first_piece;
    for (const auto& layer : layers) {
      const auto [n, f, d] = layer.experts.shape();
      projections += rows * n * f;
      pieces += n * most_columns(layer);
      experts += n;
    }
    pieces = whole_lines(pieces);
    projections = whole_lines(projections);
  }
  template <class Layer>
  [[nodiscard]] static index_t most_columns(const Layer& layer) {
    const index_t d = layer.experts.shape().hidden_dim;
    return layer.most > 0 ? std::min<index_t>(layer.most, d) : d;
  }
  [[nodiscard]] static index_t whole_lines(index_t doubles) { return (doubles + 31) / 32 * 32; }
};

/// The workspace of a call.
struct column_memory {
  double* mine = nullptr;
  double* all = nullptr;
  double* sums = nullptr;      // of projections
  double* energies = nullptr;  // of all experts
  double* dual = nullptr;      // z̄ of all experts, whole
  float* upstream = nullptr;   // sums of gradients of rows
  std::size_t bytes = 0;

  column_memory(const column_message& message, index_t ranks, index_t dual_size, index_t sum, void* data) {
    arena memory(data);
    const index_t most = std::max({message.projections, message.pieces, (sum + 1) / 2});
    mine = memory.take<double>(most);
    all = memory.take<double>(ranks * most);
    sums = memory.take<double>(message.projections);
    energies = memory.take<double>(message.experts);
    dual = memory.take<double>(dual_size);
    upstream = memory.take<float>(sum);
    bytes = memory.used();
  }
};

/// Where a layer's part of everything begins.
struct column_offsets {
  index_t layer = 0;
  index_t expert = 0;
  index_t projection = 0;
  index_t piece = 0;
  index_t row = 0;  // element of [N, D] matrices, one layer after the other
};

/// use(layer, offsets) for each.
template <class Layers, class Use>
void for_each_columns(const Layers& layers, index_t rows, const column_message& message, const Use& use) {
  column_offsets at;
  at.piece = message.first_piece;
  for (const auto& layer : layers) {
    const auto [n, f, d] = layer.experts.shape();
    use(layer, at);
    ++at.layer;
    at.expert += n;
    at.row += n * d;
    at.projection += rows * n * f;
    at.piece += n * column_message::most_columns(layer);
  }
}

inline void gather(const context& ctx, const auto& comm, const double* mine, double* all, index_t doubles) {
  gather(ctx, comm, reinterpret_cast<const float*>(mine), reinterpret_cast<float*>(all), 2 * doubles);
}

inline void set_zero(const char* name, const context& ctx, double* to, index_t count) {
  if (count > 0) {
    expect_device(name, ctx);
    check("cudaMemsetAsync",
          cudaMemsetAsync(to, 0, static_cast<std::size_t>(count) * sizeof(double), ctx.stream));
  }
}

/// Where a rank's projections go before they are summed.
template <class Comm>
[[nodiscard]] double* projections_of(const Comm&, const column_memory& memory) {
  return sums_by_backend<Comm> ? memory.sums : memory.mine;
}

/// The sums of all projections, on every rank.
template <class Comm>
void add_up(const context& ctx, const Comm& comm, const column_message& message,
            const column_memory& memory) {
  if (message.projections == 0) return;
  if constexpr (sums_by_backend<Comm>) return add_by_backend(ctx, comm, memory.sums, message.projections);
  gather(ctx, comm, memory.mine, memory.all, message.projections);
  const index_t blocks = (message.projections + generic_threads - 1) / generic_threads;
  launch("add_ranks_kernel", ctx,
         {static_cast<unsigned>(std::min<index_t>(blocks, most_sum_blocks)), generic_threads},
         add_ranks_kernel<>, static_cast<const double*>(memory.all),
         static_cast<long long>(message.projections), static_cast<int>(comm.size()),
         static_cast<long long>(message.projections), memory.sums);
}

/// The columns of a layer that are here: a view of T, or experts that are decoded as they are read.
template <class T, class Layer>
[[nodiscard]] auto columns_here(const Layer& layer) {
  if constexpr (is_decoded<std::remove_cvref_t<decltype(layer.experts)>>) {
    return layer.experts.local();
  } else {
    return expert_batch_view<const T, device_space>(layer.experts.local());
  }
}
template <class T>
[[nodiscard]] plain_products<T> products_with(const context& ctx,
                                              const expert_batch_view<const T, device_space>& here) {
  return {ctx, batch<const T>(here), here.shape()};
}
template <class Rows>
[[nodiscard]] decoded_products<Rows> products_with(const context& ctx, const decoded_experts<Rows>& here) {
  return {ctx, here.rows(), here.shape()};
}

/// y_k = A x_k of the columns that are here, for `count` rows of each expert.
template <int count, class Experts>
void project_columns(const char* name, const context& ctx, const Experts& here,
                     const any_matrix (&rows)[count], double* to) {
  const index_t size = here.num_experts() * here.ffn_dim();
  if (here.empty()) return set_zero(name, ctx, to, count * size);
  double* results[count];
  for (int k = 0; k < count; ++k) {
    results[k] = to + k * size;
  }
  products_with(ctx, here).project(rows, results);
}

/// The pieces u = yA.
template <class Experts>
void lift_columns(const context& ctx, const Experts& here, const double* y, double* to) {
  if (here.num_experts() == 0 || here.hidden_dim() == 0) return;  // no piece
  if (here.ffn_dim() == 0) return set_zero("lift", ctx, to, here.num_experts() * here.hidden_dim());
  products_with(ctx, here).lift(y, to);
}

/// Columns of a [N, D] matrix.
template <class Layer, class U>
[[nodiscard]] any_matrix columns_of(const Layer& layer, const matrix_view<U, device_space>& m) {
  const rank_place here = place_of(layer.experts);
  return any_matrix(m.middle_cols(here.first, here.count));
}

/// The images of a layer, from the pieces of all ranks.
template <class Layer>
[[nodiscard]] column_images images_of(const Layer&, const column_message& message,
                                      const column_memory& memory, const column_offsets& at,
                                      const double* energies, index_t ranks) {
  return {memory.all + at.piece, reinterpret_cast<const rank_place*>(memory.all) + at.layer, energies,
          message.pieces, static_cast<int>(ranks)};
}

MPIROUTER_CUDA_DETAIL_END
