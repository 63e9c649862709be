// What becomes of one image: it is normalised (Eq. 5), and what is wanted of the step is told; or it is
// written as it is.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>
#include <mpi_router/cuda/detail/plan/partial_sums.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>
#include <mpi_router/cuda/types.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Other GPUs that want the same: what lies at `mine` here lies at bases[i] there.
struct peer_copies {
  float* const* bases = nullptr;
  int count = 0;
  const float* mine = nullptr;

  template <class Value>
  __device__ __forceinline__ void store(const Value* here, const Value& value) const {
    const auto offset =
        reinterpret_cast<const unsigned char*>(here) - reinterpret_cast<const unsigned char*>(mine);
    for (int i = 0; i < count; ++i) {
      *reinterpret_cast<Value*>(reinterpret_cast<unsigned char*>(bases[i]) + offset) = value;
    }
  }
  /// Of a matrix of floats whose rows are contiguous.
  __device__ __forceinline__ void store_four(const any_matrix& here, int row, int column,
                                             const double (&in)[4]) const {
    const float4 x = make_float4(static_cast<float>(in[0]), static_cast<float>(in[1]),
                                 static_cast<float>(in[2]), static_cast<float>(in[3]));
    store(reinterpret_cast<const float4*>(static_cast<const float*>(here.data) + row * here.row_stride +
                                          column),
          x);
  }
  /// After this thread's stores: a kernel that ends need not have them seen beyond its own GPU.
  __device__ __forceinline__ void settle() const {
    if (count > 0) __threadfence_system();
  }
};

/// What becomes of an image.
struct finish_args {
  any_matrix rows;
  any_matrix out;
  double radius;
  int hidden;
  degenerate_row degenerate;
  const status* earlier;  // of the steps before this one; null at the first
  status* final_status;   // where `earlier` of the next step is read from; may be null
  step_by_products told;
  saved_step saved;
  peer_copies peers{};  // of `out`, and of what is told
};

/// A thread's columns of an image, four at a time. `kept` chunks of them stay in registers from the first
/// visit to the second, all that there are; if none do, the image is read twice.
template <int kept, class Image>
class own_columns {
 public:
  __device__ __forceinline__ own_columns(const Image& image, int hidden) : image_(image), hidden_(hidden) {}

  /// Σ x² over them.
  [[nodiscard]] __device__ __forceinline__ double square() {
    double sum = 0.0;
    visit(false, [&](const double(&x)[4], int) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum = fma(x[i], x[i], sum);
      }
    });
    return sum;
  }
  /// use(x, column), once more.
  template <class Use>
  __device__ __forceinline__ void again(const Use& use) {
    visit(true, use);
  }

 private:
  template <class Use>
  __device__ __forceinline__ void visit(bool again, const Use& use) {
    const int stride = static_cast<int>(blockDim.x) * 4;
    const int first = static_cast<int>(threadIdx.x) * 4;
#pragma unroll
    for (int c = 0; c < kept; ++c) {
      const int column = first + c * stride;
      if (column < hidden_) {
        if (!again) {
          image_.load(column, z_[c]);
        }
        use(z_[c], column);
      }
    }
    for (int column = first + kept * stride; kept == 0 && column < hidden_; column += stride) {
      double other[4];
      image_.load(column, other);
      use(other, column);
    }
  }

  const Image& image_;
  int hidden_;
  double z_[kept > 0 ? kept : 1][4];
};

/// Whether powers of two were taken out of an image, and of its row.
template <class Image>
constexpr bool is_scaled = requires(const Image& image) { image.ratio; };

/// Elements of a router row in the units of its image.
template <class Image>
__device__ __forceinline__ void in_units_of([[maybe_unused]] const Image& image,
                                            [[maybe_unused]] double (&r)[4]) {
  if constexpr (is_scaled<Image>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      r[i] = scale_by(r[i], -image.row);
    }
  }
}

/// What a step is, given ‖r‖² and ‖rM‖².
[[nodiscard]] __device__ __forceinline__ status state_of_step(double row_square, double image_square) {
  return !isfinite(row_square)     ? status::non_finite
         : row_square == 0.0       ? status::zero_row
         : !isfinite(image_square) ? status::non_finite
         : image_square == 0.0     ? status::zero_image
                                   : status::ok;
}

/// The numbers of one step.
struct finished_step {
  status state;
  double row_square;             // ‖r‖²
  double image_square;           // ‖rM‖²
  double rayleigh;               // ρ, where it is wanted, or 0
  double residual_square = 0.0;  // ‖rM − ρ r‖², likewise
};

/// Up to four floats, at once where they begin at sixteen bytes.
__device__ __forceinline__ void save_four(float* to, int count, const float (&x)[4]) {
  if (count >= 4 && reinterpret_cast<std::uintptr_t>(to) % vector_bytes == 0) {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) {
      to[i] = x[i];
    }
  }
}

/// Writes the columns of r′ = C · rM / ‖rM‖ (Eq. 5), or what becomes of a row without a step, and of the
/// saved direction. Returns this thread's part of ‖rM − ρ r‖².
template <int kept, class Image>
[[nodiscard]] __device__ __forceinline__ double write_row(const finish_args& a, int e,
                                                          const finished_step& step, const Image& source,
                                                          own_columns<kept, Image>& image) {
  const bool ok = step.state == status::ok;
  const bool keeps = a.degenerate == degenerate_row::keep;
  const double per_norm = rsqrt(step.image_square);
  const double scale = a.radius * per_norm;
  const bool wants_row = a.told.residual != nullptr || (!ok && keeps);
  double residual = 0.0;
  image.again([&](const double(&x)[4], int column) {
    double r[4] = {};
    if (wants_row) {
      a.rows.load_four(e, column, a.hidden, r);
      if (ok) {
        in_units_of(source, r);
      }
    }
    double out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double g = x[i] - step.rayleigh * r[i];
      residual = fma(g, g, residual);  // columns beyond D add zero
      out[i] = ok ? x[i] * scale : keeps ? r[i] : 0.0;
    }
    a.out.store_four(e, column, a.hidden, out);
    if (a.peers.count > 0) a.peers.store_four(a.out, e, column, out);
    if (a.saved.direction != nullptr) {
      float direction[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        direction[i] = ok ? static_cast<float>(x[i] * per_norm) : 0.0F;
      }
      save_four(a.saved.direction + static_cast<long long>(e) * a.hidden + column, a.hidden - column,
                direction);
    }
  });
  return residual;
}

/// Tells what is wanted of a step. Each lane tells one number, so that there are one root and one store of
/// them, and little code; those of the last warp, which has no column where D is small. All threads of the
/// block call it.
template <class Image>
__device__ __forceinline__ void tell(const finish_args& a, int e, const finished_step& step,
                                     const Image& image) {
  const int lane = static_cast<int>(threadIdx.x) - static_cast<int>(blockDim.x - warp_threads);
  if (lane < 0 || lane >= 7) {
    return;
  }
  const status earlier = a.earlier != nullptr ? a.earlier[e] : status::ok;
  const status state = earlier != status::ok ? earlier : step.state;
  __syncwarp(0x7fU);  // the last status may go where the earlier one was
  status* const states = lane == 0   ? a.told.statuses
                         : lane == 1 ? a.saved.statuses
                         : lane == 2 ? a.final_status
                                     : nullptr;
  if (states != nullptr) {
    states[e] = state;
    if (lane == 0) a.peers.store(states + e, state);
  }
  double* const numbers = lane == 0   ? a.told.rayleigh
                          : lane == 1 ? a.told.energy
                          : lane == 2 ? a.told.residual
                          : lane == 3 ? a.told.row_norm
                          : lane == 4 ? a.told.image_norm
                          : lane == 5 ? a.told.cosine
                                      : a.saved.image_norm;
  if (numbers == nullptr) {
    return;
  }
  const double root =
      sqrt(lane == 2   ? step.residual_square / step.row_square
           : lane == 3 ? step.row_square
           : lane == 5 ? image.energy() / step.row_square * (image.energy() / step.image_square)
                       : step.image_square);
  const double value = lane == 0   ? step.rayleigh
                       : lane == 1 ? image.energy()
                       : lane == 5 ? fmin(root, 1.0)
                                   : root;
  double in_units = state == status::ok ? value : 0.0;
  if constexpr (is_scaled<Image>) {
    const int norm = image.row + (lane == 3 ? 0 : image.ratio);
    in_units = scale_by(in_units, lane == 5                ? 0
                                  : lane == 0 || lane == 2 ? image.ratio
                                  : lane == 1              ? image.ratio + 2 * image.row
                                                           : norm);
  }
  numbers[e] = in_units;
  if (lane < 6) a.peers.store(numbers + e, in_units);
}

/// Normalises the image of expert e, and tells of it. row_square() is this thread's part of ‖r‖², asked for
/// behind the loads of the image. `kept`: see own_columns. All threads of the block call it.
template <int kept, class Image, class RowSquare>
__device__ __forceinline__ void finish_expert(const finish_args& a, int e, const Image& image,
                                              const RowSquare& row_square, leader_scratch& scratch) {
  const int threads = static_cast<int>(blockDim.x);
  own_columns<kept, Image> columns(image, a.hidden);
  const double image_square = columns.square();
  double norms[2] = {row_square(), image_square};
  sum_over_block(norms, scratch.norms, threads);
  const bool wants_residual = a.told.residual != nullptr;
  const bool wants_rayleigh = wants_residual || a.told.rayleigh != nullptr;
  finished_step step{state_of_step(norms[0], norms[1]), norms[0], norms[1],
                     wants_rayleigh ? image.energy() / norms[0] : 0.0};
  double residual[1] = {write_row(a, e, step, image, columns)};
  if (wants_residual) {
    sum_over_block(residual, scratch.residual, threads);
  }
  step.residual_square = residual[0];
  tell(a, e, step, image);
  a.peers.settle();
}

/// Writes an image as it is, zero if `dead`.
template <class Image>
__device__ __forceinline__ void collect_expert(const Image& image, const any_matrix& out, int e, bool dead,
                                               int hidden) {
  for (int column = static_cast<int>(threadIdx.x) * 4; column < hidden && out.data != nullptr;
       column += static_cast<int>(blockDim.x) * 4) {
    double z[4];
    image.load(column, z);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      z[i] = dead ? 0.0 : z[i];
    }
    out.store_four(e, column, hidden, z);
  }
}

/// The gradient of a row that had no step passes on as it came. Called, not inlined: it is rare, and its
/// registers would be taken from the loops before it.
template <class = void>
__device__ __noinline__ void pass_on_rarely(const any_matrix& from, const any_matrix& to, int e, int hidden) {
  for (int column = static_cast<int>(threadIdx.x); column < hidden; column += static_cast<int>(blockDim.x)) {
    to.store(e, column, from.load(e, column));
  }
}

MPIROUTER_CUDA_DETAIL_END
