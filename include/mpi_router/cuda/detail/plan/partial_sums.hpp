// What is left of an image where several blocks have parts of it.
#pragma once

#include <mpi_router/core/config.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

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

/// What a block needs in shared memory to finish an expert, whose parts others may send.
struct leader_scratch {
  static constexpr int warps = 16;
  static constexpr int parts = 8;
  double norms[2 * warps];
  double residual[warps];
  std::uint64_t arrived;
  slot_header headers[parts];
};

MPIROUTER_CUDA_DETAIL_END
