// The op with the kernels that are chosen when the program runs: dense types, those decoded in registers, and
// those that go row by row; in every instruction set that this processor has.
#include "layers.hpp"

#include <mpi_router/backend/packed_dispatch.hpp>
#include <mpi_router/backend/runtime_dispatch.hpp>

using namespace ggml_test;

TEST_CASE("dispatch: the step in double, the bits of router_rows, on any number of threads") {
  random_source random(31);
  for (const auto type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K,
                          GGML_TYPE_MXFP4, GGML_TYPE_Q6_K, GGML_TYPE_IQ2_XXS}) {
    CAPTURE(std::string(ggml_type_name(type)));
    const context ctx = new_context();
    is_the_step<dispatch>(random_layer(ctx, random, type, ggml_is_quantized(type) ? 256 : 65, 33, 5), {},
                          ctx);
  }
}

TEST_CASE("dispatch in every instruction set of this processor: the step in double") {
  random_source random(32);
  for (const auto type : {GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q6_K}) {
    const context ctx = new_context();
    const auto l = random_layer(ctx, random, type, 256, 9, 4);
    const auto exact = exact_rows(l.experts, l.router, 2);
    int tried = 0;
    for (const auto set :
         {instruction_set::baseline, instruction_set::x86_64_v3, instruction_set::x86_64_v4}) {
      if (core::tables_of(set) == nullptr) continue;
      CAPTURE(to_string(set));
      ggml::router_rows_op<dispatch> op({}, dispatch{dispatched_kernels{set}});
      ggml_tensor* rows = op.build(ctx.get(), l.experts, l.router);
      compute(ctx, rows, 2);
      CHECK(op.take_error().empty());
      CHECK(test_support::relative_distance(floats_of(rows), exact) <= bound);
      ++tried;
    }
    CHECK(tried >= 1);
  }
}
