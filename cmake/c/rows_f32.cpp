#include "rows_of_type.hpp"

namespace mpi_router_c {

constinit const rows_functions<accumulator_t<float>> rows_of_f32 = compiled_rows<float>();

}  // namespace mpi_router_c
