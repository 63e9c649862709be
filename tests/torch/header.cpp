// The header alone, twice, as C++17: what a project has that was written for libtorch.
#include <mpi_router/torch/router.hpp>
#include <mpi_router/torch/router.hpp>  // it guards itself

at::Tensor rows_of(const at::Tensor& experts, const at::Tensor& router) {
  return std::get<0>(mpi_router::router_rows(experts, router));
}
