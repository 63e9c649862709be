// Operators made from a lambda and from a shard: what they pass on, and what they refuse.
#include <mpi_router/core/operators.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>

#include <vector>

namespace test_operators {
using namespace mpi_router;
using namespace test_support;

TEST_CASE("a lambda is an operator: it gets the views and gives the energy") {
  for (const index_t dimension : {0, 3}) {
    auto op = gram_operator<double>(dimension, [&](vector_view<const double> x, vector_view<double> u) {
      for (index_t i = 0; i < dimension; ++i) u[i] = 2 * x[i];
      return 7.5;
    });
    static_assert(GramOperator<decltype(op)> && !ScalableGramOperator<decltype(op)>);
    std::vector<double> x{1, 2, 3}, u(3);
    CHECK(op.dimension() == dimension);
    CHECK(op.apply(x, vector_view<double>(u)) == 7.5);
    CHECK(u[2] == (dimension == 0 ? 0 : 6));
  }
}

TEST_CASE("a shard gives the image and the energy that the reduction leaves") {
  auto shard = gram_operator<float>(2, [](vector_view<const float> x, vector_view<float> u) {
    u[0] = x[1];
    u[1] = x[0];
    return 2 * x[0] * x[1];
  });
  reduced_operator whole(shard, [](vector_view<float> u, float& energy) {  // two shards that are alike
    for (index_t i = 0; i < u.size(); ++i) u[i] *= 2;
    energy *= 2;
  });
  const std::vector<float> x{3, 5};
  std::vector<float> u(2);
  CHECK(whole.dimension() == 2);
  CHECK(whole.apply(x, vector_view<float>(u)) == 60.0F);
  CHECK(u == std::vector<float>{10.0F, 6.0F});
}

#if MPIROUTER_HAS_EXCEPTIONS
TEST_CASE("an operator of a negative dimension is refused") {
  const auto nothing = [](vector_view<const double>, vector_view<double>) { return 0.0; };
  CHECK(refused([&] { (void)gram_operator<double>(-1, nothing); }, "gram_operator: negative dimension -1"));
}
#endif

}  // namespace test_operators
