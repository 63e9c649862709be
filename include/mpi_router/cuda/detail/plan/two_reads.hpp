// What the kernels that read the weights twice are given besides them.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Whether weights whose elements take `element_bytes` can be read in vectors: along one of their axes.
[[nodiscard]] inline bool has_contiguous_axis(const expert_strides& strides, int element_bytes) {
  return element_bytes <= 4 && (strides.hidden == 1 || strides.ffn == 1);
}

/// Whether columns lie two apart, so that they are the one half of vectors of pairs.
[[nodiscard]] inline bool has_pairs(const expert_strides& strides, int element_bytes) {
  return element_bytes <= 4 && strides.ffn == 2 && strides.hidden % 2 == 0 && strides.expert % 2 == 0;
}

/// The powers of two that were taken out of r, of y = A r and of the image yA, [N] each: true are those and
/// these multiplied, so that no square of a row of f64 leaves the range.
struct step_exponents {
  int* row = nullptr;
  int* projection = nullptr;
  int* image = nullptr;

  template <class Arena>
  void take(Arena& memory, index_t experts) {
    row = memory.template take<int>(experts);
    projection = memory.template take<int>(experts);
    image = memory.template take<int>(experts);
  }
};

/// A vector of each expert as floats, the largest of them in [1, 2), and the power of two that was taken out.
/// Zeros lie between its end and the pitch.
struct scaled_vectors {
  static constexpr int unit = vector_bytes / 2;  // floats: elements in the widest load of weights

  float* values = nullptr;   // [N, pitch]
  int* exponents = nullptr;  // [N]
  int pitch = 0;

  template <class Arena>
  void take(Arena& memory, index_t experts, index_t extent) {
    pitch = static_cast<int>((extent + unit - 1) / unit * unit);
    values = memory.template take<float>(experts * pitch);
    exponents = memory.template take<int>(experts);
  }
};

/// r and y of a forward; z̄ and w besides of a backward.
struct scaled_operands {
  scaled_vectors row;
  scaled_vectors projection;
  scaled_vectors dual;
  scaled_vectors dual_projection;

  template <class Arena>
  void take(Arena& memory, const expert_shape& shape, bool of_backward) {
    row.take(memory, shape.num_experts, shape.hidden_dim);
    projection.take(memory, shape.num_experts, shape.ffn_dim);
    if (of_backward) {
      dual.take(memory, shape.num_experts, shape.hidden_dim);
      dual_projection.take(memory, shape.num_experts, shape.ffn_dim);
    }
  }
};

MPIROUTER_CUDA_DETAIL_END
