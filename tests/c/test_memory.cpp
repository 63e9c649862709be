// Calls leave no memory behind, whether they succeed or fail. Under AddressSanitizer its leak check looks
// instead.
#include <mpi_router/core/config.hpp>

#include <doctest/doctest.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "arrays.hpp"

using namespace c_tests;

namespace {

void calls() {
  static std::vector<double> gates(24, 0.5), router(8, 1), rows(8), tape(1000), directions(8);
  static mpi_router_direction found[2];
  static mpi_router_row_certificate certificates[2];
  auto experts = mpi_router_experts_nfd(gates.data(), MPIROUTER_F64, 2, 3, 4);
  const auto in = mpi_router_row_major(router.data(), MPIROUTER_F64, 2, 4);
  const auto out = mpi_router_row_major(rows.data(), MPIROUTER_F64, 2, 4);
  const auto v = mpi_router_row_major(directions.data(), MPIROUTER_F64, 2, 4);
  const mpi_router_buffer buffer{tape.data(), 8000};
  auto options = mpi_router_default_certify_options();
  for (const std::int64_t rigorous : {0, 512}) {
    options.rigorous_up_to = rigorous;
    CHECK(mpi_router_find_directions(&experts, &in, &options, found, &v, nullptr) == MPIROUTER_OK);
  }
  CHECK(mpi_router_certify_rows(&experts, &in, found, &v, certificates, nullptr) == MPIROUTER_OK);
  CHECK(mpi_router_rows(&experts, &in, nullptr, &out, nullptr, &buffer, nullptr) == MPIROUTER_OK);
  CHECK(mpi_router_rows_vjp_detached(&experts, &in, nullptr, &buffer, &out, &out, 0, nullptr) ==
        MPIROUTER_OK);
  CHECK(mpi_router_rows(&experts, &in, nullptr, &in, nullptr, nullptr, nullptr) ==
        MPIROUTER_INVALID_ARGUMENT);
  experts.device = MPIROUTER_CUDA;
  CHECK(mpi_router_rows(&experts, &in, nullptr, &out, nullptr, nullptr, nullptr) == MPIROUTER_UNSUPPORTED);
}

}  // namespace

TEST_CASE("as much memory is in use after calls as before") {
  for (int i = 0; i < 3; ++i) calls();  // what is allocated once
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
  const std::size_t before = mallinfo2().uordblks;
  for (int i = 0; i < 20; ++i) calls();
  CHECK(mallinfo2().uordblks == before);
#endif
}
