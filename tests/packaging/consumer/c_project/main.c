/* A = diag(2, 1): from (1, 1), rM = (4, 1), here of length C = 4. */
#include <mpi_router/c/mpi_router.h>
#include <stdio.h>

int main(void) {
  const float a[4] = {2, 0, 0, 1}, row[2] = {1, 1};
  float rows[2];
  const mpi_router_experts experts = mpi_router_experts_nfd(a, MPIROUTER_F32, 1, 2, 2);
  const mpi_router_matrix router = mpi_router_row_major(row, MPIROUTER_F32, 1, 2);
  const mpi_router_matrix out = mpi_router_row_major(rows, MPIROUTER_F32, 1, 2);
  if (mpi_router_rows(&experts, &router, NULL, &out, NULL, NULL, NULL) != MPIROUTER_OK) {
    puts(mpi_router_last_error());
    return 1;
  }
  printf("%.4f %.4f\n", rows[0], rows[1]);
  return rows[0] > 3.88F && rows[0] < 3.89F ? 0 : 1;
}
