#include "rows_of_type.hpp"

namespace mpi_router_c {

constinit const rows_functions<accumulator_t<double>> rows_of_f64 = compiled_rows<double>();

}  // namespace mpi_router_c
