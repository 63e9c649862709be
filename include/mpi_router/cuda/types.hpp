// What a GPU call takes: a context, a workspace, by-products, options. Needs no CUDA toolkit, so that headers
// of an embedder can name these types; the calls themselves are in cuda/router.cuh.
#pragma once

#include <mpi_router/core/by_products.hpp>
#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/gating_options.hpp>
#include <mpi_router/core/options.hpp>

#include <cstddef>
#include <string>

#if MPIROUTER_HAS_EXCEPTIONS
#include <stdexcept>
#endif

struct CUstream_st;

MPIROUTER_BEGIN_TYPES
namespace cuda {

/// The stream that a call is ordered on: a cudaStream_t. Null is the default stream.
using stream_t = CUstream_st*;

#if MPIROUTER_HAS_EXCEPTIONS
/// A call of the CUDA runtime or of cuBLASLt failed. The message names the call and the reason; `code` is its
/// cudaError_t or cublasStatus_t.
class cuda_error : public std::runtime_error {
 public:
  cuda_error(const std::string& message, int code) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] int code() const noexcept { return code_; }

 private:
  int code_;
};
#endif

/// Where a call runs, and the few facts about the device that the launch shapes depend on. Make one per
/// device and stream with make_context() (cuda/router.cuh) and keep it: a call then asks the driver nothing.
/// A plain value.
struct context {
  stream_t stream = nullptr;
  int multiprocessors = 0;
  /// 10 × major + minor. Lower it by hand (say to 80) to take the code path of an older device.
  int capability = 0;
  std::size_t shared_memory = 0;  ///< bytes that one block may ask for
  /// How many clusters of 1, 2, 4 and 8 blocks run at once, each block with a multiprocessor of its own. The
  /// multiprocessors of a chip come in parts of uneven size that no cluster spans, so that some stay idle.
  int clusters[4] = {};
  /// A promise to router_rows, images_of_rows and sharded_router_rows: since the weights (and their table of
  /// pointers) and the rows were written, the stream has waited for that and has then run an ordinary kernel,
  /// or one of this library without this promise (a kernel that lets its dependents start before it has
  /// waited itself does not count); or the host has waited for it. The call then reads while what is ahead of
  /// it in the stream still runs, and waits for that before it writes. So: the first forward of a sequence
  /// without it, the others with it. In a graph it must hold at every replay. Since such a call lets the
  /// kernel after it start before it has waited, a kernel launched with programmatic serialisation after it
  /// must wait (griddepcontrol.wait) for what came before, too. No effect on other calls, on steps after the
  /// first, where out is rows, and where the weights are read twice (router_rows says where).
  bool inputs_at_rest = false;
  /// That was current when the context was made. A call where another is current throws usage_error.
  int device = 0;
};

/// Scratch in device memory, owned by the caller: at least as many bytes as the query of the call says,
/// aligned to 256. Its content before the call does not matter and after it means nothing. One call at a
/// time.
struct workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

/// What one step tells besides the new rows: pointers to device memory, each null where it is not wanted. In
/// f64, which holds the numbers of weights of any scale.
using step_by_products = router_by_products<double, device_space>;

/// What the backward needs from the forward, besides its inputs: N·D floats and 2 small vectors, device
/// memory.
struct saved_step {
  float* direction = nullptr;    ///< rM / ‖rM‖, [N, D] contiguous
  double* image_norm = nullptr;  ///< ‖rM‖, [N]
  status* statuses = nullptr;    ///< [N]
};

/// How the step is taken: the options of the host. Rows between steps are kept in f32; the backward is that
/// of one step. retract_images has no experts and takes N = images.rows(): where that is a part of them, give
/// scale_free the total.
using step_options = router_options;

/// The gradient to A in factored form: Ā = y z̄ᵀ + w rᵀ (§ router_rows_vjp_factored). Device memory,
/// contiguous.
struct gradient_factors {
  float* projection = nullptr;       ///< y = A r, [N, F]
  float* dual_projection = nullptr;  ///< w = A z̄, [N, F]
  float* dual_row = nullptr;         ///< z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)), [N, D]
};

using mpi_router::gradient_mode;

/// What a gate tells of T tokens; device memory, contiguous.
struct gate_output {
  float* weights = nullptr;      ///< [T, K], best expert first
  expert_id* experts = nullptr;  ///< [T, K]
  status* statuses = nullptr;    ///< [T], or null: ok, closed_expert, masked or non_finite
  /// [N], or null: how many tokens chose each expert is added to it, up to 2^31 − 1 before it is cleared.
  int* load = nullptr;
};

}  // namespace cuda
MPIROUTER_END_TYPES
