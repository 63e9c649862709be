#include "rows_of_type.cuh"

namespace mpi_router_c {

constinit const gpu_rows_functions gpu_rows_of_f32 = compiled_gpu_rows<float>();

}  // namespace mpi_router_c
