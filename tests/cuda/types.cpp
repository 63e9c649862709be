#include <doctest/doctest.h>

#include <mpi_router/cuda/types.hpp>
#include <mpi_router/router/router_options.hpp>
#include <type_traits>

using namespace mpi_router;

TEST_CASE("the types of cuda/ are plain values that need no toolkit") {
  CHECK(std::is_trivially_copyable_v<cuda::context>);
  CHECK(std::is_trivially_copyable_v<cuda::workspace>);
  CHECK(std::is_trivially_copyable_v<cuda::step_by_products>);
  CHECK(std::is_trivially_copyable_v<cuda::saved_step>);
  CHECK(cuda::step_options{}.steps == 1);
  CHECK(cuda::step_options{}.degenerate == degenerate_row::keep);
  CHECK(std::is_trivially_copyable_v<cuda::step_options>);
  CHECK(std::is_trivially_copyable_v<cuda::gate_output>);
  CHECK(cuda::context{}.multiprocessors == 0);
  CHECK(cuda::context{}.device == 0);
}

TEST_CASE("the radius of the GPU is the host's: 4 / sqrt(N) by default, a number is C itself") {
  CHECK(cuda::step_options{}.radius.of(16) == router_options{}.radius.of(16));
  CHECK(cuda::step_options{}.radius.of(16) == 1.0);
  CHECK(cuda::step_options{.radius = 3.0}.radius.of(16) == 3.0);
  CHECK(cuda::step_options{.radius = router_radius::scale_free(6.0, 9)}.radius.of(4) == 2.0);
}

TEST_CASE("memory of a device does not pass for memory of the host") {
  float* const nowhere = nullptr;
  const auto view = experts_nfd<device_space>(nowhere, {0, 4, 8});
  CHECK(view.empty());
  CHECK_FALSE(std::is_convertible_v<decltype(view), expert_batch_view<const float>>);
}
