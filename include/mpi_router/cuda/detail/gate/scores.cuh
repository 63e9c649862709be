// The scores of core/scores.hpp on the device.
#pragma once

#include <mpi_router/core/scores.hpp>

#include <cmath>

MPIROUTER_CUDA_DETAIL_BEGIN

/// The elementary functions that scores are made of: see core/scores.hpp.
struct device_math {
  __device__ __forceinline__ static float exp(float x) { return expf(x); }
  __device__ __forceinline__ static float log1p(float e) { return log1pf(e); }
  __device__ __forceinline__ static float log(float x) { return logf(x); }
  __device__ __forceinline__ static float abs(float x) { return fabsf(x); }
  __device__ __forceinline__ static float by_sign(float x, float negative, float otherwise) {
    return x < 0.0F ? negative : otherwise;
  }
  __device__ __forceinline__ static constexpr float deep(float) { return 16.0F; }
};

/// Below this a score is too near to the smallest normal number to be divided by.
constexpr float least_divisor = 1e-30F;

/// The score of a logit by itself, or, where scores are relative, of a logit less the largest.
template <class Score>
__device__ __forceinline__ float score_of(float x) {
  const float factor = Score::template factor<device_math>(x);
  if constexpr (Score::has_root) {
    return factor * sqrtf(Score::template radicand<device_math>(x));
  } else {
    return factor;
  }
}
/// Its logarithm, as good at any depth. Called, not inlined, for it is rare.
template <class Score>
__device__ __noinline__ float log_score(float x) {
  return Score::template log_value<device_math>(x);
}

MPIROUTER_CUDA_DETAIL_END
