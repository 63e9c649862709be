// Outputs that may not be written: one call for each number that CALL may be, or all of them for 0.
#include <mpi_router/mpi_router.hpp>

using namespace mpi_router;

#ifdef MISTAKE
using written = const float;
#else
using written = float;
#endif

struct arguments {
  expert_batch_view<const float> experts;
  expert_batch_view<float> to_experts;
  matrix_view<const float> in;
  matrix_view<float> out;
  vector_view<float> work;
  router_factors<float> factors;
  router_options options;
};

void use(const arguments& a, const matrix_view<written>& out, const expert_batch_view<written>& to_experts) {
  constexpr auto write = gradient_mode::write;
#if CALL == 0 || CALL == 1
  router_rows(a.experts, a.in, out, a.options, a.work);
#endif
#if CALL == 0 || CALL == 2
  stateful_router_rows(a.experts, out, a.options, a.work);
#endif
#if CALL == 0 || CALL == 3
  router_rows_vjp(a.experts, a.in, a.work, a.in, a.options, out, a.to_experts, write, a.work);
#endif
#if CALL == 0 || CALL == 4
  router_rows_vjp(a.experts, a.in, a.work, a.in, a.options, a.out, to_experts, write, a.work);
#endif
#if CALL == 0 || CALL == 5
  router_rows_vjp_factored(a.experts, a.in, a.work, a.in, a.options, out, a.factors, write, a.work);
#endif
#if CALL == 0 || CALL == 6
  router_rows_vjp_detached(a.experts, a.in, a.work, a.in, a.options, out, write, a.work);
#endif
#if CALL == 0 || CALL == 7
  add_factors(a.factors, to_experts, write);
#endif
#if CALL == 0 || CALL == 8
  add_rank2<float>({}, out, write);
#endif
#if CALL == 0 || CALL == 9
  z_loss_vjp(a.in, 1.0F, out, write);
#endif
#if CALL == 0 || CALL == 10
  router_logits(a.in, a.in, out);
#endif
#if CALL == 0 || CALL == 11
  apply_experts(reference{}, a.experts, a.in, out, a.work, a.work);
#endif
}
