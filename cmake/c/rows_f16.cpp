#include "rows_of_type.hpp"

namespace mpi_router_c {

constinit const rows_functions<accumulator_t<f16>> rows_of_f16 = compiled_rows<f16>();

}  // namespace mpi_router_c
