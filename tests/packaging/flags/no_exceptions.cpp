// A user without exceptions and RTTI. Without an argument: one step. With the name of a mistake: makes it.
#include <mpi_router/mpi_router.hpp>

#include <array>
#include <cstdio>
#include <string_view>

static_assert(MPIROUTER_HAS_EXCEPTIONS == 0);

int main(int argc, char** argv) {
  const std::array<float, 6> a{2, 0, 0, 1, 0, 0};  // [3, 2]
  const std::array<float, 2> row{1, 0};
  std::array<float, 2> out{};
  const auto op = mpi_router::gram(mpi_router::gate_fd(a.data(), 3, 2));
  const std::string_view mistake = argc > 1 ? argv[1] : "";
  if (mistake == "shapes") {
    const std::array<float, 3> longer{1, 0, 0};
    mpi_router::power_step(op, longer, out, 1.0F);
  } else if (mistake == "radius") {
    mpi_router::power_step(op, row, out, -1.0F);
  } else if (mistake == "null") {
    mpi_router::power_step(op, mpi_router::vector_view<const float>(nullptr, 2), out, 1.0F);
  } else {
    const auto step = mpi_router::power_step(op, row, out, 3.0F);
    const bool good = step.state == mpi_router::status::ok && out[0] == 3 && out[1] == 0;
    std::puts(good ? "good" : "WRONG");
    return good ? 0 : 1;
  }
  return 2;  // a mistake came through
}
