// A struct that lacks a member of GramOperator.
#include <mpi_router/mpi_router.hpp>

#include <vector>

struct identity {
  using scalar = float;
#ifndef MISTAKE
  [[nodiscard]] mpi_router::index_t dimension() const { return 3; }
#endif
  float apply(mpi_router::vector_view<const float> x, mpi_router::vector_view<float> u) const {
    float energy = 0;
    for (mpi_router::index_t i = 0; i < x.size(); ++i) {
      u[i] = x[i];
      energy += x[i] * x[i];
    }
    return energy;
  }
};

void use(const std::vector<float>& row, std::vector<float>& out) {
  mpi_router::power_step(identity{}, row, out, 1.0F);
}
