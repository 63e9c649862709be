// The gate matrices as the kernels see them, and how the stored rows are dealt out over the grid.
#pragma once

#include <mpi_router/cuda/detail/any_matrix.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// A batch of matrices: base pointer and stride, or a table of pointers. Strides in elements.
template <class T>
struct batch {
  T* data = nullptr;
  T* const* table = nullptr;
  long long expert = 0;
  long long ffn = 0;
  long long hidden = 0;

  batch() = default;
  template <class U>
  explicit batch(const expert_batch_view<U, device_space>& view)
      : data(const_cast<T*>(view.data())),
        table(const_cast<T* const*>(reinterpret_cast<const T* const*>(view.table()))),
        expert(view.strides().expert),
        ffn(view.strides().ffn),
        hidden(view.strides().hidden) {}

  [[nodiscard]] __device__ __forceinline__ T* of(int e) const {
    return table != nullptr ? table[e] : data + e * expert;
  }
};

__device__ __forceinline__ bool aligned_to_16(const void* p, long long stride_bytes, long long extent_bytes) {
  return ((reinterpret_cast<unsigned long long>(p) | static_cast<unsigned long long>(stride_bytes) |
           static_cast<unsigned long long>(extent_bytes)) &
          15ULL) == 0;
}

/// The tiles of all experts in one list, dealt to the blocks in equal runs. A run may span experts: the part
/// of a run in one expert is a segment, and has a slot of its own for its partial sums. A block may be a team
/// whose members take the tiles of a run in turn; then each member has a slot in every segment.
struct partition {
  int experts = 0;
  int tiles_per_expert = 0;
  int blocks = 0;
  int whole =
      0;  ///< blocks is a multiple of experts that divides the tiles evenly: each block has one segment
  int team = 1;

  [[nodiscard]] __host__ __device__ int tiles() const { return experts * tiles_per_expert; }
  [[nodiscard]] __host__ __device__ int first_tile(int block) const {
    // ⌊block · tiles / blocks⌋ without the division of 64 bits; there are fewer than 2^16 blocks.
    const unsigned n = static_cast<unsigned>(blocks), b = static_cast<unsigned>(block);
    const unsigned each = static_cast<unsigned>(tiles()) / n;
    return static_cast<int>(b * each + b * (static_cast<unsigned>(tiles()) - each * n) / n);
  }
  /// The block that a tile was dealt to: the last whose first tile is not beyond it.
  [[nodiscard]] __host__ __device__ int block_of(int tile) const {
    return static_cast<int>(((static_cast<long long>(tile) + 1) * blocks - 1) / tiles());
  }
  /// The first slot of a segment.
  [[nodiscard]] __host__ __device__ int slot(int block, int expert) const {
    return (whole != 0 ? block : block + expert) * team;
  }
  [[nodiscard]] __host__ __device__ int slots() const {
    return (whole != 0 ? blocks : blocks + experts) * team;
  }
};

/// As many blocks as `limit`, or somewhat fewer if then each has rows of a single expert.
[[nodiscard]] inline partition make_partition(index_t experts, index_t tiles_per_expert, int limit) {
  expect(experts * tiles_per_expert <= 0x7fffffff, "cuda: ", experts, " experts of ", tiles_per_expert,
         " tiles each are too many");
  expect(limit < 65536, "cuda: ", limit, " blocks are too many");
  partition p;
  p.experts = static_cast<int>(experts);
  p.tiles_per_expert = static_cast<int>(tiles_per_expert);
  p.blocks = p.tiles() < limit ? p.tiles() : limit;
  int each = 1;
  while (2 * each * experts <= limit && 2 * each <= tiles_per_expert) {
    each *= 2;
  }
  const index_t blocks = each * experts;
  if (blocks <= limit && (blocks * 100 >= limit * 93 || 2 * each > tiles_per_expert)) {
    p.blocks = static_cast<int>(blocks);
    p.whole = 1;
  }
  return p;
}

/// The largest divisor of n up to `limit`.
[[nodiscard]] inline int most_divisor(int n, int limit) {
  int divisor = n < limit ? n : limit;
  while (divisor > 1 && n % divisor != 0) {
    --divisor;
  }
  return divisor;
}

/// The scales of a segment's partial sums: image · 2^image_exponent, energy · 2^energy_exponent.
struct alignas(16) slot_header {
  float energy;
  int energy_exponent;
  int image_exponent;
  int unused;
};

/// What a kernel leaves for the one after it: a row of sums and a header for each segment.
struct partial_sums {
  float* rows = nullptr;  ///< [slots, pitch]
  slot_header* headers = nullptr;
  int pitch = 0;
};

/// Hands out pieces of a workspace, each aligned to 256 bytes; with no data it only counts.
class arena {
 public:
  explicit arena(void* data) : data_(static_cast<unsigned char*>(data)) {}
  template <class U>
  U* take(index_t count) {
    const std::size_t at = used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(U) + 255) / 256 * 256;
    return data_ == nullptr ? nullptr : reinterpret_cast<U*>(data_ + at);
  }
  [[nodiscard]] std::size_t used() const noexcept { return used_; }

 private:
  unsigned char* data_;
  std::size_t used_ = 0;
};

}  // namespace detail
MPIROUTER_CUDA_END
