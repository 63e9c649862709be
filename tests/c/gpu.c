/* The calls on a GPU beside those on the host, in every type and layout: rows, by-products, gradients in all
 * forms, the gate, graphs, bits that do not change, and what is refused where there is a device. The host's
 * are taken in f64 of the same numbers. An argument, whatever it says, takes one shape of each, for
 * sanitizers. Exit status: 0 if all is well, 77 where there is no GPU. */
#include "gpu_data.h"

#include <cuda_runtime_api.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUMBERS = 6 };

/* A layer on both sides, and what the host makes of it. */
typedef struct layer {
  array experts, router, grad_rows;
  double *rows, *grad_router, *grad_experts, *told[NUMBERS];
  uint8_t* statuses;
  mpi_router_options options;
} layer;

static int64_t count_of(const array* a) { return a->shape[0] * a->shape[1] * a->shape[2]; }

static double* doubles(int64_t count) {
  double* all = (double*)calloc((size_t)count + 1, sizeof(double));
  need(all == NULL, "calloc");
  return all;
}
static mpi_router_by_products by_products(double* const* numbers, uint8_t* statuses) {
  mpi_router_by_products told;
  told.statuses = statuses;
  told.rayleigh = numbers[0];
  told.cosine = numbers[1];
  told.residual = numbers[2];
  told.energy = numbers[3];
  told.row_norm = numbers[4];
  told.image_norm = numbers[5];
  return told;
}

/* Forward and backward on the host, in double. */
static void take_on_host(layer* l) {
  const int64_t n = l->experts.shape[0], f = l->experts.shape[1], d = l->experts.shape[2];
  double* const a = in_double(&l->experts);
  double* const r = in_double(&l->router);
  double* const g = in_double(&l->grad_rows);
  const mpi_router_experts experts = mpi_router_experts_nfd(a, MPIROUTER_F64, n, f, d);
  const mpi_router_experts to_experts = mpi_router_experts_nfd(l->grad_experts, MPIROUTER_F64, n, f, d);
  const mpi_router_matrix router = mpi_router_row_major(r, MPIROUTER_F64, n, d);
  const mpi_router_matrix upstream = mpi_router_row_major(g, MPIROUTER_F64, n, d);
  const mpi_router_matrix rows = mpi_router_row_major(l->rows, MPIROUTER_F64, n, d);
  const mpi_router_matrix to_router = mpi_router_row_major(l->grad_router, MPIROUTER_F64, n, d);
  const mpi_router_by_products told = by_products(l->told, l->statuses);
  mpi_router_buffer tape;
  need(mpi_router_tape_size(&experts, &l->options, &tape.bytes), "the size of the tape");
  tape.data = doubles(tape.bytes / 8 + 1);
  need(mpi_router_rows(&experts, &router, &l->options, &rows, &told, &tape, NULL), "rows on the host");
  need(mpi_router_rows_vjp(&experts, &router, &l->options, &tape, &upstream, &to_router, &to_experts,
                           MPIROUTER_WRITE, NULL),
       "the backward on the host");
  free(tape.data);
  free(a);
  free(r);
  free(g);
}

static layer make_layer(mpi_router_dtype experts, enum layout layout, mpi_router_dtype router,
                        const int64_t* shape) {
  const int64_t n = shape[0], f = shape[1], d = shape[2];
  layer l;
  int i;
  l.experts = make_experts(experts, layout, n, f, d);
  l.router = make_matrix(router, n, d);
  l.grad_rows = make_matrix(router, n, d);
  fill(&l.experts, 0.2);
  fill(&l.router, 1);
  fill(&l.grad_rows, 1);
  l.rows = doubles(n * d);
  l.grad_router = doubles(n * d);
  l.grad_experts = doubles(n * f * d);
  for (i = 0; i < NUMBERS; ++i) l.told[i] = doubles(n);
  l.statuses = (uint8_t*)doubles(n / 8 + 1);
  l.options = mpi_router_default_options();
  l.options.radius = 3;
  return l;
}
static void release_layer(layer* l) {
  int i;
  release_array(&l->experts);
  release_array(&l->router);
  release_array(&l->grad_rows);
  free(l->rows);
  free(l->grad_router);
  free(l->grad_experts);
  for (i = 0; i < NUMBERS; ++i) free(l->told[i]);
  free(l->statuses);
}

/* What a result of that type, of experts of that type, may be off by. The tape is in float. */
static double of_sums(mpi_router_dtype experts, int is_gradient) {
  return experts != MPIROUTER_F64 ? 1e-5 : is_gradient ? 1e-6 : 1e-12;
}
static double of_rounding(mpi_router_dtype result) {
  return result == MPIROUTER_BF16  ? 8e-3
         : result == MPIROUTER_F16 ? 1e-3
         : result == MPIROUTER_F32 ? 1e-6
                                   : 0;
}
static double bound(mpi_router_dtype result, mpi_router_dtype experts, int is_gradient) {
  const double sums = of_sums(experts, is_gradient), rounding = of_rounding(result);
  return sums > rounding ? sums : rounding;
}

/* By how much more a gradient may be off: the rows take ẑ(ẑ·ḡ) out of ḡ, and where little is left (in two
   columns there is a single direction for it) the rounding of both stays. */
static double left_of_upstream(const layer* l) {
  const int64_t n = l->router.shape[1], d = l->router.shape[2];
  double most = 1;
  int64_t i, k;
  for (i = 0; i < n; ++i) {
    double square = 0, dot = 0, all = 0;
    for (k = 0; k < d; ++k) {
      const double z = l->rows[i * d + k], g = at(&l->grad_rows, 0, i, k);
      square += z * z;
      dot += z * g;
      all += g * g;
    }
    if (square > 0 && all > 0) {
      const double left = 1 - dot * dot / (square * all); /* sin² */
      most = left < 1e-4 ? 100 : left < 1 / (most * most) ? 1 / sqrt(left) : most;
    }
  }
  return most;
}

/* By how much more sums may be off in that to the router: rounding of ẑ and ḡ goes through M, C/|rM| M, which
   is largest along ẑ, and what is left of ḡ through its small part (ẑ is near v1). */
static double left_by_gram(const layer* l) {
  const int64_t n = l->experts.shape[0], f = l->experts.shape[1], d = l->experts.shape[2];
  double most = 0, all = 0;
  int64_t i, j, k;
  for (i = 0; i < n; ++i) {
    double energy = 0, response = 0, upstream = 0, image = 0, square = 0; /* of C */
    double* const y = doubles(f);
    for (k = 0; k < d; ++k) square += l->rows[i * d + k] * l->rows[i * d + k];
    for (j = 0; j < f; ++j) {
      double along = 0;
      for (k = 0; k < d; ++k) {
        y[j] += at(&l->experts, i, j, k) * at(&l->router, 0, i, k);
        along += at(&l->experts, i, j, k) * l->rows[i * d + k];
      }
      energy += along * along;
    }
    for (k = 0; k < d; ++k) {
      double sum = 0;
      for (j = 0; j < f; ++j) sum += y[j] * at(&l->experts, i, j, k);
      image += sum * sum;
      upstream += at(&l->grad_rows, 0, i, k) * at(&l->grad_rows, 0, i, k);
      response += l->grad_router[i * d + k] * l->grad_router[i * d + k];
    }
    free(y);
    if (image > 0) most += energy * energy / square * upstream / image;
    all += response;
  }
  return all > 0 && most > all ? sqrt(most / all) : 1;
}

/* What the gradient to the router may be off by. */
static double router_bound(const layer* l) {
  const double most = of_rounding(l->router.dtype) + left_by_gram(l) * of_sums(l->experts.dtype, 1);
  check(most < 0.1, "a bound that holds nothing");
  return most;
}

static void is_near(const array* a, const double* want, double most, const char* what) {
  char text[96];
  double off;
  download(&a->of);
  off = distance(a, want);
  snprintf(text, sizeof text, "%s off by %.1e", what, off);
  check(off <= most, text);
}
static void same_bits(const memory* a, const memory* b, const char* what) {
  download(a);
  download(b);
  check(a->bytes == b->bytes && memcmp(a->host, b->host, a->bytes) == 0, what);
}

/* `cuda` with a workspace of its own, full of NaN. */
static mpi_router_cuda with_workspace(const mpi_router_cuda* cuda, memory* m, int64_t bytes) {
  mpi_router_cuda own = *cuda;
  *m = make_memory((size_t)bytes, 0xff);
  own.workspace.data = m->device;
  own.workspace.bytes = bytes;
  return own;
}
static mpi_router_cuda for_forward(const mpi_router_cuda* cuda, const layer* l, memory* m) {
  const mpi_router_experts experts = device_experts(&l->experts);
  int64_t bytes = 0;
  need(mpi_router_cuda_rows_workspace_size(cuda, &experts, &l->options, &bytes),
       "the workspace of a forward");
  return with_workspace(cuda, m, bytes);
}
static mpi_router_buffer made_buffer(memory* m, int64_t bytes) {
  mpi_router_buffer b;
  *m = make_memory((size_t)bytes, 0xff);
  b.data = m->device;
  b.bytes = bytes;
  return b;
}
static mpi_router_buffer made_tape(const layer* l, memory* m) {
  const mpi_router_experts experts = device_experts(&l->experts);
  int64_t bytes = 0;
  need(mpi_router_tape_size(&experts, &l->options, &bytes), "the size of a tape");
  return made_buffer(m, bytes);
}

static void forward(const mpi_router_cuda* cuda, const layer* l, const array* out,
                    const mpi_router_by_products* told, const mpi_router_buffer* tape) {
  const mpi_router_experts experts = device_experts(&l->experts);
  const mpi_router_matrix router = device_matrix(&l->router), rows = device_matrix(out);
  check(mpi_router_cuda_rows(cuda, &experts, &router, &l->options, &rows, told, tape) == MPIROUTER_OK,
        "a forward");
}

/* Numbers of each expert, and its status. */
static void check_by_products(const layer* l, const memory* numbers, const memory* statuses) {
  static const char* const names[NUMBERS] = {"rayleigh", "cosine",   "residual",
                                             "energy",   "row_norm", "image_norm"};
  const int64_t n = l->experts.shape[0];
  int64_t i;
  int k;
  download(numbers);
  download(statuses);
  for (k = 0; k < NUMBERS; ++k) {
    for (i = 0; i < n; ++i) {
      const double want = l->told[k][i], have = ((const double*)numbers->host)[k * n + i];
      const double scale = k == 2 ? l->told[0][i] : fabs(want); /* the residual is beside ρ */
      check(fabs(have - want) <= 2e-5 * scale, names[k]);
    }
  }
  check(memcmp(statuses->host, l->statuses, (size_t)n) == 0, "statuses");
}

/* Rows with all that they tell; into the router itself; the same bits again; several steps. */
static void check_forward(const mpi_router_cuda* cuda, layer* l) {
  const int64_t n = l->router.shape[1], d = l->router.shape[2];
  const double most = bound(l->router.dtype, l->experts.dtype, 0);
  const mpi_router_experts experts = device_experts(&l->experts);
  memory scratch, kept, numbers = make_memory((size_t)(NUMBERS * n) * 8, 0xff),
                        statuses = make_memory((size_t)n, 0xff);
  array out = make_matrix(l->router.dtype, n, d), again = make_matrix(l->router.dtype, n, d);
  mpi_router_cuda own = for_forward(cuda, l, &scratch);
  const mpi_router_buffer tape = made_tape(l, &kept);
  mpi_router_matrix state = device_matrix(&again);
  double* told[NUMBERS];
  mpi_router_by_products all;
  int k;
  for (k = 0; k < NUMBERS; ++k) told[k] = (double*)numbers.device + k * n;
  all = by_products(told, (uint8_t*)statuses.device);
  forward(&own, l, &out, &all, &tape);
  is_near(&out, l->rows, most, "rows");
  check_by_products(l, &numbers, &statuses);
  forward(&own, l, &again, NULL, NULL);
  same_bits(&out.of, &again.of, "two runs, with by-products and without");
  memcpy(again.of.host, l->router.of.host, again.of.bytes);
  upload(&again.of);
  check(mpi_router_cuda_stateful_rows(&own, &experts, &state, &l->options, NULL) == MPIROUTER_OK, "stateful");
  same_bits(&out.of, &again.of, "rows written back");
  own.inputs_at_rest = 1; /* the host has waited */
  forward(&own, l, &again, NULL, NULL);
  same_bits(&out.of, &again.of, "inputs at rest");
  release(&scratch);
  release(&kept);
  release(&numbers);
  release(&statuses);
  release_array(&out);
  release_array(&again);
}

static void check_steps(const mpi_router_cuda* cuda, layer* l) {
  const int64_t n = l->router.shape[1], d = l->router.shape[2];
  const mpi_router_options one = l->options;
  array out = make_matrix(l->router.dtype, n, d);
  memory scratch;
  mpi_router_cuda own;
  l->options.steps = 3;
  own = for_forward(cuda, l, &scratch);
  take_on_host(l);
  forward(&own, l, &out, NULL, NULL);
  is_near(&out, l->rows, 3 * bound(l->router.dtype, l->experts.dtype, 1),
          "three steps"); /* between them f32 */
  l->options = one;
  release(&scratch);
  release_array(&out);
}

/* Arguments of a backward on the GPU. */
typedef struct backward_call {
  mpi_router_cuda cuda;
  mpi_router_experts experts;
  mpi_router_matrix router, grad_rows;
  mpi_router_buffer tape;
  memory scratch, kept;
} backward_call;

static backward_call after_forward(const mpi_router_cuda* cuda, const layer* l,
                                   const mpi_router_experts* gradient, int32_t mode) {
  backward_call c;
  array out = make_matrix(l->router.dtype, l->router.shape[1], l->router.shape[2]);
  memory scratch;
  int64_t bytes = 0;
  const mpi_router_cuda own = for_forward(cuda, l, &scratch);
  c.experts = device_experts(&l->experts);
  c.router = device_matrix(&l->router);
  c.grad_rows = device_matrix(&l->grad_rows);
  c.tape = made_tape(l, &c.kept);
  forward(&own, l, &out, NULL, &c.tape);
  need((int)cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  release(&scratch);
  release_array(&out);
  need(mpi_router_cuda_rows_vjp_workspace_size(cuda, &c.experts, gradient, mode, &bytes),
       "the workspace of a backward");
  c.cuda = with_workspace(cuda, &c.scratch, bytes);
  return c;
}
static void end_backward(backward_call* c) {
  release(&c->scratch);
  release(&c->kept);
}

/* Written and accumulated, into a gradient of that type and layout. */
static void check_backward(const mpi_router_cuda* cuda, const layer* l, mpi_router_dtype type,
                           enum layout layout, int32_t mode) {
  const int64_t n = l->experts.shape[0], f = l->experts.shape[1], d = l->experts.shape[2];
  const int64_t count = n * f * d;
  array to_experts = make_experts(type, layout, n, f, d), to_router = make_matrix(l->router.dtype, n, d);
  const mpi_router_experts gradient = device_experts(&to_experts);
  const mpi_router_matrix router_gradient = device_matrix(&to_router);
  const mpi_router_matrix* wanted =
      l->experts.dtype == MPIROUTER_F32 && layout == HALF ? NULL : &router_gradient;
  backward_call c = after_forward(cuda, l, &gradient, mode);
  double* want = doubles(count);
  int64_t i;
  if (mode == MPIROUTER_ACCUMULATE) {
    double* before;
    fill(&to_experts, 1);
    before = in_double(&to_experts);
    memcpy(want, before, (size_t)count * 8);
    free(before);
  }
  for (i = 0; i < count; ++i) want[i] += l->grad_experts[i];
  check(mpi_router_cuda_rows_vjp(&c.cuda, &c.experts, &c.router, &l->options, &c.tape, &c.grad_rows, wanted,
                                 &gradient, mode) == MPIROUTER_OK,
        "a backward");
  is_near(&to_experts, want, left_of_upstream(l) * bound(type, l->experts.dtype, 1),
          mode == MPIROUTER_WRITE ? "the gradient written" : "the gradient added");
  if (wanted != NULL) {
    is_near(&to_router, l->grad_router, router_bound(l), "the gradient to the router");
  }
  free(want);
  end_backward(&c);
  release_array(&to_experts);
  release_array(&to_router);
}

/* Ā_i = p zᵀ + w rᵀ. */
static void multiply_out(const float* p, const array* router, const int64_t* shape, double* out) {
  const int64_t n = shape[0], f = shape[1], d = shape[2];
  const float *z = p + n * f, *w = z + n * d;
  int64_t i, j, k;
  for (i = 0; i < n; ++i)
    for (j = 0; j < f; ++j)
      for (k = 0; k < d; ++k)
        out[(i * f + j) * d + k] =
            (double)p[i * f + j] * z[i * d + k] + (double)w[i * f + j] * at(router, 0, i, k);
}

static void check_factored_and_detached(const mpi_router_cuda* cuda, const layer* l) {
  const int64_t n = l->experts.shape[0], d = l->experts.shape[2], count = count_of(&l->experts);
  const double most = router_bound(l);
  array to_router = make_matrix(l->router.dtype, n, d), again = make_matrix(l->router.dtype, n, d);
  const mpi_router_matrix first = device_matrix(&to_router), second = device_matrix(&again);
  backward_call c = after_forward(cuda, l, NULL, MPIROUTER_WRITE);
  memory m;
  int64_t bytes = 0, i;
  mpi_router_buffer factors;
  double *product = doubles(count), off = 0, all = 0;
  need(mpi_router_factors_size(&c.experts, &l->options, &bytes), "the size of the factors");
  factors = made_buffer(&m, bytes);
  check(mpi_router_cuda_rows_vjp_factored(&c.cuda, &c.experts, &c.router, &l->options, &c.tape, &c.grad_rows,
                                          &first, &factors) == MPIROUTER_OK,
        "a factored backward");
  is_near(&to_router, l->grad_router, most, "the gradient to the router, factored");
  download(&m);
  multiply_out((const float*)m.host, &l->router, l->experts.shape, product);
  for (i = 0; i < count; ++i) {
    off += (product[i] - l->grad_experts[i]) * (product[i] - l->grad_experts[i]);
    all += l->grad_experts[i] * l->grad_experts[i];
  }
  check(sqrt(off) <= left_of_upstream(l) * 1e-5 * sqrt(all) + 1e-30, "the factors");
  check(mpi_router_cuda_rows_vjp_detached(&c.cuda, &c.experts, &c.router, &l->options, &c.tape, &c.grad_rows,
                                          &second) == MPIROUTER_OK,
        "a detached backward");
  same_bits(&to_router.of, &again.of, "the gradient to the router, factored and detached");
  free(product);
  release(&m);
  end_backward(&c);
  release_array(&to_router);
  release_array(&again);
}

/* Forward and backward captured together: each replay gives the bits of the eager calls. */
static void check_graph(const mpi_router_cuda* cuda, const layer* l) {
  const int64_t n = l->experts.shape[0], f = l->experts.shape[1], d = l->experts.shape[2];
  array rows = make_matrix(l->router.dtype, n, d), to_router = make_matrix(l->router.dtype, n, d);
  array to_experts = make_experts(l->experts.dtype, NFD, n, f, d);
  array* const results[3] = {&rows, &to_router, &to_experts};
  const mpi_router_experts gradient = device_experts(&to_experts);
  const mpi_router_matrix to = device_matrix(&to_router);
  backward_call c = after_forward(cuda, l, &gradient, MPIROUTER_WRITE);
  memory scratch, eager[3];
  mpi_router_cuda own = for_forward(cuda, l, &scratch);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t run;
  int replay, k;
  need((int)cudaStreamCreate(&stream), "cudaStreamCreate");
  own.stream = c.cuda.stream = stream;
  for (replay = 0; replay < 3; ++replay) {
    if (replay < 2) { /* once eager, then captured */
      if (replay == 1) need((int)cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "BeginCapture");
      forward(&own, l, &rows, NULL, &c.tape);
      check(mpi_router_cuda_rows_vjp(&c.cuda, &c.experts, &c.router, &l->options, &c.tape, &c.grad_rows, &to,
                                     &gradient, MPIROUTER_WRITE) == MPIROUTER_OK,
            "a backward behind its forward");
      if (replay == 1) {
        need((int)cudaStreamEndCapture(stream, &graph), "EndCapture");
        need((int)cudaGraphInstantiateWithFlags(&run, graph, 0), "cudaGraphInstantiate");
      }
    }
    if (replay > 0) need((int)cudaGraphLaunch(run, stream), "cudaGraphLaunch");
    need((int)cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    for (k = 0; k < 3; ++k) {
      if (replay == 0) {
        eager[k] = make_memory(results[k]->of.bytes, 0);
        need(
            (int)cudaMemcpy(eager[k].device, results[k]->of.device, eager[k].bytes, cudaMemcpyDeviceToDevice),
            "copy");
      } else {
        same_bits(&eager[k], &results[k]->of, "a replay of a graph");
      }
      need((int)cudaMemset(results[k]->of.device, 0xff, results[k]->of.bytes), "cudaMemset");
    }
    need((int)cudaMemset(c.tape.data, 0xff, (size_t)c.tape.bytes), "cudaMemset");
    need((int)cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  need((int)cudaGraphExecDestroy(run), "cudaGraphExecDestroy");
  need((int)cudaGraphDestroy(graph), "cudaGraphDestroy");
  need((int)cudaStreamDestroy(stream), "cudaStreamDestroy");
  for (k = 0; k < 3; ++k) {
    release(&eager[k]);
    release_array(results[k]);
  }
  release(&scratch);
  end_backward(&c);
}

static void check_layer(const mpi_router_cuda* cuda, mpi_router_dtype type, enum layout layout,
                        const int64_t* shape, int number) {
  static const mpi_router_dtype routers[4] = {MPIROUTER_F32, MPIROUTER_BF16, MPIROUTER_F16, MPIROUTER_F64};
  const mpi_router_dtype router = routers[number % (type == MPIROUTER_F64 ? 4 : 3)];
  const mpi_router_dtype sums = mpi_router_sums_dtype(type);
  char text[160];
  layer l = make_layer(type, layout, router, shape);
  snprintf(text, sizeof text, "sm_%d, %s experts, %s [%d, %d, %d], %s router", cuda->capability,
           name_of(type), layout_names[layout], (int)shape[0], (int)shape[1], (int)shape[2], name_of(router));
  looking_at(text);
  take_on_host(&l);
  check_forward(cuda, &l);
  if (shape[1] > 1 && shape[2] > 1) { /* with F or D = 1 a step has one end: gradients are rounding */
    check_backward(cuda, &l, type, layout, MPIROUTER_WRITE);
    check_backward(cuda, &l, type, NFD, MPIROUTER_ACCUMULATE);
    if (sums != type) {
      check_backward(cuda, &l, sums, NFD, MPIROUTER_WRITE);
      check_backward(cuda, &l, sums, layout, MPIROUTER_ACCUMULATE);
    }
    check_factored_and_detached(cuda, &l);
  }
  check_graph(cuda, &l);
  check_steps(cuda, &l);
  release_layer(&l);
}

/* Rows without a step: kept or zero, as the host has them. */
static void check_statuses(const mpi_router_cuda* cuda) {
  static const int64_t shape[3] = {4, 6, 16};
  int32_t degenerate;
  for (degenerate = 0; degenerate < 2; ++degenerate) {
    layer l = make_layer(MPIROUTER_F32, NFD, MPIROUTER_F32, shape);
    int64_t k;
    looking_at(degenerate ? "rows without a step, zero" : "rows without a step, kept");
    l.options.degenerate = degenerate;
    for (k = 0; k < 16; ++k) store(l.router.of.host, MPIROUTER_F32, k, 0);
    for (k = 0; k < 6 * 16; ++k) store(l.experts.of.host, MPIROUTER_F32, 6 * 16 + k, 0);
    upload(&l.router.of);
    upload(&l.experts.of);
    take_on_host(&l);
    check(l.statuses[0] == MPIROUTER_STATUS_ZERO_ROW && l.statuses[1] == MPIROUTER_STATUS_ZERO_IMAGE,
          "the host's");
    check_forward(cuda, &l);
    check_backward(cuda, &l, MPIROUTER_F32, NFD, MPIROUTER_WRITE);
    release_layer(&l);
  }
}

static void check_empty(const mpi_router_cuda* cuda) {
  static const int64_t shapes[3][3] = {{0, 4, 8}, {3, 0, 8}, {3, 4, 0}};
  int s;
  for (s = 0; s < 3; ++s) {
    layer l = make_layer(MPIROUTER_BF16, NFD, MPIROUTER_F32, shapes[s]);
    array out = make_matrix(MPIROUTER_F32, shapes[s][0], shapes[s][2]);
    memory scratch;
    const mpi_router_cuda own = for_forward(cuda, &l, &scratch);
    looking_at("experts without elements");
    take_on_host(&l);
    forward(&own, &l, &out, NULL, NULL);
    is_near(&out, l.rows, 0, "rows");
    release(&scratch);
    release_array(&out);
    release_layer(&l);
  }
}

enum { TOKENS = 37, EXPERTS = 16, TOP_K = 4 };

/* Ids, weights, statuses and loads of the gate, beside the host's. */
static void compare_gates(const memory* weights, const memory* ids, const memory* statuses,
                          const memory* load, const float* want_weights, const int32_t* want_ids,
                          const uint8_t* want_statuses) {
  int32_t counts[EXPERTS] = {0};
  int i;
  download(weights);
  download(ids);
  download(statuses);
  download(load);
  for (i = 0; i < TOKENS * TOP_K; ++i) {
    check(((const int32_t*)ids->host)[i] == want_ids[i], "the experts of a token");
    check(fabs((double)((const float*)weights->host)[i] - want_weights[i]) <= 1e-6, "their weights");
    if (want_ids[i] >= 0) ++counts[want_ids[i]];
  }
  check(memcmp(statuses->host, want_statuses, TOKENS) == 0, "the statuses of tokens");
  check(memcmp(load->host, counts, sizeof counts) == 0, "the load");
}

static void check_gate(const mpi_router_cuda* cuda, int is_full) {
  float want_weights[TOKENS * TOP_K];
  int32_t want_ids[TOKENS * TOP_K];
  uint8_t want_statuses[TOKENS], mask[TOKENS];
  array logits = make_matrix(MPIROUTER_F32, TOKENS, EXPERTS), bias = make_matrix(MPIROUTER_F32, 1, EXPERTS);
  memory weights = make_memory(sizeof want_weights, 0xff), ids = make_memory(sizeof want_ids, 0xff);
  memory statuses = make_memory(TOKENS, 0xff), load = make_memory(EXPERTS * 4, 0),
         masks = make_memory(TOKENS, 0);
  mpi_router_gating_options options = mpi_router_default_gating_options(TOP_K);
  const mpi_router_matrix in = device_matrix(&logits);
  mpi_router_matrix host, out = mpi_router_row_major(weights.device, MPIROUTER_F32, TOKENS, TOP_K);
  const mpi_router_matrix host_out = mpi_router_row_major(want_weights, MPIROUTER_F32, TOKENS, TOP_K);
  mpi_router_vector selection = {NULL, MPIROUTER_F32, MPIROUTER_CUDA, EXPERTS, 1}, host_selection;
  int t;
  looking_at(is_full ? "a gate with bias, mask and groups" : "a gate");
  out.device = MPIROUTER_CUDA;
  fill(&logits, 3);
  fill(&bias, 1);
  for (t = 0; t < TOKENS; ++t) mask[t] = t % 5 == 0 ? MPIROUTER_STATUS_MASKED : MPIROUTER_STATUS_OK;
  memcpy(masks.host, mask, TOKENS);
  upload(&masks);
  if (is_full) {
    options.score_function = MPIROUTER_SIGMOID;
    options.n_group = 4;
    options.topk_group = 2;
    options.scaling_factor = 2.5;
  }
  host = mpi_router_row_major(logits.of.host, MPIROUTER_F32, TOKENS, EXPERTS);
  selection.data = bias.of.device;
  host_selection = selection;
  host_selection.device = MPIROUTER_HOST;
  host_selection.data = bias.of.host;
  need(mpi_router_gate(&host, &options, is_full ? &host_selection : NULL, is_full ? mask : NULL, &host_out,
                       want_ids, want_statuses, NULL),
       "the gate on the host");
  check(mpi_router_cuda_gate(cuda, &in, &options, is_full ? &selection : NULL,
                             is_full ? (const uint8_t*)masks.device : NULL, &out, (int32_t*)ids.device,
                             (uint8_t*)statuses.device, (int32_t*)load.device) == MPIROUTER_OK,
        "the gate");
  compare_gates(&weights, &ids, &statuses, &load, want_weights, want_ids, want_statuses);
  release(&weights);
  release(&ids);
  release(&statuses);
  release(&load);
  release(&masks);
  release_array(&logits);
  release_array(&bias);
}

/* The operands of a grouped product, as they are and as they were. */
enum { GROUPED_EXPERTS = 3, GROUPED_ROWS = 11 };
typedef struct grouped {
  mpi_router_cuda cuda;
  array grads, tokens, router, grads_before, tokens_before;
  memory factors, offsets, kept;
} grouped;

static array filled_matrix(mpi_router_dtype type, int64_t rows, int64_t cols) {
  array a = make_matrix(type, rows, cols);
  fill(&a, 1);
  return a;
}
static array copy_of(const array* a) {
  array copy = *a;
  copy.of.host = malloc(a->of.bytes + 1);
  need(copy.of.host == NULL, "malloc");
  memcpy(copy.of.host, a->of.host, a->of.bytes);
  return copy;
}
static grouped make_grouped(const mpi_router_cuda* cuda, mpi_router_dtype type, mpi_router_dtype router_type,
                            int64_t f, int64_t d) {
  const int64_t floats = GROUPED_EXPERTS * (2 * f + d);
  grouped g;
  int64_t i;
  g.grads = filled_matrix(type, GROUPED_ROWS, f);
  g.tokens = filled_matrix(type, GROUPED_ROWS, d);
  g.grads_before = copy_of(&g.grads);
  g.tokens_before = copy_of(&g.tokens);
  g.router = filled_matrix(router_type, GROUPED_EXPERTS, d);
  store(g.router.of.host, router_type, g.router.first + 1, NAN);
  upload(&g.router.of);
  g.factors = make_memory((size_t)floats * 4, 0);
  for (i = 0; i < floats; ++i) ((float*)g.factors.host)[i] = (float)next();
  upload(&g.factors);
  g.offsets = make_memory(GROUPED_EXPERTS * sizeof(int32_t), 0);
  g.cuda = with_workspace(cuda, &g.kept, 2 * GROUPED_EXPERTS * (f + d) * (int64_t)size_of(type));
  return g;
}
static void release_grouped(grouped* g) {
  free(g->grads_before.of.host);
  free(g->tokens_before.of.host);
  release(&g->kept);
  release(&g->offsets);
  release(&g->factors);
  release_array(&g->router);
  release_array(&g->tokens);
  release_array(&g->grads);
}

static void put_into(grouped* g, const int32_t* ends) {
  const mpi_router_matrix grads = device_matrix(&g->grads), tokens = device_matrix(&g->tokens),
                          router = device_matrix(&g->router);
  const mpi_router_buffer factors = {g->factors.device, (int64_t)g->factors.bytes};
  memcpy(g->offsets.host, ends, g->offsets.bytes);
  upload(&g->offsets);
  check(mpi_router_cuda_put_factors(&g->cuda, &grads, &tokens, (const int32_t*)g->offsets.device, &router,
                                    &factors) == MPIROUTER_OK,
        "factors in the padding");
  need((int)cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  download(&g->grads.of);
  download(&g->tokens.of);
}
static void check_restored(grouped* g) {
  const mpi_router_matrix grads = device_matrix(&g->grads), tokens = device_matrix(&g->tokens);
  check(mpi_router_cuda_restore_padding(&g->cuda, &grads, &tokens, (const int32_t*)g->offsets.device,
                                        GROUPED_EXPERTS) == MPIROUTER_OK,
        "the padding put back");
  need((int)cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  download(&g->grads.of);
  download(&g->tokens.of);
  check(memcmp(g->grads.of.host, g->grads_before.of.host, g->grads.of.bytes) == 0, "gradients as they were");
  check(memcmp(g->tokens.of.host, g->tokens_before.of.host, g->tokens.of.bytes) == 0, "tokens as they were");
}

/* The factors in the last two rows of each expert, rounded to their type, and all else as it was. */
static void check_put(const array* operand, const int32_t* ends, const float* first, const double* second,
                      const array* before) {
  const int64_t columns = operand->shape[2];
  int64_t t, k;
  int e;
  for (t = 0; t < GROUPED_ROWS; ++t)
    for (k = 0; k < columns; ++k) {
      double want = at(before, 0, t, k), most = 0;
      for (e = 0; e < GROUPED_EXPERTS; ++e) {
        if (t == ends[e] - 2) want = first[e * columns + k], most = of_rounding(operand->dtype);
        if (t == ends[e] - 1) want = second[e * columns + k], most = of_rounding(operand->dtype);
      }
      check(fabs(at(operand, 0, t, k) - want) <= most * fabs(want), "a row of a grouped operand");
    }
}
/* NaN in the last gradient of every expert that has one, and all else as it was. */
static void check_no_room(grouped* g, const int32_t* ends) {
  int64_t t, k;
  int e;
  put_into(g, ends);
  for (t = 0; t < GROUPED_ROWS; ++t) {
    int is_last = 0;
    for (e = 0; e < GROUPED_EXPERTS; ++e) {
      is_last = is_last || t == (ends[e] < GROUPED_ROWS ? ends[e] : GROUPED_ROWS) - 1;
    }
    for (k = 0; k < g->grads.shape[2]; ++k) {
      const double x = at(&g->grads, 0, t, k);
      check(is_last ? isnan(x) : x == at(&g->grads_before, 0, t, k), "a gradient of experts without room");
    }
  }
  check(memcmp(g->tokens.of.host, g->tokens_before.of.host, g->tokens.of.bytes) == 0,
        "tokens of experts without room");
  check_restored(g);
}
static void check_padding(const mpi_router_cuda* cuda, mpi_router_dtype type, mpi_router_dtype router_type,
                          int64_t f, int64_t d) {
  static const int32_t well[3] = {2, 7, GROUPED_ROWS};
  static const int32_t wrong[5][3] = {
      {2, 3, 11}, {2, 7, 10}, {5, 3, 5}, {-1, 7, 15}, {2147483647, -2147483647, 11}};
  grouped g = make_grouped(cuda, type, router_type, f, d);
  const float* const p = (const float*)g.factors.host;
  double *const w = doubles(GROUPED_EXPERTS * f), *const r = in_double(&g.router);
  int64_t i;
  looking_at("the padding of a grouped product");
  for (i = 0; i < GROUPED_EXPERTS * f; ++i) w[i] = p[GROUPED_EXPERTS * (f + d) + i];
  for (i = 0; i < GROUPED_EXPERTS * d; ++i) r[i] = isfinite(r[i]) ? r[i] : 0;
  put_into(&g, well);
  check_put(&g.grads, well, p, w, &g.grads_before);
  check_put(&g.tokens, well, p + GROUPED_EXPERTS * f, r, &g.tokens_before);
  check_restored(&g);
  for (i = 0; i < 5; ++i) check_no_room(&g, wrong[i]);
  free(r);
  free(w);
  release_grouped(&g);
}

static void is_refused(mpi_router_code code, mpi_router_code want, const char* text) {
  check(code == want && strstr(mpi_router_last_error(), text) != NULL, text);
}

/* Memory and devices that are not the call's: what test_gpu_calls.cpp cannot see without a device. */
static void check_refusals(const mpi_router_cuda* cuda) {
  static const int64_t shape[3] = {2, 3, 8};
  layer l = make_layer(MPIROUTER_F32, NFD, MPIROUTER_F32, shape);
  array out = make_matrix(MPIROUTER_F32, 2, 8);
  memory scratch;
  mpi_router_cuda own = for_forward(cuda, &l, &scratch);
  const mpi_router_experts experts = device_experts(&l.experts);
  const mpi_router_matrix router = device_matrix(&l.router), rows = device_matrix(&out);
  mpi_router_matrix wrong = rows;
  int devices = 0, reaches_host = 0;
  looking_at("what is refused");
  need((int)cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  need((int)cudaDeviceGetAttribute(&reaches_host, cudaDevAttrPageableMemoryAccess, cuda->device),
       "an attribute");
  wrong.data = out.of.host;
  if (!reaches_host) {
    is_refused(mpi_router_cuda_rows(&own, &experts, &router, NULL, &wrong, NULL, NULL),
               MPIROUTER_INVALID_ARGUMENT,
               "rows has the device MPIROUTER_CUDA, and its data is memory of the host");
  }
  own.workspace.bytes -= 1;
  is_refused(mpi_router_cuda_rows(&own, &experts, &router, NULL, &rows, NULL, NULL),
             MPIROUTER_INVALID_ARGUMENT, "a workspace of ");
  own.workspace.bytes += 1;
  if (devices > 1) {
    void* elsewhere = NULL;
    need((int)cudaSetDevice(1 - cuda->device), "cudaSetDevice");
    need((int)cudaMalloc(&elsewhere, 4096), "cudaMalloc");
    is_refused(mpi_router_cuda_rows(&own, &experts, &router, NULL, &rows, NULL, NULL),
               MPIROUTER_INVALID_ARGUMENT, "is current: call cudaSetDevice before");
    need((int)cudaSetDevice(cuda->device), "cudaSetDevice");
    wrong.data = elsewhere;
    is_refused(mpi_router_cuda_rows(&own, &experts, &router, NULL, &wrong, NULL, NULL),
               MPIROUTER_INVALID_ARGUMENT, "rows is memory of device 1");
    need((int)cudaFree(elsewhere), "cudaFree");
  }
  is_refused(mpi_router_rows(&experts, &router, NULL, &rows, NULL, NULL, NULL), MPIROUTER_UNSUPPORTED,
             "call mpi_router_cuda_rows");
  forward(&own, &l, &out, NULL, NULL); /* the process and its device live on */
  take_on_host(&l);
  is_near(&out, l.rows, 1e-5, "rows after what was refused");
  release(&scratch);
  release_array(&out);
  release_layer(&l);
}

static void check_all(const mpi_router_cuda* cuda, int shapes_of_each) {
  static const int64_t shapes[5][3] = {{3, 50, 77}, {1, 1, 1}, {1, 2, 2}, {4, 96, 256}, {2, 33, 1024}};
  static const mpi_router_dtype types[4] = {MPIROUTER_BF16, MPIROUTER_F32, MPIROUTER_F16, MPIROUTER_F64};
  int t, layout, s, number = 0;
  for (t = 0; t < 4; ++t)
    for (layout = 0; layout < LAYOUTS; ++layout)
      for (s = 0; s < shapes_of_each; ++s)
        check_layer(cuda, types[t], (enum layout)layout, shapes[s], number++);
  check_statuses(cuda);
  check_empty(cuda);
  for (t = 0; t < 4; ++t) {
    check_padding(cuda, types[t], types[t], 24, 40);
    check_padding(cuda, types[t], types[3 - t], 7, 1000);
    check_padding(cuda, types[t], MPIROUTER_F32, 1, 1);
  }
  check_gate(cuda, 0);
  check_gate(cuda, 1);
  check_refusals(cuda);
}

int main(int count, char** words) {
  const int shapes_of_each = count > 1 ? 1 : 5;
  int devices = 0;
  mpi_router_cuda cuda;
  (void)words;
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    printf("skipped: no CUDA device\n");
    return 77;
  }
  need(mpi_router_cuda_of_current_device(&cuda), "mpi_router_cuda_of_current_device");
  check_all(&cuda, shapes_of_each);
  if (cuda.capability >= 90) { /* along the path of older devices, too */
    cuda.capability = 80;
    check_all(&cuda, shapes_of_each);
  }
  printf("the C interface on GPUs, sm_%d, %s on the host: %d checks, %d failures\n", cuda.capability,
         mpi_router_instruction_set(), checks(), failures());
  return failures() == 0 ? 0 : 1;
}
