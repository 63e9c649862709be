/* Arrays of a type that is known when the program runs, on the host and copied to a GPU. */
#ifndef MPIROUTER_TESTS_C_GPU_DATA_H
#define MPIROUTER_TESTS_C_GPU_DATA_H

#include <mpi_router/c/mpi_router.h>

#include <stddef.h>

/* Ends the program where CUDA or an allocation fails: nothing can be checked then. */
void need(int code, const char* what);
/* Counts, and prints what is wrong, with what is being looked at. */
void check(int condition, const char* what);
void looking_at(const char* text);
int failures(void);
int checks(void);

size_t size_of(mpi_router_dtype dtype);
const char* name_of(mpi_router_dtype dtype);
double load(const void* data, mpi_router_dtype dtype, int64_t i);
void store(void* data, mpi_router_dtype dtype, int64_t i, double value);
/* The next number in (-1, 1), the same in every run. */
double next(void);

/* Memory on the GPU, and its image on the host, of which it is a copy. */
typedef struct memory {
  void* host;
  void* device;
  size_t bytes;
} memory;
memory make_memory(size_t bytes, int fill); /* every byte `fill` */
void upload(const memory* m);
void download(const memory* m);
void release(memory* m);

/* A matrix or experts in one memory, seen from both sides; element (i, j, k) of the host's image is at first
 * + i strides[0] + … */
typedef struct array {
  memory of;
  mpi_router_dtype dtype;
  int64_t shape[3], strides[3], first;
  memory table; /* of experts that have pointers: those of the device */
} array;

enum layout { NFD, NDF, HALF, INTERLEAVED, REVERSED, MISALIGNED, POINTERS, LAYOUTS };
extern const char* const layout_names[LAYOUTS];

array make_experts(mpi_router_dtype dtype, enum layout layout, int64_t n, int64_t f, int64_t d);
array make_matrix(mpi_router_dtype dtype, int64_t rows, int64_t cols);
void fill(array* a, double scale); /* with the next numbers, rounded to the type, and uploads them */
void release_array(array* a);
double at(const array* a, int64_t i, int64_t j, int64_t k);

mpi_router_experts device_experts(const array* a);
mpi_router_matrix device_matrix(const array* a);
/* The elements as doubles, contiguous; free them. */
double* in_double(const array* a);
/* |a - want| / |want| of all elements; what lies between them must be as it was made. */
double distance(const array* a, const double* want);

#endif
