// Compiled once for each instruction set, as FUNCTION: the image of one row by the kernels of that set.
#include <mpi_router/backend/simd.hpp>

float FUNCTION(const float* a, mpi_router::index_t ffn_dim, mpi_router::index_t hidden_dim, const float* row,
               float* out);

float FUNCTION(const float* a, mpi_router::index_t ffn_dim, mpi_router::index_t hidden_dim, const float* row,
               float* out) {
  return mpi_router::simd{}.apply(mpi_router::row_major(a, ffn_dim, hidden_dim),
                                  mpi_router::vector_view<const float>(row, hidden_dim),
                                  mpi_router::vector_view<float>(out, hidden_dim));
}
