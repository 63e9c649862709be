// The logits of Eq. 6 by cuBLASLt. Apart from the rest, for it is the one header that needs a library: link
// cublasLt.
#pragma once

#include <cublasLt.h>
#include <mpi_router/core/scalar.hpp>
#include <mpi_router/cuda/context.cuh>
#include <mpi_router/cuda/detail/device/launch.cuh>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

MPIROUTER_CUDA_DETAIL_BEGIN

/// What cuBLAS calls a storage type.
[[nodiscard]] constexpr cudaDataType_t data_type(storage_format format) {
  switch (format) {
    case storage_format::f64: return CUDA_R_64F;
    case storage_format::f32: return CUDA_R_32F;
    case storage_format::bf16: return CUDA_R_16BF;
    case storage_format::f16: return CUDA_R_16F;
  }
  core::usage_failure("cuda::logits_product: no such storage_format");
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// The product x R′ᵀ for tokens [T, D] and rows [N, D] of one storage type into logits [T, N] in f32, by
/// cuBLASLt with sums in f32; zeros where D = 0. Made once for a shape (which asks cuBLASLt for its best
/// algorithm), then run any number of times: a run is stream-ordered, allocates nothing and may be captured.
/// Owns its descriptors; movable.
template <class T>
class logits_product {
 public:
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16> || std::is_same_v<T, float>,
                "logits_product: bf16, f16 or f32");

  /// `handle` must outlive the plan; runs need `scratch` of at most `workspace_bytes`.
  logits_product(cublasLtHandle_t handle, index_t tokens, index_t num_experts, index_t hidden_dim,
                 std::size_t workspace_bytes = 32 << 20)
      : handle_(handle), bytes_(workspace_bytes) {
    expect_sizes(tokens, num_experts, hidden_dim);
    logits_in_all_ = tokens * num_experts;
    if (logits_in_all_ == 0 || hidden_dim == 0) {
      return;  // nothing to multiply
    }
    describe(tokens, num_experts, hidden_dim);
    choose_algorithm();
    if (failed_ != nullptr) {
      release();
      detail::cuda_failure(failed_, static_cast<int>(code_), cublasLtGetStatusString(code_));
    }
  }
  logits_product(logits_product&& other) noexcept { *this = std::move(other); }
  logits_product& operator=(logits_product&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(product_, other.product_);
    std::swap(rows_, other.rows_);
    std::swap(tokens_, other.tokens_);
    std::swap(logits_, other.logits_);
    std::swap(best_, other.best_);
    std::swap(bytes_, other.bytes_);
    std::swap(logits_in_all_, other.logits_in_all_);
    return *this;
  }
  ~logits_product() { release(); }

  [[nodiscard]] std::size_t workspace_bytes() const noexcept { return best_.workspaceSize; }

  void operator()(const context& ctx, const T* tokens, const T* rows, float* logits,
                  const workspace& scratch) const {
    constexpr const char* name = "cuda::logits_product";
    detail::expect_device(name, ctx);
    if (product_ == nullptr) {
      set_zero(ctx, logits);
      return;
    }
    detail::expect(scratch.bytes >= best_.workspaceSize, name, ": a workspace of ", scratch.bytes,
                   " bytes where ", best_.workspaceSize, " are needed");
    const float one = 1.0F, zero = 0.0F;
    const cublasStatus_t code = cublasLtMatmul(
        handle_, product_, &one, rows, rows_, tokens, tokens_, &zero, logits, logits_, logits, logits_,
        &best_.algo, scratch.data, best_.workspaceSize, reinterpret_cast<cudaStream_t>(ctx.stream));
    if (code != CUBLAS_STATUS_SUCCESS) {
      detail::cuda_failure("cublasLtMatmul", static_cast<int>(code), cublasLtGetStatusString(code));
    }
  }

 private:
  static void expect_sizes(index_t tokens, index_t num_experts, index_t hidden_dim) {
    constexpr const char* name = "cuda::logits_product";
    detail::expect(tokens >= 0 && num_experts >= 0 && hidden_dim >= 0, name, ": [", tokens, ", ", hidden_dim,
                   "] times [", num_experts, ", ", hidden_dim, "]");
    const double most = core::most_reach<float>;  // what the two factors and the product may take
    const auto t = static_cast<double>(tokens), n = static_cast<double>(num_experts),
               d = static_cast<double>(hidden_dim);
    detail::expect(t * n <= most && t * d <= most && n * d <= most, name, ": [", tokens, ", ", hidden_dim,
                   "] times [", num_experts, ", ", hidden_dim, "] elements do not fit in memory");
  }
  /// Column by column, as cuBLAS counts: logitsᵀ [N, T] = rows [N, D] · tokensᵀ [D, T].
  void describe(index_t tokens, index_t num_experts, index_t hidden_dim) {
    constexpr cudaDataType_t type = detail::data_type(storage_traits<T>::format);
    const auto t = static_cast<std::uint64_t>(tokens), n = static_cast<std::uint64_t>(num_experts),
               d = static_cast<std::uint64_t>(hidden_dim);
    try_("cublasLtMatmulDescCreate", cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    try_("cublasLtMatmulDescSetAttribute",
         cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                        sizeof(transposed)));
    try_("cublasLtMatrixLayoutCreate", cublasLtMatrixLayoutCreate(&rows_, type, d, n, hidden_dim));
    try_("cublasLtMatrixLayoutCreate", cublasLtMatrixLayoutCreate(&tokens_, type, d, t, hidden_dim));
    try_("cublasLtMatrixLayoutCreate", cublasLtMatrixLayoutCreate(&logits_, CUDA_R_32F, n, t, num_experts));
  }
  void choose_algorithm() {
    cublasLtMatmulPreference_t preference = nullptr;
    try_("cublasLtMatmulPreferenceCreate", cublasLtMatmulPreferenceCreate(&preference));
    try_("cublasLtMatmulPreferenceSetAttribute",
         cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes_,
                                              sizeof(bytes_)));
    int found = 0;
    try_("cublasLtMatmulAlgoGetHeuristic",
         cublasLtMatmulAlgoGetHeuristic(handle_, product_, rows_, tokens_, logits_, logits_, preference, 1,
                                        &best_, &found));
    if (found == 0) {
      failed_ = "cublasLtMatmulAlgoGetHeuristic: no algorithm";
    }
    if (preference != nullptr) {
      cublasLtMatmulPreferenceDestroy(preference);
    }
  }
  /// Products of no terms.
  void set_zero(const context& ctx, float* logits) const {
    if (logits_in_all_ > 0) {
      detail::check("cudaMemsetAsync",
                    cudaMemsetAsync(logits, 0, static_cast<std::size_t>(logits_in_all_) * sizeof(float),
                                    reinterpret_cast<cudaStream_t>(ctx.stream)));
    }
  }
  void try_(const char* call, cublasStatus_t code) {
    if (failed_ == nullptr && code != CUBLAS_STATUS_SUCCESS) {
      failed_ = call;
      code_ = code;
    }
  }
  void release() noexcept {
    if (product_ != nullptr) cublasLtMatmulDescDestroy(product_);
    for (const auto layout : {rows_, tokens_, logits_}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
    product_ = nullptr;
    rows_ = tokens_ = logits_ = nullptr;
  }

  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t rows_ = nullptr, tokens_ = nullptr, logits_ = nullptr;
  cublasLtMatmulHeuristicResult_t best_{};
  std::size_t bytes_ = 0;
  index_t logits_in_all_ = 0;
  const char* failed_ = nullptr;
  cublasStatus_t code_ = CUBLAS_STATUS_SUCCESS;
};

MPIROUTER_CUDA_END
