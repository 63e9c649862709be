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

template <class T>
void time_shape(const cuda::context& ctx, cublasHandle_t handle, const expert_shape& s) {
  const auto [n, f, d] = s;
  const auto count = static_cast<std::size_t>(n * f * d);
  const double bytes = static_cast<double>(count) * sizeof(T);
  const std::string shape = std::to_string(n) + "x" + std::to_string(f) + "x" + std::to_string(d);
  const int copies = std::max(3, static_cast<int>(400e6 / bytes) + 1);
  const auto weights = filled<T>(copies, count);
  const auto rows = filled<T>(1, static_cast<std::size_t>(n * d));
  const device_buffer<T> out(static_cast<std::size_t>(n * d)), y(static_cast<std::size_t>(n * f));
  const device_buffer<unsigned> sink(1);
  const auto at = [&](int i) { return static_cast<const T*>(weights[static_cast<std::size_t>(i)].data()); };
  const auto line = [&](const char* work, double us, double moved) {
    print({work, shape, type_name<T>, us, moved});
  };

  const std::size_t vectors = count * sizeof(T) / 16;
  line("read floor",
       microseconds(ctx.stream, copies, rounds,
                    [&](int i) {
                      read_kernel<><<<floor_blocks(vectors), floor_threads, 0, ctx.stream>>>(
                          reinterpret_cast<const uint4*>(at(i)), vectors, sink.data());
                    }),
       bytes);
  line("read floor, started early",
       microseconds(ctx.stream, copies, rounds,
                    [&](int i) {
                      mpi_router::cuda::detail::launch(
                          "read_kernel", ctx, {floor_blocks(vectors), floor_threads}, read_kernel<>,
                          reinterpret_cast<const uint4*>(at(i)), vectors, sink.data());
                    }),
       bytes);
  line("copy floor",
       microseconds(ctx.stream, copies / 2 * 2, rounds,
                    [&](int i) {
                      copy_kernel<><<<floor_blocks(vectors), floor_threads, 0, ctx.stream>>>(
                          reinterpret_cast<const uint4*>(at(i)),
                          reinterpret_cast<uint4*>(const_cast<T*>(at(i ^ 1))), vectors);
                    }),
       2 * bytes);

  const auto forward = [&](const cuda::context& c, const char* work, const auto& layout) {
    const std::size_t need = cuda::router_rows_workspace(c, layout(at(0)));
    const device_buffer<unsigned char> scratch(need);
    const auto r = row_major<device_space>(static_cast<const T*>(rows[0].data()), n, d);
    line(work,
         microseconds(c.stream, copies, rounds,
                      [&](int i) {
                        cuda::router_rows(c, layout(at(i)), r, row_major<device_space>(out.data(), n, d), {},
                                          {}, {scratch.data(), need}, {.radius = 4.0});
                      }),
         bytes);
    std::fprintf(stderr, "%s %s: workspace %.2f %% of the weights\n", work, shape.c_str(),
                 100.0 * static_cast<double>(need) / bytes);
  };
  const auto backward = [&](const cuda::context& c) {
    const auto upstream = filled<T>(1, static_cast<std::size_t>(n * d));
    const device_buffer<float> direction(static_cast<std::size_t>(n * d)),
        dual(static_cast<std::size_t>(n * d)), grad_rows(static_cast<std::size_t>(n * d)),
        yf(static_cast<std::size_t>(n * f)), wf(static_cast<std::size_t>(n * f));
    const device_buffer<double> norms(static_cast<std::size_t>(n));
    const device_buffer<status> statuses(static_cast<std::size_t>(n));
    const cuda::saved_step saved{direction.data(), norms.data(), statuses.data()};
    const auto weights_at = [&](int i) { return experts_nfd<device_space>(at(i), s); };
    const auto r = row_major<device_space>(static_cast<const T*>(rows[0].data()), n, d);
    const auto g = row_major<device_space>(static_cast<const T*>(upstream[0].data()), n, d);
    const auto to_rows = row_major<device_space>(grad_rows.data(), n, d);
    const auto to = row_major<device_space>(out.data(), n, d);
    const device_buffer<unsigned char> scratch(std::size_t{64} << 20);
    const cuda::workspace work{scratch.data(), scratch.size()};
    const cuda::step_options options{.radius = 4.0};
    cuda::router_rows(c, weights_at(0), r, to, {}, saved, work, options);
    line("backward, factored",
         microseconds(c.stream, copies, rounds,
                      [&](int i) {
                        cuda::router_rows_vjp_factored(c, weights_at(i), r, saved, g, to_rows,
                                                       {yf.data(), wf.data(), dual.data()}, work, options);
                      }),
         bytes);
    line("forward + backward, factored",
         microseconds(c.stream, copies, rounds,
                      [&](int i) {
                        cuda::router_rows(c, weights_at(i), r, to, {}, saved, work, options);
                        cuda::router_rows_vjp_factored(c, weights_at(i), r, saved, g, to_rows,
                                                       {yf.data(), wf.data(), dual.data()}, work, options);
                      }),
         2 * bytes);
    const auto gradients = filled<T>(copies, count);
    const auto gradient_at = [&](int i) {
      return experts_nfd<device_space>(gradients[static_cast<std::size_t>(i)].data(), s);
    };
    for (const auto mode : {cuda::gradient_mode::write, cuda::gradient_mode::accumulate}) {
      const bool write = mode == cuda::gradient_mode::write;
      line(write ? "backward, written" : "backward, accumulated",
           microseconds(c.stream, copies, rounds,
                        [&](int i) {
                          cuda::router_rows_vjp(c, weights_at(i), r, saved, g, to_rows, gradient_at(i), mode,
                                                work, options);
                        }),
           (write ? 2 : 3) * bytes);
    }
    line("forward + backward, written",
         microseconds(c.stream, copies, rounds,
                      [&](int i) {
                        cuda::router_rows(c, weights_at(i), r, to, {}, saved, work, options);
                        cuda::router_rows_vjp(c, weights_at(i), r, saved, g, to_rows, gradient_at(i),
                                              cuda::gradient_mode::write, work, options);
                      }),
         3 * bytes);
    if constexpr (is_half<T>) {
      const auto sums = filled<float>(copies, count);
      line("backward, accumulated in f32",
           microseconds(c.stream, copies, rounds,
                        [&](int i) {
                          cuda::router_rows_vjp(
                              c, weights_at(i), r, saved, g, to_rows,
                              experts_nfd<device_space>(sums[static_cast<std::size_t>(i)].data(), s),
                              cuda::gradient_mode::accumulate, work, options);
                        }),
           5 * bytes);
    }
  };
  const auto nfd = [&](const T* w) { return experts_nfd<device_space>(w, s); };
  const auto ndf = [&](const T* w) { return experts_ndf<device_space>(w, s); };
  forward(ctx, "forward", nfd);
  forward(ctx, "forward [N,D,F]", ndf);
  cuda::context at_rest = ctx;
  at_rest.inputs_at_rest = true;
  forward(at_rest, "forward, inputs at rest", nfd);
  forward(at_rest, "forward [N,D,F], inputs at rest", ndf);
  cuda::context old = ctx;
  old.capability = 80;
  forward(old, "forward, sm_80 path", nfd);
  forward(old, "forward [N,D,F], sm_80 path", ndf);
  backward(ctx);
  line("cuBLAS gemv",
       cublas_microseconds<T>(handle, true, weights, rows[0].data(), y.data(), out.data(), s, ctx.stream),
       bytes);
  line("cuBLAS gemm",
       cublas_microseconds<T>(handle, false, weights, rows[0].data(), y.data(), out.data(), s, ctx.stream),
       bytes);
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
#ifndef GPU_BENCH_BF16_ONLY  // halves the time to compile
    time_shape<float>(ctx, handle, s);
#endif
  }
}
