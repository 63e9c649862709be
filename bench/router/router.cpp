// Forward and backward of the batched step against reading the weights twice and updating the gradient once;
// the gate against the bare product of its logits. Contenders take turns in one process; the figure of each
// is its median, and the ratios are medians of the ratios within a turn.
//
//   bench_router [THREADS] [TURNS] [N F D]
#include <mpi_router/backend/parallel.hpp>
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/router/gating.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <string>
#include <vector>

namespace {

using namespace mpi_router;

struct contender {
  std::string name;
  std::function<void()> run;
};

double seconds_of(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
double median(std::vector<double> x) {
  const auto middle = x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2);
  std::nth_element(x.begin(), middle, x.end());
  return *middle;
}

/// Times of each contender, one list each, after one turn that does not count.
std::vector<std::vector<double>> take_turns(const std::vector<contender>& contenders, int turns) {
  std::vector<std::vector<double>> out(contenders.size());
  for (int turn = -1; turn < turns; ++turn) {
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      const double time = seconds_of(contenders[i].run);
      if (turn >= 0) out[i].push_back(time);
    }
  }
  return out;
}

/// Median of (Σ over `top`) / (Σ over `bottom` with weights) within turns.
double ratio(const std::vector<std::vector<double>>& times, const std::vector<std::size_t>& top,
             const std::vector<std::pair<std::size_t, double>>& bottom) {
  std::vector<double> out;
  for (std::size_t turn = 0; turn < times[0].size(); ++turn) {
    double above = 0;
    double below = 0;
    for (const std::size_t i : top) above += times[i][turn];
    for (const auto& [i, weight] : bottom) below += weight * times[i][turn];
    out.push_back(above / below);
  }
  return median(out);
}

volatile float sink = 0;

/// Calls f(first, count) for pieces of a range, in parallel.
template <class F>
void in_pieces(const openmp_executor& executor, index_t size, const F& f) {
  constexpr index_t piece = index_t{1} << 18;
  executor((size + piece - 1) / piece, [&](index_t i) { f(i * piece, std::min(piece, size - i * piece)); });
}

/// Reads `bytes` of memory with plain vector code.
void read_all(const openmp_executor& executor, const void* data, index_t bytes) {
  in_pieces(executor, bytes / 4, [data](index_t first, index_t count) {
    const Eigen::Map<const Eigen::Array<std::int32_t, Eigen::Dynamic, 1>> x(
        static_cast<const std::int32_t*>(data) + first, count);
    sink = static_cast<float>(x.sum());
  });
}
/// Reads and writes a gradient.
void update_all(const openmp_executor& executor, float* data, index_t size) {
  in_pieces(executor, size, [data](index_t first, index_t count) {
    Eigen::Map<Eigen::ArrayXf>(data + first, count) += 1e-3F;
  });
}

template <class T>
void bench_rows(const char* type, const expert_shape& shape, int threads, int turns) {
  const auto [N, F, D] = shape;
  const index_t size = N * F * D;
  const openmp_executor executor{threads};
  std::vector<T> a(static_cast<std::size_t>(size));
  std::vector<float> gradient(a.size()), router(static_cast<std::size_t>(N * D)), rows(router.size()),
      grad(router.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    a[i] = narrow<T>(static_cast<float>((i * 2654435761U) >> 8U & 0xffffU) * 0x1p-16F - 0.5F);
  for (std::size_t i = 0; i < router.size(); ++i) router[i] = static_cast<float>(i % 97) - 48;
  const router_options options{};
  std::vector<float> tape(static_cast<std::size_t>(router_tape_size(shape, options)));
  std::vector<float> workspace(static_cast<std::size_t>(router_rows_vjp_workspace(shape)));
  std::vector<float> buffer(static_cast<std::size_t>(router_factors<float>::size(shape, options)));
  const router_factors<float> factors(buffer, shape, options);
  const auto experts = experts_nfd(a.data(), shape);
  const auto R = row_major(router.data(), N, D);
  const auto times =
      take_turns({{"read", [&] { read_all(executor, a.data(), size * static_cast<index_t>(sizeof(T))); }},
                  {"update", [&] { update_all(executor, gradient.data(), size); }},
                  {"forward",
                   [&] {
                     router_rows(experts, R, row_major(rows.data(), N, D), options, workspace, {.tape = tape},
                                 simd{}, executor);
                   }},
                  {"backward",
                   [&] {
                     router_rows_vjp(experts, R, tape, row_major(router.data(), N, D), options,
                                     row_major(grad.data(), N, D), experts_nfd(gradient.data(), shape),
                                     gradient_mode::accumulate, workspace, simd{}, executor);
                   }},
                  {"factored",
                   [&] {
                     router_rows_vjp_factored(experts, R, tape, row_major(router.data(), N, D), options,
                                              row_major(grad.data(), N, D), factors, gradient_mode::write,
                                              workspace, simd{}, executor);
                   }}},
                 turns);
  std::printf("rows, %s, N = %td, F = %td, D = %td, gradient f32, %d threads\n", type, N, F, D, threads);
  const char* names[] = {"read of the weights", "update of the gradient", "forward", "backward, accumulated",
                         "backward, factored"};
  for (std::size_t i = 0; i < times.size(); ++i)
    std::printf("  %-40s %9.2f ms\n", names[i], 1e3 * median(times[i]));
  std::printf("  %-40s %9.3f\n", "forward / read", ratio(times, {2}, {{0, 1}}));
  std::printf("  %-40s %9.3f\n", "backward / (read + update)", ratio(times, {3}, {{0, 1}, {1, 1}}));
  std::printf("  %-40s %9.3f\n", "factored / read", ratio(times, {4}, {{0, 1}}));
  std::printf("  %-40s %9.3f\n", "(forward + backward) / (2 reads + update)",
              ratio(times, {2, 3}, {{0, 2}, {1, 1}}));
  std::fflush(stdout);
}

void bench_gate(index_t T, index_t N, index_t D, int threads, int turns) {
  const openmp_executor executor{threads};
  using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const matrix x = matrix::Random(T, D);
  const matrix rows = matrix::Random(N, D) / std::sqrt(static_cast<float>(D)) * 4;
  matrix logits(T, N), by_eigen(T, N);
  std::vector<float> workspace(static_cast<std::size_t>(gating_workspace(T, N)));
  const auto X = row_major(x.data(), T, D);
  const auto R = row_major(rows.data(), N, D);
  const auto Z = row_major(logits.data(), T, N);
  std::vector<contender> contenders{
      {"bare product", [&] { router_logits(X, R, Z, executor); }},
      {"bare product, Eigen (one thread)", [&] { by_eigen.noalias() = x * rows.transpose(); }}};
  const gating_options settings[] = {{.top_k = 2},
                                     {.top_k = 8},
                                     {.top_k = 8,
                                      .score_function = score_function::sigmoid,
                                      .scaling_factor = 2.5,
                                      .n_group = 8,
                                      .topk_group = 4},
                                     {.top_k = 6, .score_function = score_function::sqrtsoftplus}};
  const char* names[] = {"softmax, top 2", "softmax, top 8", "sigmoid, top 8, groups 4 of 8",
                         "sqrtsoftplus, top 6"};
  std::vector<std::vector<float>> weights;
  std::vector<std::vector<expert_id>> ids;
  for (const auto& o : settings) {
    weights.emplace_back(static_cast<std::size_t>(T * o.top_k));
    ids.emplace_back(weights.back().size());
  }
  for (std::size_t i = 0; i < 4; ++i) {
    contenders.push_back(
        {names[i], [&, i] {
           route(X, R, settings[i], {}, Z,
                 gate_output<float>{row_major(weights[i].data(), T, settings[i].top_k), ids[i]}, workspace,
                 executor);
         }});
  }
  const auto times = take_turns(contenders, turns);
  std::printf("gate, f32, T = %td, N = %td, D = %td, %d threads\n", T, N, D, threads);
  for (std::size_t i = 0; i < times.size(); ++i) {
    std::printf("  %-40s %9.2f ms", contenders[i].name.c_str(), 1e3 * median(times[i]));
    if (i >= 2) std::printf("   %.3f of the bare product", ratio(times, {i}, {{0, 1}}));
    std::printf("\n");
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, int otherwise) { return argc > i ? std::atoi(argv[i]) : otherwise; };
  const int threads = argument(1, 1);
  const int turns = argument(2, 9);
  const expert_shape shape{argument(3, 64), argument(4, 1024), argument(5, 2048)};
  try {
    bench_gate(8192, 64, 2048, threads, turns);
    bench_rows<float>("f32", shape, threads, turns);
    bench_rows<bf16>("bf16", shape, threads, turns);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_router: %s\n", error.what());
    return 2;
  }
}
