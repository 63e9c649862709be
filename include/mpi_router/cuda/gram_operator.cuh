// M = AᵀA of a gate matrix in device memory, applied for a host that looks at one row at a time.
#pragma once

#include <mpi_router/core/lanczos_step.hpp>
#include <mpi_router/core/operands.hpp>
#include <mpi_router/core/views.hpp>
#include <mpi_router/cuda/context.cuh>
#include <mpi_router/cuda/detail/gram/kernel.cuh>
#include <mpi_router/cuda/detail/plan/expect.hpp>
#include <mpi_router/cuda/detail/plan/workspace.hpp>

#include <algorithm>
#include <span>

MPIROUTER_CUDA_BEGIN

using mpi_router::lanczos_step;

/// Where a step of Lanczos is: vectors 0 to `newest` are orthonormal, the deflated ones first.
struct lanczos_place {
  index_t newest = 0;
  bool is_first = true;  ///< no vector before the newest is of the space
  double scale = 1;      ///< a number of the size of the eigenvalues, ρ say
  double before = 0;     ///< what the step before left
};

/// M = AᵀA with sums in double, of an A [F, D] of any storage type, any strides and size in device memory: a
/// model of GramOperator for vectors in host memory. With it the steps of Lanczos whose vectors stay on the
/// device. One block does all of it, so that as many operators at once as there are multiprocessors, each
/// with a stream and memory of its own, use the device fully; a host thread each feeds them. Reads A twice an
/// application, which the bandwidth of the memory pays for, and the arithmetic in f64.
///
/// Every call is ordered on the context's stream and waits for it. Bitwise the same from run to run. No
/// scale: squares of elements must not leave the range of double. Throws usage_error on shapes and memory,
/// cuda_error where a call fails. Holds the view and the memory, and owns neither.
template <Scalar T>
class gram_operator {
 public:
  using scalar = double;

  /// Bytes of device memory that an operator needs, with bases of up to `vectors` vectors.
  [[nodiscard]] static std::size_t workspace_bytes(index_t ffn_dim, index_t hidden_dim, index_t vectors = 0) {
    detail::gram_args<T> args;
    return take(args, ffn_dim, hidden_dim, vectors, nullptr);
  }
  /// Bytes of page-locked host memory (cudaHostAlloc) that it needs.
  [[nodiscard]] static std::size_t staging_bytes(index_t hidden_dim, index_t vectors = 0) {
    return 2 * sizeof(double) * static_cast<std::size_t>(std::max(hidden_dim, vectors) + 1);
  }

  /// Of A, with memory of these sizes, aligned to 256, and room for bases of up to `vectors` vectors.
  gram_operator(const context& ctx, matrix_view<const T, device_space> a, const workspace& scratch,
                const workspace& staging, index_t vectors = 0)
      : ctx_(ctx), ffn_dim_(a.rows()), hidden_dim_(a.cols()), vectors_(vectors) {
    constexpr const char* name = "cuda::gram_operator";
    detail::expect_context(name, ctx);
    detail::expect(
        a.rows() <= detail::most_extent && a.cols() <= detail::most_extent && vectors <= detail::most_extent,
        name, ": A [", a.rows(), ", ", a.cols(), "] and ", vectors,
        " vectors, which may be up to 2^30 - 1 each");
    detail::expect_workspace(name, scratch, workspace_bytes(a.rows(), a.cols(), vectors));
    detail::expect_workspace(name, staging, staging_bytes(a.cols(), vectors));
    static_cast<void>(take(args_, a.rows(), a.cols(), vectors, scratch.data));
    const auto magnitude = [](index_t x) { return x < 0 ? -x : x; };
    args_.by_neurons = magnitude(a.col_stride()) <= magnitude(a.row_stride());
    args_.matrix = args_.by_neurons
                       ? detail::make_stored(a.data(), a.rows(), a.cols(), a.row_stride(), a.col_stride())
                       : detail::make_stored(a.data(), a.cols(), a.rows(), a.col_stride(), a.row_stride());
    in_ = static_cast<double*>(staging.data);
    out_ = in_ + std::max(hidden_dim_, vectors) + 1;
  }

  [[nodiscard]] index_t dimension() const noexcept { return hidden_dim_; }
  [[nodiscard]] index_t ffn_dim() const noexcept { return ffn_dim_; }

  /// u = xM, returns xMxᵀ.
  double apply(vector_view<const double> x, vector_view<double> u) {
    core::expect_operands("cuda::gram_operator", *this, x, hidden_dim_, u, hidden_dim_);
    put(x);
    detail::launch("gram_kernel", ctx_, {1, detail::gram_threads}, detail::gram_kernel<T>, args_, in_, out_);
    wait();
    get(u);
    return out_[hidden_dim_];
  }

  /// Vector k of a basis [vectors, D], whose rows are contiguous, becomes x.
  void store(vector_view<const double> x, const matrix_view<double, device_space>& basis, index_t k) {
    expect_basis(basis, k, 1);
    detail::expect(x.size() == hidden_dim_, "cuda::gram_operator: a vector of ", x.size(),
                   " elements in a basis of ", hidden_dim_);
    put(x);
    detail::check("cudaMemcpyAsync", cudaMemcpyAsync(basis.data() + k * basis.row_stride(), in_,
                                                     static_cast<std::size_t>(hidden_dim_) * sizeof(double),
                                                     cudaMemcpyHostToDevice, ctx_.stream));
    wait();
  }

  /// out = Σ_k y_k times vector `from` + k of a basis.
  void combine(const matrix_view<double, device_space>& basis, index_t from, vector_view<const double> y,
               vector_view<double> out) {
    expect_basis(basis, from, y.size());
    detail::expect(out.size() == hidden_dim_ && y.size() <= vectors_, "cuda::gram_operator: ", y.size(),
                   " vectors of ", hidden_dim_, " elements into ", out.size(), ", with room for ", vectors_);
    put(y);
    const auto q = detail::make_stored(static_cast<const double*>(basis.data() + from * basis.row_stride()),
                                       y.size(), hidden_dim_, basis.row_stride(), index_t{1});
    detail::launch("combine_kernel", ctx_, {1, detail::gram_threads}, detail::combine_kernel<>, q, in_,
                   args_.weights, args_.image, out_);
    wait();
    get(out);
  }

  /// Steps of Lanczos from `place` on, each with an application of M: every new vector is made orthogonal to
  /// all before it, as verify/krylov_basis.hpp does it. Returns how many were taken: fewer than asked for
  /// where one leaves nothing.
  index_t lanczos(const matrix_view<double, device_space>& basis, const lanczos_place& place,
                  std::span<lanczos_step> found) {
    const auto steps = static_cast<index_t>(found.size());
    expect_basis(basis, 0, place.newest + 1 + steps);
    detail::expect(place.newest >= 0 && place.newest + steps <= vectors_ &&
                       2 * steps <= std::max(hidden_dim_, vectors_) + 1,
                   "cuda::gram_operator: ", steps, " steps from vector ", place.newest, " on, with room for ",
                   vectors_, " vectors of ", hidden_dim_);
    if (steps == 0) {
      return 0;
    }
    const detail::lanczos_args args{basis.data(),
                                    basis.row_stride(),
                                    static_cast<int>(place.newest),
                                    !place.is_first,
                                    static_cast<int>(steps),
                                    place.scale,
                                    place.before,
                                    out_};
    detail::launch("lanczos_kernel", ctx_, {1, detail::gram_threads}, detail::lanczos_kernel<T>, args_, args);
    wait();
    for (index_t k = 0; k < steps; ++k) {
      found[static_cast<std::size_t>(k)] = {out_[2 * k], out_[2 * k + 1]};
      if (!(out_[2 * k + 1] > 0)) {
        return k + 1;
      }
    }
    return steps;
  }

 private:
  static std::size_t take(detail::gram_args<T>& args, index_t ffn_dim, index_t hidden_dim, index_t vectors,
                          void* data) {
    detail::arena memory(data);
    args.projection = memory.take<double>(ffn_dim);
    args.row = memory.take<double>(hidden_dim);
    args.image = memory.take<double>(hidden_dim);
    args.removed = memory.take<double>(hidden_dim);
    args.weights = memory.take<double>(vectors);
    args.spread = memory.take<double>(std::max(ffn_dim, hidden_dim) + detail::tile_columns);
    return memory.used();
  }

  void expect_basis(const matrix_view<double, device_space>& basis, index_t first, index_t count) const {
    detail::expect(basis.cols() == hidden_dim_ && (basis.cols() <= 1 || basis.col_stride() == 1) &&
                       first >= 0 && first + count <= basis.rows(),
                   "cuda::gram_operator: vectors ", first, " to ", first + count, " of a basis [",
                   basis.rows(), ", ", basis.cols(),
                   "], whose rows must be contiguous, where D = ", hidden_dim_);
  }

  void put(vector_view<const double> x) {
    for (index_t i = 0; i < x.size(); ++i) {
      in_[i] = x[i];
    }
  }
  void get(vector_view<double> u) const {
    for (index_t i = 0; i < u.size(); ++i) {
      u[i] = out_[i];
    }
  }
  void wait() const { detail::check("cudaStreamSynchronize", cudaStreamSynchronize(ctx_.stream)); }

  context ctx_;
  detail::gram_args<T> args_;
  index_t ffn_dim_;
  index_t hidden_dim_;
  index_t vectors_;
  double* in_ = nullptr;   // max(D, vectors) + 1
  double* out_ = nullptr;  // the same
};

MPIROUTER_CUDA_END
