#include "rows_of_type.cuh"

namespace mpi_router_c {

constinit const gpu_rows_functions gpu_rows_of_bf16 = compiled_gpu_rows<bf16>();

}  // namespace mpi_router_c
