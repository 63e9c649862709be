// Sums that neither overflow nor vanish, for weights and rows of any scale.
//
// A row is scaled by a power of two so that its largest element is in [1, 2). The projections of a tile then
// have the scale of the weights; if that is outside [2^-60, 2^60) the tile's dots, still in registers, are
// taken once more with the row shifted. The image's sums carry an exponent of their own, which follows the
// largest projection. All of it is exact, uniform over the group, and costs a comparison or two a tile where
// nothing is extreme.
#pragma once

#include <mpi_router/cuda/detail/device/number.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

constexpr int exponent_unset = -100000;  // below all that there are
/// Projections stay in [2^-60, 2^60): squares of them, and products with rows below 2^11, are in the range of
/// float.
constexpr int projection_range = 60;
/// The rows are shifted by 2^-40 for large projections, by 2^100 for small ones: float holds both of rows
/// that are in [1, 2) at most.
constexpr int shift_down = 40;
constexpr int shift_up = 100;
/// A projection may be 2^8 times the largest so far before the sums are rescaled.
constexpr int projection_headroom = 8;
/// So that the factor 2^(−shift − image) of a sum is a normal float where the rows are shifted.
constexpr int least_image_exponent = -220;
constexpr int most_image_exponent = 160;

/// Exponent of the largest magnitude of some doubles, given the largest of their high words.
__device__ __forceinline__ unsigned high_word(double x) {
  return static_cast<unsigned>(__double2hiint(x)) & 0x7fffffffU;
}
__device__ __forceinline__ int exponent_of_high_word(unsigned most) {
  return most < 0x00100000U || most >= 0x7ff00000U ? 0 : static_cast<int>(most >> 20) - 1023;
}

/// How far the rows in registers are shifted at present, in one of three steps.
struct row_shift {
  int level = 0;
  bool lowered = false;  // within the present tile

  __device__ __forceinline__ void begin_tile() { lowered = false; }
  [[nodiscard]] __device__ __forceinline__ int exponent() const {
    return level == 0 ? 0 : level < 0 ? -shift_down : shift_up;
  }
  /// Given the largest projection's bits: the power of two to multiply the rows by before another try, or 0
  /// if the projections will do.
  __device__ __forceinline__ float retry(unsigned most) {
    constexpr unsigned low = static_cast<unsigned>(127 - projection_range) << 23;
    constexpr unsigned high = static_cast<unsigned>(127 + projection_range) << 23;
    if (most >= low && most < high) [[likely]] {
      return 0.0F;
    }
    if (most >= high) {
      if (level < 0) {
        return 0.0F;
      }
      lowered = true;
      return level-- == 1 ? power_of_two(-shift_up) : power_of_two(-shift_down);
    }
    if (level == 1 || lowered) {
      return 0.0F;
    }
    return level++ == 0 ? power_of_two(shift_up) : power_of_two(shift_down);
  }
};

/// How the power of two of a tile's outer products y z̄ᵀ + w rᵀ is shared, so that no factor leaves the range
/// of float where the gradient does not: the dots times 2^dots, the rows, in registers, times 2^rows.
struct outer_exponents {
  int dots;
  int rows;  // 0 where nothing is extreme

  /// `exponent` is that of r and z̄ together; the rows are shifted at present.
  __device__ __forceinline__ outer_exponents(int exponent, const row_shift& shift) {
    const int unshifted = exponent - shift.exponent();
    // Dots are below 2^60, rows below 2^11; 2^rows and its reciprocal are normal floats.
    const int large = unshifted > projection_range ? min(unshifted, min(100, 126 + shift.exponent())) : 0;
    dots = unshifted - large;
    rows = large - shift.exponent();
  }
};

/// The exponents of a segment's sums and the factors that a tile's projections enter them with.
struct sum_scale {
  int image = exponent_unset;       // image = sums · 2^image
  int projection = exponent_unset;  // energy = sum · 2^(2 · projection)
  float image_factor = 0.0F;
  float energy_factor = 0.0F;

  /// Prepares for a tile whose largest projection has the bits `most` (not zero). `rescale(image, energy)`
  /// multiplies the sums so far.
  template <class Rescale>
  __device__ __forceinline__ void admit(unsigned most, int shift, const Rescale& rescale) {
    const int e = static_cast<int>(most >> 23) - 127 - shift;
    if (e > projection + projection_headroom) {
      const int new_image = min(max(2 * e, least_image_exponent), most_image_exponent);
      if (projection != exponent_unset) {
        rescale(power_of_two(image - new_image), power_of_two(2 * (projection - e)));
      }
      projection = e;
      image = new_image;
    }
    image_factor = power_of_two(-shift - image);
    energy_factor = power_of_two(-shift - projection);
  }
};

MPIROUTER_CUDA_DETAIL_END
