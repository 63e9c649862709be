// The MPI router on a GPU, in one include. For nvcc, -std=c++20, sm_80 or newer; fastest on sm_90.
//
//   context.cuh          where a call runs
//   router_rows.cuh      the batched step, and its two halves for sharded weights
//   router_rows_vjp.cuh  its gradient: written, accumulated or factored
//   grouped_factors.cuh  the factored one as two more rows of a grouped product
//   gating.cuh           selection, weights, loads
//   logits.cuh           the product before them, by cuBLASLt; not included here
//   decoded_rows.cuh     the step and its gradient over packed experts; not included here
#pragma once

#include <mpi_router/cuda/gating.cuh>
#include <mpi_router/cuda/grouped_factors.cuh>
#include <mpi_router/cuda/router_rows.cuh>
#include <mpi_router/cuda/router_rows_vjp.cuh>
