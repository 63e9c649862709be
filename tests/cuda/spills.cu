// The forward kernels over stored rows, whose rings are filled BY threads or the TMA, for spills.cmake to
// count what they spill.
#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/types.hpp>
// after what it is made of
#include <mpi_router/cuda/detail/rows/kernel.cuh>

using namespace mpi_router;
using namespace mpi_router::cuda::detail;

template <class T, int vectors, int rows>
void use(const row_step_args<T>& args) {
  row_step_kernel<T, vectors, rows, copier::BY><<<1, most_threads>>>(args);
}

void use_all(const row_step_args<bf16>& wide, const row_step_args<f16>& half,
             const row_step_args<float>& single) {
  use<bf16, 1, 8>(wide);
  use<bf16, 2, 4>(wide);
  use<bf16, 4, 2>(wide);
  use<bf16, 4, 1>(wide);
  use<f16, 1, 8>(half);
  use<f16, 2, 4>(half);
  use<float, 1, 8>(single);
  use<float, 2, 4>(single);
  use<float, 4, 2>(single);
  use<float, 8, 1>(single);
}
