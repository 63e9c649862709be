/** @file
 * mpi_router for C (C99) and for whatever can call C: the batched step of a MoE router over its experts, its
 * gradients, the gate and certificates, behind types, shapes and strides that are known when the program
 * runs. Link mpi_router::c (shared) or mpi_router::c_static; docs/guide-c.md has whole programs.
 *
 * Every function that can fail returns a mpi_router_code and leaves the process alive; mpi_router_last_error
 * says what was wrong, on the thread that called. Mistakes are found before anything is written, except
 * those of a parallel_for. Memory is the caller's; a call on the host allocates its scratch and frees it
 * before it returns (each function says how much). Functions may be called from any number of threads at
 * once. Results are the same, bit for bit, for any number of threads, and those of the C++ library with the
 * backend `dispatch`. Memory on a GPU goes through the same structs, to functions named mpi_router_cuda_….
 */
#ifndef MPIROUTER_C_MPI_ROUTER_H
#define MPIROUTER_C_MPI_ROUTER_H

/* NOLINTBEGIN: it is C, also where clang-tidy reads it as C++ */
#include <stdint.h>

#if defined(_WIN32)
#define MPIROUTER_C_API
#elif defined(__GNUC__)
#define MPIROUTER_C_API __attribute__((visibility("default")))
#else
#define MPIROUTER_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- What happened ------------------------------------------------------------------------------ */

/** What a call returns. */
typedef int32_t mpi_router_code;
enum {
  MPIROUTER_OK = 0,
  MPIROUTER_INVALID_ARGUMENT = 1, /**< a mistake: shapes, null, overlap, a value that is none */
  MPIROUTER_UNSUPPORTED = 2,      /**< well said, but this library does not do it: types, a device */
  MPIROUTER_OUT_OF_MEMORY = 3,    /**< the scratch of the call could not be allocated */
  MPIROUTER_INTERNAL = 4,         /**< a defect of this library: please report it */
  MPIROUTER_DEVICE_ERROR = 5      /**< a call of the CUDA runtime failed: the text has its name and reason */
};

/** What the last call that failed on this thread found wrong, one line; "" if none has. Valid until the next
 * call that fails on this thread, or the thread ends. */
MPIROUTER_C_API const char* mpi_router_last_error(void);

/** The name of a code, "invalid_argument" say; "unknown" for what is none. */
MPIROUTER_C_API const char* mpi_router_code_name(mpi_router_code code);

/** The version of the library that is linked, "0.1.0". */
MPIROUTER_C_API const char* mpi_router_version(void);

/** The instruction set that the kernels of the host were chosen for: "baseline", "x86-64-v3" or "x86-64-v4";
 * "plain" where the library was built without such kernels. */
MPIROUTER_C_API const char* mpi_router_instruction_set(void);

/* ---- Arrays ------------------------------------------------------------------------------------- */

/** How an element is stored. 0 is none of them, so that a struct that was not filled in is refused. */
typedef int32_t mpi_router_dtype;
enum { MPIROUTER_F64 = 1, MPIROUTER_F32 = 2, MPIROUTER_BF16 = 3, MPIROUTER_F16 = 4 };

/** Where memory is: all arrays of a call are on one side. Functions named mpi_router_cuda_… take memory on a
 * GPU, the others that of the host; memory of the other side is refused as unsupported. */
typedef int32_t mpi_router_device;
enum { MPIROUTER_HOST = 0, MPIROUTER_CUDA = 1 };

/** The gate matrices A_i [F, D] of N experts, in any layout: element (i, f, d) lies i · strides[0] + f ·
 * strides[1] + d · strides[2] elements from data, or, where there are pointers, f · strides[1] + d ·
 * strides[2] from pointers[i]. D is the length of a token. The functions below fill it in by the name of a
 * layout; nothing is guessed from shapes. What only reads it never writes through it. */
typedef struct mpi_router_experts {
  void* data;            /**< of element (0, 0, 0) */
  void* const* pointers; /**< one for each expert, in place of data and strides[0]; or null. On a GPU the
                              table is in its memory, too, and is not looked at by the host */
  mpi_router_dtype dtype;
  mpi_router_device device;
  int64_t shape[3];   /**< N, F, D */
  int64_t strides[3]; /**< in elements; may be negative */
} mpi_router_experts;

/** A matrix: element (i, j) is at data[i * strides[0] + j * strides[1]]. Router and rows are [N, D]. */
typedef struct mpi_router_matrix {
  void* data;
  mpi_router_dtype dtype;
  mpi_router_device device;
  int64_t shape[2];
  int64_t strides[2]; /**< in elements; may be negative */
} mpi_router_matrix;

/** A vector: element i is at data[i * stride]. */
typedef struct mpi_router_vector {
  void* data;
  mpi_router_dtype dtype;
  mpi_router_device device;
  int64_t size;
  int64_t stride; /**< in elements; may be negative */
} mpi_router_vector;

/** Contiguous experts [N, F, D], each stored row one neuron, as PyTorch stores gate_proj.weight. */
MPIROUTER_C_API mpi_router_experts mpi_router_experts_nfd(const void* data, mpi_router_dtype dtype,
                                                          int64_t num_experts, int64_t ffn_dim,
                                                          int64_t hidden_dim);
/** Contiguous experts [N, D, F], the paper's W_g of each. */
MPIROUTER_C_API mpi_router_experts mpi_router_experts_ndf(const void* data, mpi_router_dtype dtype,
                                                          int64_t num_experts, int64_t ffn_dim,
                                                          int64_t hidden_dim);
/** One pointer for each expert, each to a matrix stored [F, D]. The table stays the caller's. */
MPIROUTER_C_API mpi_router_experts mpi_router_experts_fd_pointers(void* const* pointers,
                                                                  mpi_router_dtype dtype, int64_t num_experts,
                                                                  int64_t ffn_dim, int64_t hidden_dim);
/** A contiguous matrix, row after row, as in C, PyTorch and NumPy. */
MPIROUTER_C_API mpi_router_matrix mpi_router_row_major(const void* data, mpi_router_dtype dtype, int64_t rows,
                                                       int64_t cols);

/* ---- Threads ------------------------------------------------------------------------------------ */

/** The caller's threads. parallel_for calls task(task_data, i) once for each i in [0, tasks), in any order,
 * on any threads, and returns when all are done. It must not throw, nor leave by longjmp; one that left tasks
 * out, ran some twice, or ran others, is found when it returns. Without one (null, here or in place of the
 * struct) all work is done on the calling thread. */
typedef struct mpi_router_threads {
  void (*parallel_for)(void* context, int64_t tasks, void (*task)(void* task_data, int64_t index),
                       void* task_data);
  void* context;
} mpi_router_threads;

/* ---- The rows of a router ----------------------------------------------------------------------- */

/** What became of one row, or of one token: an uint8_t for each. */
enum {
  MPIROUTER_STATUS_OK = 0,
  MPIROUTER_STATUS_ZERO_ROW = 1,     /**< the router row is zero: it has no direction */
  MPIROUTER_STATUS_ZERO_IMAGE = 2,   /**< the row is orthogonal to the row space of A, or A is zero */
  MPIROUTER_STATUS_NON_FINITE = 3,   /**< NaN or infinity: row, image, a token's weights */
  MPIROUTER_STATUS_MASKED = 4,       /**< the token is padding */
  MPIROUTER_STATUS_CLOSED_EXPERT = 5 /**< fewer than K experts are open to the token */
};
/** "ok", "zero_row", …; "unknown" for what is none. */
MPIROUTER_C_API const char* mpi_router_status_name(uint8_t status);

enum { MPIROUTER_RADIUS_SCALE_FREE = 0, MPIROUTER_RADIUS_FIXED = 1 };
enum { MPIROUTER_DEGENERATE_KEEP = 0, MPIROUTER_DEGENERATE_ZERO = 1 };
enum { MPIROUTER_THROUGH_ALL = 0, MPIROUTER_THROUGH_LAST = 1, MPIROUTER_THROUGH_NONE = 2 };

/** How the batched step is taken. Null in place of a pointer to it is what mpi_router_default_options
 * returns. */
typedef struct mpi_router_options {
  double radius;         /**< by default 4 */
  int32_t radius_rule;   /**< scale_free: rows have the length radius/√N (Eq. 7); fixed: the length radius */
  int32_t degenerate;    /**< what a row without a step becomes: the old row (keep), or zero */
  int64_t total_experts; /**< N of a scale-free radius, where the call has only some of them; 0: those of the
                            call */
  int64_t steps;         /**< power steps from the rows given, each retracted; by default 1 */
  int32_t through;       /**< of the backward: A of every step (all), of the last one, or of none */
  int32_t reserved;      /**< 0 */
} mpi_router_options;
/** What a null pointer to options means. */
MPIROUTER_C_API mpi_router_options mpi_router_default_options(void);

/** What the step tells besides the rows, N elements each, of the row that the last step started from; null
 * where it is not wanted. */
typedef struct mpi_router_by_products {
  uint8_t* statuses;  /**< of the first step that failed, if any did */
  double* rayleigh;   /**< ρ = |A r|²/|r|² (Eq. 3) */
  double* cosine;     /**< of the angle between a row and its image, in [0, 1] */
  double* residual;   /**< |r̂M - ρ r̂| */
  double* energy;     /**< |A r|² */
  double* row_norm;   /**< |r| */
  double* image_norm; /**< |r M| */
} mpi_router_by_products;

/** What the forward keeps for its backward, and the backward in factored form: bytes that mean something to
 * this library alone (tape), and numbers of the type of the sums (factors). data: aligned as a double; bytes:
 * at least as many as mpi_router_tape_size or mpi_router_factors_size says. */
typedef struct mpi_router_buffer {
  void* data;
  int64_t bytes;
} mpi_router_buffer;

/** The type that the step of such experts computes in: f64 for f64, f32 for f32, bf16 and f16; 0 for what is
 * none. */
MPIROUTER_C_API mpi_router_dtype mpi_router_sums_dtype(mpi_router_dtype experts);

/** Bytes of the tape, of experts on either device (on a GPU of one step: 4 N (D + 2) + N): of type
 * and shape alone, from every build of the library, with CUDA or without. No memory is looked at: data may be
 * null. */
MPIROUTER_C_API mpi_router_code mpi_router_tape_size(const mpi_router_experts* experts,
                                                     const mpi_router_options* options, int64_t* bytes);

/** The rows of the router: row i is C r_i M_i/|r_i M_i| with M_i = A_iᵀA_i, options->steps times (Eq. 4, 5).
 * The router stays as it is: it is the parameter.
 *
 * experts: f64, f32, bf16 or f16; router and rows: [N, D], of any type, f64 only where the experts are; rows
 * apart from all else. told, tape, threads: or null. One read of the experts a step. Scratch: N (2D + 1)
 * numbers, at most N 18 (D + 1) more for large experts, and a copy of router and rows that are not stored as
 * the sums are. */
MPIROUTER_C_API mpi_router_code mpi_router_rows(
    const mpi_router_experts* experts, const mpi_router_matrix* router, const mpi_router_options* options,
    const mpi_router_matrix* rows, const mpi_router_by_products* told, const mpi_router_buffer* tape,
    const mpi_router_threads* threads);

/** The same, written back: the router becomes the rows. Stateful: use one of the two forms for a router. */
MPIROUTER_C_API mpi_router_code mpi_router_stateful_rows(const mpi_router_experts* experts,
                                                         const mpi_router_matrix* router,
                                                         const mpi_router_options* options,
                                                         const mpi_router_by_products* told,
                                                         const mpi_router_threads* threads);

/* ---- Its gradients ------------------------------------------------------------------------------ */

/** Whether gradients replace what their memory held or are added to it. */
enum { MPIROUTER_WRITE = 0, MPIROUTER_ACCUMULATE = 1 };

/** The backward of mpi_router_rows: from grad_rows [N, D] to grad_router [N, D] and grad_experts [N, F, D],
 * both written or both added to what is there.
 *
 * experts, router, options and tape: as the forward had them. grad_experts: any layout, of the type of the
 * experts or of the sums; options->through must not be none. What is written lies apart from all else, except
 * that grad_router may be grad_rows. One read of the experts and one update of their gradient a step.
 * Scratch: N (5D + 2F + 1) numbers, and what the forward takes. */
MPIROUTER_C_API mpi_router_code mpi_router_rows_vjp(
    const mpi_router_experts* experts, const mpi_router_matrix* router, const mpi_router_options* options,
    const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows, const mpi_router_matrix* grad_router,
    const mpi_router_experts* grad_experts, int32_t mode, const mpi_router_threads* threads);

/** The gradient to the router alone: M is constant in every step. */
MPIROUTER_C_API mpi_router_code mpi_router_rows_vjp_detached(
    const mpi_router_experts* experts, const mpi_router_matrix* router, const mpi_router_options* options,
    const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows, const mpi_router_matrix* grad_router,
    int32_t mode, const mpi_router_threads* threads);

/** Bytes of the gradient to the experts in factored form: of each term (step that is differentiated) and
 * expert 2 (F + D) numbers of mpi_router_sums_dtype(experts->dtype). Ā_i is the sum over the terms of p zᵀ +
 * w rᵀ, stored [terms, N, 2 (F + D)] as p (F), z (D), w (F), r (D). Of experts on a GPU N (2F + D) floats:
 * p [N, F], then z [N, D], then w [N, F]; r is the router's row. */
MPIROUTER_C_API mpi_router_code mpi_router_factors_size(const mpi_router_experts* experts,
                                                        const mpi_router_options* options, int64_t* bytes);

/** The backward with the gradient to the experts in factored form, which is written; mode is that of
 * grad_router. */
MPIROUTER_C_API mpi_router_code mpi_router_rows_vjp_factored(
    const mpi_router_experts* experts, const mpi_router_matrix* router, const mpi_router_options* options,
    const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows, const mpi_router_matrix* grad_router,
    const mpi_router_buffer* factors, int32_t mode, const mpi_router_threads* threads);

/** gradient ← or += factor · Ā of its factors; factor = -lr steps down on the weights themselves. factors and
 * options: of a backward of experts of the type sums_of, the shape that of the gradient, f64 only where
 * sums_of is. */
MPIROUTER_C_API mpi_router_code mpi_router_add_factors(const mpi_router_buffer* factors,
                                                       mpi_router_dtype sums_of,
                                                       const mpi_router_options* options, double factor,
                                                       const mpi_router_experts* gradient, int32_t mode,
                                                       const mpi_router_threads* threads);

/* ---- The gate ----------------------------------------------------------------------------------- */

enum { MPIROUTER_SOFTMAX = 0, MPIROUTER_SIGMOID = 1, MPIROUTER_SQRTSOFTPLUS = 2 };
enum { MPIROUTER_SCORE_THEN_SELECT = 0, MPIROUTER_SELECT_THEN_SCORE = 1 };
enum { MPIROUTER_GROUP_TOP2_SUM = 0, MPIROUTER_GROUP_TOP_K_SHARE_SUM = 1, MPIROUTER_GROUP_MAX = 2 };

/** One setting of a gate, as in core/gating_options.hpp, which has those of released models. */
typedef struct mpi_router_gating_options {
  int64_t top_k;          /**< K: experts per token, 1 … N */
  int32_t score_function; /**< by default softmax */
  int32_t order;          /**< by default score_then_select */
  int32_t renormalize;    /**< divide the weights of a token by their sum; by default where top_k > 1 */
  int32_t group_score;    /**< what a group is worth; by default top2_sum */
  double scaling_factor;  /**< multiplies the weights last; by default 1 */
  int64_t n_group;        /**< groups of N/n_group consecutive experts; by default 1 */
  int64_t topk_group;     /**< groups that a token may choose from; by default 1 */
} mpi_router_gating_options;
/** The defaults, for top_k experts of each token. */
MPIROUTER_C_API mpi_router_gating_options mpi_router_default_gating_options(int64_t top_k);

/** Selects K experts for each token and weighs them (Eq. 6).
 *
 * logits: [T, N], f32 or f64; selection_bias: N elements of the type of the logits, or null: added to what
 * experts are selected by, -∞ closes one; mask: T statuses, or null: which tokens count; it may be
 * `statuses`. weights: [T, K], of the type of the logits; experts: T · K ids, best first; statuses: T, or
 * null. Scratch: some numbers for each 256 tokens and expert. */
MPIROUTER_C_API mpi_router_code mpi_router_gate(const mpi_router_matrix* logits,
                                                const mpi_router_gating_options* options,
                                                const mpi_router_vector* selection_bias, const uint8_t* mask,
                                                const mpi_router_matrix* weights, int32_t* experts,
                                                uint8_t* statuses, const mpi_router_threads* threads);

/** The backward of the gate: grad_logits [T, N] ← or += the gradient of Σ weights · grad_weights. The choice
 * of experts is constant. experts, statuses (or null), selection_bias (or null): as the gate told them and
 * had them. */
MPIROUTER_C_API mpi_router_code mpi_router_gate_vjp(const mpi_router_matrix* logits,
                                                    const mpi_router_gating_options* options,
                                                    const mpi_router_vector* selection_bias,
                                                    const int32_t* experts, const uint8_t* statuses,
                                                    const mpi_router_matrix* grad_weights,
                                                    const mpi_router_matrix* grad_logits, int32_t mode,
                                                    const mpi_router_threads* threads);

/* ---- Certificates ------------------------------------------------------------------------------- */

/** How much a claim is worth. */
enum {
  MPIROUTER_CERTAINTY_NONE = 0,
  MPIROUTER_CERTAINTY_HEURISTIC = 1,
  MPIROUTER_CERTAINTY_PROBABILISTIC = 2, /**< true but with the failure_probability */
  MPIROUTER_CERTAINTY_RIGOROUS = 3       /**< true; rounding error is accounted for */
};
/** "none", "heuristic", "probabilistic", "rigorous"; "unknown" for what is none. */
MPIROUTER_C_API const char* mpi_router_certainty_name(int32_t certainty);

/** How hard to look. Null in place of a pointer to it is what mpi_router_default_certify_options returns. */
typedef struct mpi_router_certify_options {
  double residual_tolerance; /**< of the direction found, relative to ρ; by default 1e-10 */
  int64_t max_steps;         /**< applications of M that the search may take; by default 2000 */
  int64_t basis;             /**< vectors of D doubles that the search keeps; by default 256 */
  int64_t
      rigorous_up_to; /**< min(F, D) up to which the bound is rigorous, at O(min(F, D)³); by default 512 */
  double failure_probability; /**< of a probabilistic certificate; by default 1e-6 */
  int64_t probe_starts;       /**< by default 2 */
  int64_t probe_max_steps;    /**< by default 300 */
  uint64_t seed;
} mpi_router_certify_options;
/** What a null pointer to options means. */
MPIROUTER_C_API mpi_router_certify_options mpi_router_default_certify_options(void);

/** What is proven of the direction that was found for one expert. */
typedef struct mpi_router_direction {
  int32_t certainty;
  int32_t status;     /**< of the search: MPIROUTER_STATUS_OK, or why there is no direction */
  double angle_bound; /**< to the principal direction at most this, radians */
  double failure_probability;
  double sigma_low;     /**< σ₁ is at least this */
  double sigma_high;    /**< and at most this; infinite where nothing is proven */
  double second_bound;  /**< α ≥ σ₂², infinite where there is none */
  double rayleigh;      /**< ρ of the direction */
  double residual;      /**< |g| of the direction */
  int64_t applications; /**< products with M that it took */
} mpi_router_direction;

/** Where a row stands: its angle to the principal direction lies in [angle_low, angle_high]. Where its status
 * is not ok, or no direction was found, nothing is claimed: certainty none, and angles in [0, π/2]. */
typedef struct mpi_router_row_certificate {
  int32_t certainty;
  int32_t status;
  double angle; /**< to the direction that was found, radians in [0, π/2] */
  double angle_low;
  double angle_high;
  double rayleigh; /**< ρ of the row */
  double residual; /**< |g| of the row */
} mpi_router_row_certificate;

/** Finds the principal right singular direction of each expert, and proves what it can of it; where min(F, D)
 * > rigorous_up_to from its row of `starts` [N, D]. found: N; directions: [N, D] of f64, unit rows, zero
 * where there is none. Tasks are experts. Scratch: of each task up to (2 basis + probe_max_steps) · D
 * doubles, and where min(F, D) ≤ rigorous_up_to the expert in double; else of f64 experts a copy in float. */
MPIROUTER_C_API mpi_router_code mpi_router_find_directions(const mpi_router_experts* experts,
                                                           const mpi_router_matrix* starts,
                                                           const mpi_router_certify_options* options,
                                                           mpi_router_direction* found,
                                                           const mpi_router_matrix* directions,
                                                           const mpi_router_threads* threads);

/** Certifies rows [N, D] of any type against directions that were found for the same experts: one product
 * with M for each row. A certificate is worth what `found` and `directions` are: that they are those of these
 * experts is not checked. certificates: N. */
MPIROUTER_C_API mpi_router_code mpi_router_certify_rows(const mpi_router_experts* experts,
                                                        const mpi_router_matrix* rows,
                                                        const mpi_router_direction* found,
                                                        const mpi_router_matrix* directions,
                                                        mpi_router_row_certificate* certificates,
                                                        const mpi_router_threads* threads);

/* ---- On GPUs ------------------------------------------------------------------------------------ */

/** Where a call on a GPU runs, and its scratch. Let mpi_router_cuda_of_current_device fill one in for each
 * device and keep it; set stream and workspace, in a copy for each stream. A plain value: nothing to free. */
typedef struct mpi_router_cuda {
  void* stream;                /**< a cudaStream_t of the device; null: the default stream */
  mpi_router_buffer workspace; /**< scratch on the device, aligned to 256 bytes, at least as many as the
                                    _workspace_size of the call says; of one call at a time */
  int32_t inputs_at_rest; /**< 1: the promise of cuda::context about experts and router, so that a forward
                               overlaps with what is ahead of it in the stream; by default 0 */
  int32_t device;         /**< this and what follows is what the driver was asked: leave it as it is */
  int32_t multiprocessors;
  int32_t capability; /**< 10 × major + minor; lower it, to 80 say, for the kernels of an older device */
  int64_t shared_memory;
  int32_t clusters[4];
} mpi_router_cuda;

/* All calls below are ordered on the stream and return at once: they neither allocate nor synchronise, and
 * may be captured in graphs. Each runs on the current device, which must be that of `cuda`. Arrays,
 * by-products and buffers are memory of that device, managed or page-locked memory; structs are read before
 * the call returns. Results are the same, bit for bit, from run to run on one kind of device, and those of
 * mpi_router/cuda/. A library that was built without CUDA has these functions too; they return
 * MPIROUTER_UNSUPPORTED. docs/guide-gpu.md says which layouts are fast. */

/** Asks the driver once what calls need to know of the current device (sm_80 or newer); stream null, no
 * workspace, inputs_at_rest 0. */
MPIROUTER_C_API mpi_router_code mpi_router_cuda_of_current_device(mpi_router_cuda* cuda);

/** Bytes of workspace of mpi_router_cuda_rows and its stateful form. They follow from device, types, shapes,
 * strides and steps alone: ask once for a layer. No memory is looked at: data may be null. */
MPIROUTER_C_API mpi_router_code mpi_router_cuda_rows_workspace_size(const mpi_router_cuda* cuda,
                                                                    const mpi_router_experts* experts,
                                                                    const mpi_router_options* options,
                                                                    int64_t* bytes);

/** mpi_router_rows on a GPU, with the same options. experts, router and rows: types as there. told: statuses
 * and numbers (double) on the device. tape: or null; of one step. One read of the experts a step where one of
 * their axes has stride 1 and they are not f64, two where D is too large for the device. */
MPIROUTER_C_API mpi_router_code mpi_router_cuda_rows(
    const mpi_router_cuda* cuda, const mpi_router_experts* experts, const mpi_router_matrix* router,
    const mpi_router_options* options, const mpi_router_matrix* rows, const mpi_router_by_products* told,
    const mpi_router_buffer* tape);

/** The same, written back: the router becomes the rows. */
MPIROUTER_C_API mpi_router_code mpi_router_cuda_stateful_rows(const mpi_router_cuda* cuda,
                                                              const mpi_router_experts* experts,
                                                              const mpi_router_matrix* router,
                                                              const mpi_router_options* options,
                                                              const mpi_router_by_products* told);

/** Bytes of workspace of the backward with this gradient to the experts in this mode; null: of the detached
 * and the factored one. As above, data may be null. */
MPIROUTER_C_API mpi_router_code
mpi_router_cuda_rows_vjp_workspace_size(const mpi_router_cuda* cuda, const mpi_router_experts* experts,
                                        const mpi_router_experts* grad_experts, int32_t mode, int64_t* bytes);

/** The backward of one step: grad_router [N, D] (or null: not wanted) is written, grad_experts [N, F, D] is
 * written or, where `experts_mode` is MPIROUTER_ACCUMULATE, added to. Unlike on the host that mode is of
 * grad_experts alone. Types as on the host; what is written lies apart from all else. Of a gradient with
 * stride 2 along F the other half of the pairs is written back as it was: nothing else may write that
 * meanwhile. */
MPIROUTER_C_API mpi_router_code mpi_router_cuda_rows_vjp(
    const mpi_router_cuda* cuda, const mpi_router_experts* experts, const mpi_router_matrix* router,
    const mpi_router_options* options, const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows,
    const mpi_router_matrix* grad_router, const mpi_router_experts* grad_experts, int32_t experts_mode);

/** The gradient to the router alone, written. */
MPIROUTER_C_API mpi_router_code mpi_router_cuda_rows_vjp_detached(
    const mpi_router_cuda* cuda, const mpi_router_experts* experts, const mpi_router_matrix* router,
    const mpi_router_options* options, const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows,
    const mpi_router_matrix* grad_router);

/** The gradient to the experts in factored form: Ā_i = p zᵀ + w rᵀ with r the router's row. grad_router (or
 * null) and factors are written. */
MPIROUTER_C_API mpi_router_code mpi_router_cuda_rows_vjp_factored(
    const mpi_router_cuda* cuda, const mpi_router_experts* experts, const mpi_router_matrix* router,
    const mpi_router_options* options, const mpi_router_buffer* tape, const mpi_router_matrix* grad_rows,
    const mpi_router_matrix* grad_router, const mpi_router_buffer* factors);

/** The gradient to the experts, p zᵀ + w rᵀ, as two more rows of a grouped product that makes their weight
 * gradients, G_e = Σ_t g_t x_tᵀ over the rows t of expert e: grads [T, F], tokens [T, D], of one type, expert
 * e ends before row offsets[e] (N of them, contiguous, on the GPU), the last at T. The last two rows of each
 * expert are padding: they become p, w and z, r, rounded to that type (f16 lacks their range; what is not
 * finite in the router becomes 0), until mpi_router_cuda_restore_padding puts back what was there, bit for
 * bit but that a NaN may be another. Meanwhile the workspace keeps it, 2 N (F + D) elements. Offsets are
 * looked at on the GPU: where an expert has no two rows, or the last does not end at T, the product gives NaN
 * for every expert that has a row. */
MPIROUTER_C_API mpi_router_code mpi_router_cuda_put_factors(
    const mpi_router_cuda* cuda, const mpi_router_matrix* grads, const mpi_router_matrix* tokens,
    const int32_t* offsets, const mpi_router_matrix* router, const mpi_router_buffer* factors);
/** Puts back what mpi_router_cuda_put_factors took, with the same operands, offsets and workspace. */
MPIROUTER_C_API mpi_router_code mpi_router_cuda_restore_padding(const mpi_router_cuda* cuda,
                                                                const mpi_router_matrix* grads,
                                                                const mpi_router_matrix* tokens,
                                                                const int32_t* offsets, int64_t num_experts);

/** mpi_router_gate on a GPU, in f32, with N up to 8192: logits [T, N] with contiguous rows; selection_bias,
 * of stride 1, mask and statuses: or null; weights [T, K] contiguous. load: N counts, or null: how many
 * tokens chose each expert is added to it. What a mask holds is not checked. No workspace. Its gradient is on
 * the host alone. */
MPIROUTER_C_API mpi_router_code mpi_router_cuda_gate(const mpi_router_cuda* cuda,
                                                     const mpi_router_matrix* logits,
                                                     const mpi_router_gating_options* options,
                                                     const mpi_router_vector* selection_bias,
                                                     const uint8_t* mask, const mpi_router_matrix* weights,
                                                     int32_t* experts, uint8_t* statuses, int32_t* load);

#ifdef __cplusplus
}
#endif

/* NOLINTEND */
#endif
