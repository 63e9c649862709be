// Times the router on the current device beside its floors and cuBLAS. One JSON object a line on stdout.
#include <cublas_v2.h>

#include <mpi_router/cuda/logits.cuh>
#include <mpi_router/cuda/router.cuh>

#include "floors.cuh"
#include "timing.hpp"

namespace gpu_bench {
namespace {

using namespace mpi_router;

constexpr int rounds = 40;

template <class T>
constexpr bool is_half = sizeof(T) == 2;
template <class T>
constexpr cudaDataType_t data_type = std::is_same_v<T, bf16>  ? CUDA_R_16BF
                                     : std::is_same_v<T, f16> ? CUDA_R_16F
                                                              : CUDA_R_32F;
template <class T>
constexpr const char* type_name = std::is_same_v<T, bf16>  ? "bf16"
                                  : std::is_same_v<T, f16> ? "f16"
                                                           : "f32";

void must(cublasStatus_t code, const char* what) {
  if (code != CUBLAS_STATUS_SUCCESS) {
    std::fprintf(stderr, "%s: cublas status %d\n", what, static_cast<int>(code));
    std::exit(1);
  }
}
using gpu_bench::must;

template <class T>
std::vector<device_buffer<T>> filled(int copies, std::size_t size) {
  std::vector<device_buffer<T>> out;
  for (int i = 0; i < copies; ++i) {
    out.emplace_back(size);
    fill_kernel<><<<1024, 256>>>(reinterpret_cast<unsigned*>(out.back().data()), size * sizeof(T) / 4,
                                 static_cast<unsigned>(i) * 7919U + 1U, is_half<T>);
  }
  must(cudaGetLastError(), "fill_kernel");
  return out;
}

/// rM by two products for each expert: the library's way, without the normalising.
template <class T>
double cublas_microseconds(cublasHandle_t handle, bool gemv, const std::vector<device_buffer<T>>& weights,
                           const T* rows, T* y, T* u, const expert_shape& s, cudaStream_t stream) {
  const int n = static_cast<int>(s.num_experts), f = static_cast<int>(s.ffn_dim),
            d = static_cast<int>(s.hidden_dim);
  const float one = 1.0F, zero = 0.0F;
  const long long matrix = static_cast<long long>(f) * d;
  return microseconds(stream, static_cast<int>(weights.size()), rounds, [&](int i) {
    const T* const a = weights[static_cast<std::size_t>(i)].data();
    if (gemv) {
      const auto product = [&](cublasOperation_t op, const T* x, int x_stride, T* out, int out_stride) {
        if constexpr (std::is_same_v<T, bf16>) {
          must(cublasTSTgemvStridedBatched(handle, op, d, f, &one, reinterpret_cast<const __nv_bfloat16*>(a),
                                           d, matrix, reinterpret_cast<const __nv_bfloat16*>(x), 1, x_stride,
                                           &zero, reinterpret_cast<__nv_bfloat16*>(out), 1, out_stride, n),
               "cublasTSTgemvStridedBatched");
        } else if constexpr (std::is_same_v<T, float>) {
          must(cublasSgemvStridedBatched(handle, op, d, f, &one, a, d, matrix, x, 1, x_stride, &zero, out, 1,
                                         out_stride, n),
               "cublasSgemvStridedBatched");
        }
      };
      product(CUBLAS_OP_T, rows, d, y, f);
      product(CUBLAS_OP_N, y, f, u, d);
    } else {
      const auto product = [&](cublasOperation_t op, int m, int k, const T* x, int x_stride, T* out,
                               int out_stride) {
        must(cublasGemmStridedBatchedEx(handle, op, CUBLAS_OP_N, m, 1, k, &one, a, data_type<T>, d, matrix, x,
                                        data_type<T>, x_stride, x_stride, &zero, out, data_type<T>,
                                        out_stride, out_stride, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
             "cublasGemmStridedBatchedEx");
      };
      product(CUBLAS_OP_T, f, d, rows, d, y, f);
      product(CUBLAS_OP_N, d, f, y, f, u, d);
    }
  });
}

/// One shape: weights in rotation, gate alone or gate and up `interleaved`, and what a call takes besides.
template <class T>
class router_bench {
 public:
  router_bench(const cuda::context& ctx, const expert_shape& s, bool interleaved)
      : ctx_(ctx),
        s_(s),
        shape_(std::to_string(s.num_experts) + "x" + std::to_string(s.ffn_dim) + "x" +
               std::to_string(s.hidden_dim) + (interleaved ? " interleaved" : "")),
        count_(rows() * static_cast<std::size_t>(interleaved ? 2 * s.ffn_dim : s.ffn_dim)),
        copies_(std::max(3, static_cast<int>(400e6 / bytes()) + 1)),
        weights_(filled<T>(copies_, count_)),
        router_(filled<T>(1, rows())),
        out_(rows()) {}

  [[nodiscard]] const std::vector<device_buffer<T>>& weights() const { return weights_; }
  [[nodiscard]] const T* router() const { return router_[0].data(); }
  [[nodiscard]] T* out() const { return out_.data(); }
  [[nodiscard]] double bytes() const { return static_cast<double>(count_) * sizeof(T); }
  void line(const std::string& work, double us, double moved) const {
    print({work, shape_, type_name<T>, us, moved});
  }

  void time_floors() const {
    const device_buffer<unsigned> sink(1);
    const std::size_t vectors = count_ * sizeof(T) / 16;
    line("read floor",
         microseconds(ctx_.stream, copies_, rounds,
                      [&](int i) {
                        read_kernel<><<<floor_blocks(vectors), floor_threads, 0, ctx_.stream>>>(
                            reinterpret_cast<const uint4*>(at(i)), vectors, sink.data());
                      }),
         bytes());
    line("read floor, started early",
         microseconds(ctx_.stream, copies_, rounds,
                      [&](int i) {
                        mpi_router::cuda::detail::launch(
                            "read_kernel", ctx_, {floor_blocks(vectors), floor_threads}, read_kernel<>,
                            reinterpret_cast<const uint4*>(at(i)), vectors, sink.data());
                      }),
         bytes());
    line("copy floor",
         microseconds(ctx_.stream, copies_ / 2 * 2, rounds,
                      [&](int i) {
                        copy_kernel<><<<floor_blocks(vectors), floor_threads, 0, ctx_.stream>>>(
                            reinterpret_cast<const uint4*>(at(i)),
                            reinterpret_cast<uint4*>(const_cast<T*>(at(i ^ 1))), vectors);
                      }),
         2 * bytes());
  }
  /// `layout` makes a view of what is in memory.
  template <class Layout>
  void time_forward(const cuda::context& c, const char* work, const Layout& layout) const {
    const std::size_t need = cuda::router_rows_workspace(c, layout(at(0)));
    const device_buffer<unsigned char> scratch(need);
    line(work,
         microseconds(c.stream, copies_, rounds,
                      [&](int i) {
                        cuda::router_rows(c, layout(at(i)), matrix(router()), matrix(out()), {}, {},
                                          {scratch.data(), need}, {.radius = 4.0});
                      }),
         bytes());
    std::fprintf(stderr, "%s %s: workspace %.2f %% of the weights\n", work, shape_.c_str(),
                 100.0 * static_cast<double>(need) / bytes());
  }
  template <class Layout>
  void time_backward(const std::string& where, const Layout& layout) const {
    const auto projections = static_cast<std::size_t>(s_.num_experts * s_.ffn_dim);
    const auto upstream = filled<T>(1, rows());
    const device_buffer<float> direction(rows()), dual(rows()), grad_rows(rows()), yf(projections),
        wf(projections);
    const device_buffer<double> norms(static_cast<std::size_t>(s_.num_experts));
    const device_buffer<status> statuses(static_cast<std::size_t>(s_.num_experts));
    const cuda::saved_step saved{direction.data(), norms.data(), statuses.data()};
    const auto r = matrix(router());
    const auto g = matrix(static_cast<const T*>(upstream[0].data()));
    const auto to_rows = matrix(grad_rows.data());
    const device_buffer<unsigned char> scratch(std::size_t{64} << 20);
    const cuda::workspace work{scratch.data(), scratch.size()};
    const cuda::step_options options{.radius = 4.0};
    const auto forward = [&](int i) {
      cuda::router_rows(ctx_, layout(at(i)), r, matrix(out()), {}, saved, work, options);
    };
    const auto time = [&](const char* what, double moved, const auto& call) {
      line(what + where, microseconds(ctx_.stream, copies_, rounds, call), moved * bytes());
    };
    const auto factored = [&](int i) {
      cuda::router_rows_vjp_factored(ctx_, layout(at(i)), r, saved, g, to_rows,
                                     {yf.data(), wf.data(), dual.data()}, work, options);
    };
    forward(0);
    time("backward, factored", 1, factored);
    time("forward + backward, factored", 2, [&](int i) {
      forward(i);
      factored(i);
    });
    const auto to_memory = [&](int i, const auto& memory, cuda::gradient_mode mode) {
      cuda::router_rows_vjp(ctx_, layout(at(i)), r, saved, g, to_rows,
                            layout(memory[static_cast<std::size_t>(i)].data()), mode, work, options);
    };
    constexpr auto write = cuda::gradient_mode::write, add = cuda::gradient_mode::accumulate;
    {
      const auto gradients = filled<T>(copies_, count_);
      time("backward, written", 2, [&](int i) { to_memory(i, gradients, write); });
      time("backward, accumulated", 3, [&](int i) { to_memory(i, gradients, add); });
      time("forward + backward, written", 3, [&](int i) {
        forward(i);
        to_memory(i, gradients, write);
      });
    }
    if constexpr (is_half<T>) {
      const auto sums = filled<float>(copies_, count_);
      time("backward, accumulated in f32", 5, [&](int i) { to_memory(i, sums, add); });
    }
  }

 private:
  [[nodiscard]] std::size_t rows() const { return static_cast<std::size_t>(s_.num_experts * s_.hidden_dim); }
  [[nodiscard]] const T* at(int i) const { return weights_[static_cast<std::size_t>(i)].data(); }
  template <class U>
  [[nodiscard]] auto matrix(U* data) const {
    return row_major<device_space>(data, s_.num_experts, s_.hidden_dim);
  }

  cuda::context ctx_;
  expert_shape s_;
  std::string shape_;
  std::size_t count_;
  int copies_;
  std::vector<device_buffer<T>> weights_, router_;
  device_buffer<T> out_;
};

template <class T>
void time_shape(const cuda::context& ctx, cublasHandle_t handle, const expert_shape& s) {
  const router_bench<T> bench(ctx, s, false);
  const auto nfd = [&](auto* w) { return experts_nfd<device_space>(w, s); };
  const auto ndf = [&](auto* w) { return experts_ndf<device_space>(w, s); };
  cuda::context at_rest = ctx;
  at_rest.inputs_at_rest = true;
  cuda::context old = ctx;
  old.capability = 80;
  bench.time_floors();
  bench.time_forward(ctx, "forward", nfd);
  bench.time_forward(ctx, "forward [N,D,F]", ndf);
  bench.time_forward(at_rest, "forward, inputs at rest", nfd);
  bench.time_forward(at_rest, "forward [N,D,F], inputs at rest", ndf);
  bench.time_forward(old, "forward, sm_80 path", nfd);
  bench.time_forward(old, "forward [N,D,F], sm_80 path", ndf);
  bench.time_backward("", nfd);
  bench.time_backward(" [N,D,F]", ndf);
  const device_buffer<T> y(static_cast<std::size_t>(s.num_experts * s.ffn_dim));
  for (const bool gemv : {true, false}) {
    bench.line(gemv ? "cuBLAS gemv" : "cuBLAS gemm",
               cublas_microseconds<T>(handle, gemv, bench.weights(), bench.router(), y.data(), bench.out(), s,
                                      ctx.stream),
               bench.bytes());
  }
}

/// Gate and up in turn along the columns: the floors read and copy both.
template <class T>
void time_interleaved(const cuda::context& ctx, const expert_shape& s) {
  const router_bench<T> bench(ctx, s, true);
  const auto gate = [&](auto* w) { return experts_nd2f_interleaved<device_space>(w, s); };
  bench.time_floors();
  bench.time_forward(ctx, "forward [N,D,2F]", gate);
  bench.time_backward(" [N,D,2F]", gate);
}

void time_gating(const cuda::context& ctx, cublasLtHandle_t handle, index_t tokens, index_t n, index_t d,
                 index_t top_k) {
  const std::string shape = std::to_string(tokens) + "x" + std::to_string(n) + "x" + std::to_string(d);
  const cuda::logits_product<bf16> product(handle, tokens, n, d);
  constexpr int copies = 8;
  const auto x = filled<bf16>(copies, static_cast<std::size_t>(tokens * d));
  const auto rows = filled<bf16>(1, static_cast<std::size_t>(n * d));
  const device_buffer<float> logits(static_cast<std::size_t>(tokens * n)),
      weights(static_cast<std::size_t>(tokens * top_k));
  const device_buffer<expert_id> experts(static_cast<std::size_t>(tokens * top_k));
  const device_buffer<unsigned char> scratch(product.workspace_bytes() + 1);
  const auto multiply = [&](int i) {
    product(ctx, x[static_cast<std::size_t>(i)].data(), rows[0].data(), logits.data(),
            {scratch.data(), scratch.size()});
  };
  const auto select = [&] {
    cuda::gate(ctx, row_major<device_space>(static_cast<const float*>(logits.data()), tokens, n),
               {.top_k = top_k}, nullptr, {weights.data(), experts.data()});
  };
  const auto line = [&](const char* work, double us) { print({work, shape, "bf16", us, 0}); };
  line("logits product", microseconds(ctx.stream, copies, rounds, multiply));
  line("gate alone", microseconds(ctx.stream, copies, rounds, [&](int) { select(); }));
  line("logits product + gate", microseconds(ctx.stream, copies, rounds, [&](int i) {
         multiply(i);
         select();
       }));
}

}  // namespace
}  // namespace gpu_bench

int main() {
  using namespace gpu_bench;
  cudaStream_t stream = nullptr;
  must(cudaStreamCreate(&stream), "cudaStreamCreate");
  const auto ctx = mpi_router::cuda::make_context(stream);
  cublasHandle_t handle = nullptr;
  must(cublasCreate(&handle), "cublasCreate");
  must(cublasSetStream(handle, stream), "cublasSetStream");
  cublasLtHandle_t lt = nullptr;
  must(cublasLtCreate(&lt), "cublasLtCreate");
  time_gating(ctx, lt, 16384, 128, 2048, 8);
  for (const mpi_router::expert_shape s :
       {mpi_router::expert_shape{64, 512, 1024}, {64, 1024, 2048}, {128, 768, 2048}, {64, 2048, 7168}}) {
    time_shape<mpi_router::bf16>(ctx, handle, s);
    time_interleaved<mpi_router::bf16>(ctx, s);
#ifndef GPU_BENCH_BF16_ONLY  // halves the time to compile
    time_shape<float>(ctx, handle, s);
#endif
  }
}
