/* What a C program does with the library: forward, backward, gate and certificates, each checked against
 * numbers that can be had by hand. Compiled as C99 and as C++; returns 0 if all is as it should be. */
#include <mpi_router/c/mpi_router.h>
#include <mpi_router/c/mpi_router.h> /* twice: it guards itself */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

static void check(int condition, const char* what) {
  if (!condition) {
    printf("WRONG: %s (%s)\n", what, mpi_router_last_error());
    ++failures;
  }
}
static int near(double a, double b) { return fabs(a - b) < 1e-12; }

/* A = diag(2, 1), r = (1, 1): r M = (4, 1). */
static double gate_matrix[4] = {2, 0, 0, 1};
static double router_row[2] = {1, 1};

static void run_in_order(void* context, int64_t tasks, void (*task)(void*, int64_t), void* data) {
  int64_t i;
  *(int64_t*)context += tasks;
  for (i = tasks; i > 0; --i) task(data, i - 1);
}

static void forward_and_backward(void) {
  double rows[2], grad_rows[2] = {0, 1}, grad_router[2] = {9, 9}, grad_gate[4] = {9, 9, 9, 9},
                  again[4] = {0, 0, 0, 0};
  double rayleigh = 0, cosine = 0;
  uint8_t status = 77;
  int64_t bytes = 0, ran = 0;
  mpi_router_experts experts = mpi_router_experts_nfd(gate_matrix, MPIROUTER_F64, 1, 2, 2);
  mpi_router_experts gradient = mpi_router_experts_nfd(grad_gate, MPIROUTER_F64, 1, 2, 2);
  mpi_router_experts from_factors = mpi_router_experts_nfd(again, MPIROUTER_F64, 1, 2, 2);
  mpi_router_matrix router = mpi_router_row_major(router_row, MPIROUTER_F64, 1, 2);
  mpi_router_matrix out = mpi_router_row_major(rows, MPIROUTER_F64, 1, 2);
  mpi_router_matrix incoming = mpi_router_row_major(grad_rows, MPIROUTER_F64, 1, 2);
  mpi_router_matrix to_router = mpi_router_row_major(grad_router, MPIROUTER_F64, 1, 2);
  mpi_router_options options = mpi_router_default_options();
  mpi_router_by_products told;
  mpi_router_buffer tape, factors;
  mpi_router_threads threads;
  threads.parallel_for = run_in_order;
  threads.context = &ran;
  memset(&told, 0, sizeof told);
  told.statuses = &status;
  told.rayleigh = &rayleigh;
  told.cosine = &cosine;
  options.radius_rule = MPIROUTER_RADIUS_FIXED;
  options.radius = sqrt(17.0);

  check(mpi_router_tape_size(&experts, &options, &bytes) == MPIROUTER_OK && bytes == 4 * 8, "the tape");
  tape.data = malloc((size_t)bytes);
  tape.bytes = bytes;
  check(mpi_router_rows(&experts, &router, &options, &out, &told, &tape, &threads) == MPIROUTER_OK,
        "forward");
  check(near(rows[0], 4) && near(rows[1], 1) && ran > 0, "r' = (4, 1)");
  check(status == MPIROUTER_STATUS_OK && near(rayleigh, 2.5) && near(cosine, 2.5 / sqrt(17.0 / 2)),
        "by-products");
  check(strcmp(mpi_router_status_name(status), "ok") == 0, "the name of a status");

  /* With z = rM = (4, 1): z̄ = (C/|z|)(ḡ - ẑ(ẑ·ḡ)) = (-4, 16)/17, r̄ = z̄M = (-16, 16)/17. */
  check(mpi_router_rows_vjp(&experts, &router, &options, &tape, &incoming, &to_router, &gradient,
                            MPIROUTER_WRITE, NULL) == MPIROUTER_OK,
        "backward");
  check(near(grad_router[0], -16.0 / 17) && near(grad_router[1], 16.0 / 17), "the gradient to the router");
  /* Ā = (Ar) z̄ᵀ + (A z̄) rᵀ, Ar = (2, 1), A z̄ = (-8, 16)/17. */
  check(near(grad_gate[0], -16.0 / 17) && near(grad_gate[1], 24.0 / 17) && near(grad_gate[2], 12.0 / 17) &&
            near(grad_gate[3], 32.0 / 17),
        "the gradient to the experts");
  check(mpi_router_rows_vjp(&experts, &router, &options, &tape, &incoming, &to_router, &gradient,
                            MPIROUTER_ACCUMULATE, NULL) == MPIROUTER_OK,
        "accumulated");
  check(near(grad_router[0], -32.0 / 17) && near(grad_gate[3], 64.0 / 17), "twice the gradients");

  check(mpi_router_factors_size(&experts, &options, &bytes) == MPIROUTER_OK && bytes == 8 * 8, "the factors");
  factors.data = malloc((size_t)bytes);
  factors.bytes = bytes;
  check(mpi_router_rows_vjp_factored(&experts, &router, &options, &tape, &incoming, &to_router, &factors,
                                     MPIROUTER_WRITE, NULL) == MPIROUTER_OK,
        "factored");
  check(mpi_router_add_factors(&factors, MPIROUTER_F64, &options, 2.0, &from_factors, MPIROUTER_ACCUMULATE,
                               NULL) == MPIROUTER_OK &&
            near(again[3], 64.0 / 17),
        "the factors added up");
  check(mpi_router_rows_vjp_detached(&experts, &router, &options, &tape, &incoming, &to_router,
                                     MPIROUTER_WRITE, NULL) == MPIROUTER_OK &&
            near(grad_router[1], 16.0 / 17),
        "detached");
  check(mpi_router_stateful_rows(&experts, &incoming, &options, NULL, NULL) == MPIROUTER_OK &&
            near(grad_rows[0], 0) && near(grad_rows[1], sqrt(17.0)),
        "stateful");
  free(tape.data);
  free(factors.data);
}

/* Two tokens, three experts, sigmoid without renormalising: the weights are sigmoids. */
static void gate(void) {
  float logits[6] = {0, 2, -1, 3, 0, 1}, weights[4], grad_weights[4] = {1, 0, 0, 1}, grad_logits[6];
  int32_t chosen[4];
  uint8_t statuses[2];
  mpi_router_gating_options options = mpi_router_default_gating_options(2);
  mpi_router_matrix in = mpi_router_row_major(logits, MPIROUTER_F32, 2, 3);
  mpi_router_matrix out = mpi_router_row_major(weights, MPIROUTER_F32, 2, 2);
  mpi_router_matrix incoming = mpi_router_row_major(grad_weights, MPIROUTER_F32, 2, 2);
  mpi_router_matrix to_logits = mpi_router_row_major(grad_logits, MPIROUTER_F32, 2, 3);
  options.score_function = MPIROUTER_SIGMOID;
  options.renormalize = 0;
  check(mpi_router_gate(&in, &options, NULL, NULL, &out, chosen, statuses, NULL) == MPIROUTER_OK, "the gate");
  check(chosen[0] == 1 && chosen[1] == 0 && chosen[2] == 0 && chosen[3] == 2, "the experts");
  check(fabs(weights[1] - 0.5) < 1e-6 && statuses[1] == MPIROUTER_STATUS_OK, "the weights");
  check(mpi_router_gate_vjp(&in, &options, NULL, chosen, statuses, &incoming, &to_logits, MPIROUTER_WRITE,
                            NULL) == MPIROUTER_OK,
        "the gradient of the gate");
  check(fabs(grad_logits[1] - weights[0] * (1 - weights[0])) < 1e-6 && grad_logits[0] == 0,
        "a sigmoid's derivative");
}

/* The principal direction of diag(2, 1) is (1, 0), 45° from (1, 1). */
static void certificates(void) {
  double directions[2], quarter = atan(1.0);
  mpi_router_direction found;
  mpi_router_row_certificate certificate;
  mpi_router_experts experts = mpi_router_experts_nfd(gate_matrix, MPIROUTER_F64, 1, 2, 2);
  mpi_router_matrix rows = mpi_router_row_major(router_row, MPIROUTER_F64, 1, 2);
  mpi_router_matrix out = mpi_router_row_major(directions, MPIROUTER_F64, 1, 2);
  check(mpi_router_find_directions(&experts, &rows, NULL, &found, &out, NULL) == MPIROUTER_OK, "find");
  check(found.certainty == MPIROUTER_CERTAINTY_RIGOROUS && found.sigma_low <= 2 && 2 <= found.sigma_high,
        "the largest singular value");
  check(fabs(fabs(directions[0]) - 1) < 1e-9 && fabs(directions[1]) < 1e-9, "the direction");
  check(mpi_router_certify_rows(&experts, &rows, &found, &out, &certificate, NULL) == MPIROUTER_OK,
        "certify");
  check(certificate.angle_low <= quarter && quarter <= certificate.angle_high &&
            certificate.angle_high - certificate.angle_low < 1e-6,
        "the angle of the row");
}

static void refusals(void) {
  double rows[2] = {5, 5};
  mpi_router_experts experts = mpi_router_experts_nfd(gate_matrix, MPIROUTER_F64, 1, 2, 2);
  mpi_router_matrix router = mpi_router_row_major(router_row, MPIROUTER_F64, 1, 2);
  mpi_router_matrix wrong = mpi_router_row_major(rows, MPIROUTER_F64, 2, 1);
  check(mpi_router_rows(&experts, &router, NULL, &wrong, NULL, NULL, NULL) == MPIROUTER_INVALID_ARGUMENT,
        "refused");
  check(strstr(mpi_router_last_error(), "rows is [2, 1], not [1, 2]") != NULL && rows[0] == 5,
        "and says why");
  check(strcmp(mpi_router_code_name(MPIROUTER_INVALID_ARGUMENT), "invalid_argument") == 0,
        "the name of a code");
}

int main(void) {
  forward_and_backward();
  gate();
  certificates();
  refusals();
  printf("mpi_router %s, %s: %d failures\n", mpi_router_version(), mpi_router_instruction_set(), failures);
  return failures == 0 ? 0 : 1;
}
