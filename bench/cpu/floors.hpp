// The floor: what it takes to read the weights once (forward), or to read them and to read and write the
// gradient (backward), by the plainest vector code. Several kernels; the best of them counts.
#pragma once

#include "measure.hpp"

#include <cstddef>
#include <vector>

namespace bench {

/// Reads `bytes` bytes. row_bytes: of one stored row, for the kernels that read several at a time.
[[nodiscard]] std::vector<contender> read_floors(const void* data, std::size_t bytes, std::size_t row_bytes,
                                                 int threads);

/// Reads `bytes` of weights, of `width` bytes each, and adds something to as many floats.
[[nodiscard]] std::vector<contender> update_floors(const void* data, std::size_t bytes, std::size_t width,
                                                   float* gradient, int threads);

}  // namespace bench
