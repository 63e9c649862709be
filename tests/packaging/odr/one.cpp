#include "everything.hpp"

#include <array>
#include <cstdio>

double step_in_two(const double* a, const double* row);

double step_in_one(const double* a, const double* row) {
  std::array<double, 2> out{};
  mpi_router::power_step(mpi_router::gram(mpi_router::gate_fd(a, 2, 2)), mpi_router::vector_view(row, 2), out,
                         1.0);
  return out[0];
}

int main() {
  const std::array<double, 4> a{2, 1, 0, 1};
  const std::array<double, 2> row{1, 1};
  const bool good = step_in_one(a.data(), row.data()) == step_in_two(a.data(), row.data());
  std::puts(good ? "good" : "WRONG");
  return good ? 0 : 1;
}
