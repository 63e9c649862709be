#include "rows_of_type.hpp"

namespace mpi_router_c {

constinit const rows_functions<accumulator_t<bf16>> rows_of_bf16 = compiled_rows<bf16>();

}  // namespace mpi_router_c
