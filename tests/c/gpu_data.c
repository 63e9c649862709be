#include "gpu_data.h"

#include <cuda_runtime_api.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checked = 0, failed = 0;
static char context[160] = "";

void need(int code, const char* what) {
  if (code != 0) {
    printf("FAILED: %s: %d, %s\n", what, code, mpi_router_last_error());
    exit(1);
  }
}
void check(int condition, const char* what) {
  ++checked;
  if (!condition) {
    printf("FAILED: %s: %s (%s)\n", context, what, mpi_router_last_error());
    ++failed;
  }
}
void looking_at(const char* text) { strncpy(context, text, sizeof context - 1); }
int failures(void) { return failed; }
int checks(void) { return checked; }

size_t size_of(mpi_router_dtype dtype) { return dtype == MPIROUTER_F64 ? 8 : dtype == MPIROUTER_F32 ? 4 : 2; }
const char* name_of(mpi_router_dtype dtype) {
  static const char* const names[] = {"none", "f64", "f32", "bf16", "f16"};
  return names[dtype];
}

/* f16 of magnitudes that the numbers here have: subnormal ones become multiples of 2^-24, as they are. */
static double from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25));
}
static uint16_t to_half(double value) {
  int exponent = 0;
  const uint16_t sign = signbit(value) ? 0x8000 : 0;
  double rounded;
  value = fabs(value);
  frexp(value, &exponent);
  if (exponent < -13) return (uint16_t)(sign | (uint16_t)rint(ldexp(value, 24)));
  rounded = rint(ldexp(value, 11 - exponent)); /* 1024 … 2048 */
  if (rounded == 2048) {
    rounded = 1024;
    ++exponent;
  }
  return (uint16_t)(sign | (uint16_t)((exponent + 14) << 10) | (uint16_t)(rounded - 1024));
}

double load(const void* data, mpi_router_dtype dtype, int64_t i) {
  const char* from = (const char*)data + (size_t)i * size_of(dtype);
  double wide;
  float narrow;
  uint32_t bits;
  uint16_t half;
  if (dtype == MPIROUTER_F64) return memcpy(&wide, from, 8), wide;
  if (dtype == MPIROUTER_F32) return memcpy(&narrow, from, 4), (double)narrow;
  memcpy(&half, from, 2);
  if (dtype == MPIROUTER_F16) return from_half(half);
  bits = (uint32_t)half << 16;
  return memcpy(&narrow, &bits, 4), (double)narrow;
}
void store(void* data, mpi_router_dtype dtype, int64_t i, double value) {
  char* to = (char*)data + (size_t)i * size_of(dtype);
  const float narrow = (float)value;
  uint32_t bits;
  uint16_t half;
  if (dtype == MPIROUTER_F64) {
    memcpy(to, &value, 8);
    return;
  }
  if (dtype == MPIROUTER_F32) {
    memcpy(to, &narrow, 4);
    return;
  }
  memcpy(&bits, &narrow, 4); /* bf16 is cut: any value of it will do */
  half = dtype == MPIROUTER_F16 ? to_half(value) : (uint16_t)(bits >> 16);
  memcpy(to, &half, 2);
}

double next(void) {
  static uint64_t state = 20261129;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (double)(state >> 11) / 4503599627370496.0 - 1.0;
}

memory make_memory(size_t bytes, int value) {
  memory m;
  m.bytes = bytes;
  m.host = malloc(bytes > 0 ? bytes : 1);
  need(m.host == NULL, "malloc");
  memset(m.host, value, bytes);
  need((int)cudaMalloc(&m.device, bytes > 0 ? bytes : 1), "cudaMalloc");
  upload(&m);
  return m;
}
void upload(const memory* m) {
  need((int)cudaMemcpy(m->device, m->host, m->bytes, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
}
void download(const memory* m) {
  need((int)cudaMemcpy(m->host, m->device, m->bytes, cudaMemcpyDeviceToHost), "cudaMemcpy from the device");
}
void release(memory* m) {
  if (m->host == NULL) return;
  free(m->host);
  need((int)cudaFree(m->device), "cudaFree");
  m->host = m->device = NULL;
}

const char* const layout_names[LAYOUTS] = {
    "nfd", "ndf", "half of a fused tensor", "interleaved", "reversed", "misaligned", "pointers"};

static array made(mpi_router_dtype dtype, int64_t elements) {
  array a;
  memset(&a, 0, sizeof a);
  a.dtype = dtype;
  a.of = make_memory((size_t)elements * size_of(dtype), 0xff); /* NaN in every type */
  return a;
}
static void set3(int64_t* to, int64_t x, int64_t y, int64_t z) {
  to[0] = x;
  to[1] = y;
  to[2] = z;
}

/* The last expert lies first. */
static void point_at_experts(array* a) {
  int64_t i;
  const int64_t n = a->shape[0];
  a->table = make_memory((size_t)n * sizeof(void*), 0);
  for (i = 0; i < n; ++i) {
    ((void**)a->table.host)[i] =
        (char*)a->of.device + (size_t)((n - 1 - i) * a->shape[1] * a->shape[2]) * size_of(a->dtype);
  }
  upload(&a->table);
}

array make_experts(mpi_router_dtype dtype, enum layout layout, int64_t n, int64_t f, int64_t d) {
  array a = made(dtype, 2 * n * f * d + 1);
  set3(a.shape, n, f, d);
  set3(a.strides, f * d, d, 1);
  if (layout == NDF) set3(a.strides, f * d, 1, f);
  if (layout == HALF) set3(a.strides, 2 * f * d, d, 1);
  if (layout == INTERLEAVED) set3(a.strides, 2 * f * d, 2 * d, 1);
  if (layout == HALF) a.first = f * d;
  if (layout == MISALIGNED) a.first = 1;
  if (layout == REVERSED) {
    a.strides[1] = -d;
    a.first = f > 0 ? (f - 1) * d : 0;
  }
  if (layout == POINTERS) point_at_experts(&a);
  return a;
}
array make_matrix(mpi_router_dtype dtype, int64_t rows, int64_t cols) {
  array a = made(dtype, rows * cols);
  set3(a.shape, 1, rows, cols);
  set3(a.strides, 0, cols, 1);
  return a;
}

static int64_t place_of(const array* a, int64_t i, int64_t j, int64_t k) {
  const int64_t expert = a->table.host != NULL ? a->shape[0] - 1 - i : i;
  return a->first + expert * a->strides[0] + j * a->strides[1] + k * a->strides[2];
}
double at(const array* a, int64_t i, int64_t j, int64_t k) {
  return load(a->of.host, a->dtype, place_of(a, i, j, k));
}
void fill(array* a, double scale) {
  int64_t i, j, k;
  for (i = 0; i < a->shape[0]; ++i)
    for (j = 0; j < a->shape[1]; ++j)
      for (k = 0; k < a->shape[2]; ++k) store(a->of.host, a->dtype, place_of(a, i, j, k), scale * next());
  upload(&a->of);
}
void release_array(array* a) {
  release(&a->of);
  release(&a->table);
}

mpi_router_experts device_experts(const array* a) {
  mpi_router_experts e = {NULL, NULL, 0, MPIROUTER_CUDA, {0, 0, 0}, {0, 0, 0}};
  e.dtype = a->dtype;
  e.data = (char*)a->of.device + (size_t)a->first * size_of(a->dtype);
  memcpy(e.shape, a->shape, sizeof e.shape);
  memcpy(e.strides, a->strides, sizeof e.strides);
  if (a->table.device != NULL) {
    e.data = NULL;
    e.pointers = (void* const*)a->table.device;
  }
  return e;
}
mpi_router_matrix device_matrix(const array* a) {
  mpi_router_matrix m = {NULL, 0, MPIROUTER_CUDA, {0, 0}, {0, 0}};
  m.data = a->of.device;
  m.dtype = a->dtype;
  memcpy(m.shape, a->shape + 1, sizeof m.shape);
  memcpy(m.strides, a->strides + 1, sizeof m.strides);
  return m;
}

double* in_double(const array* a) {
  const int64_t f = a->shape[1], d = a->shape[2];
  int64_t i, j, k;
  double* all = (double*)malloc((size_t)(a->shape[0] * f * d + 1) * sizeof(double));
  need(all == NULL, "malloc");
  for (i = 0; i < a->shape[0]; ++i)
    for (j = 0; j < f; ++j)
      for (k = 0; k < d; ++k) all[(i * f + j) * d + k] = at(a, i, j, k);
  return all;
}

/* How many elements are still what they were made of. */
static int64_t untouched(const array* a) {
  const unsigned char* bytes = (const unsigned char*)a->of.host;
  const size_t size = size_of(a->dtype);
  int64_t count = 0;
  size_t i, k;
  for (i = 0; i < a->of.bytes; i += size) {
    for (k = 0; k < size && bytes[i + k] == 0xff; ++k) continue;
    count += k == size;
  }
  return count;
}

double distance(const array* a, const double* want) {
  const int64_t count = a->shape[0] * a->shape[1] * a->shape[2];
  double* const have = in_double(a);
  double off = 0, all = 0;
  int64_t i;
  for (i = 0; i < count; ++i) {
    off += (have[i] - want[i]) * (have[i] - want[i]);
    all += want[i] * want[i];
  }
  free(have);
  check((int64_t)(a->of.bytes / size_of(a->dtype)) - untouched(a) == count,
        "elements beside it were written");
  return all > 0 ? sqrt(off / all) : sqrt(off);
}
