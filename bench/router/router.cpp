// Forward and backward of the batched step against reading the weights twice and updating the gradient once,
// by the best of the floors of bench/cpu; the gate against the bare product of its logits. Contenders take
// turns in one process; the figure of each is its median, and the ratios are medians of the ratios within a
// turn.
//
//   bench_router [THREADS] [TURNS] [N F D]
#include "floors.hpp"

#include <mpi_router/backend/executors.hpp>
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

using bench::contender;

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

/// The fastest of `count` contenders from `first` on, by their medians.
std::size_t best_of(const std::vector<std::vector<double>>& times, std::size_t first, std::size_t count) {
  const auto begin = times.begin() + static_cast<std::ptrdiff_t>(first);
  const auto best = std::min_element(begin, begin + static_cast<std::ptrdiff_t>(count),
                                     [](const auto& a, const auto& b) { return median(a) < median(b); });
  return static_cast<std::size_t>(best - times.begin());
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
  const auto bytes = static_cast<std::size_t>(size) * sizeof(T);
  std::vector<contender> contenders =
      bench::read_floors(a.data(), bytes, static_cast<std::size_t>(D) * sizeof(T), threads);
  const std::size_t reads = contenders.size();
  for (contender& c : bench::update_floors(a.data(), bytes, sizeof(T), gradient.data(), threads)) {
    contenders.push_back(std::move(c));
  }
  const std::size_t floors = contenders.size();
  contenders.push_back({"forward", [&] {
                          router_rows(experts, R, row_major(rows.data(), N, D), options, workspace,
                                      {.tape = tape}, simd{}, executor);
                        }});
  contenders.push_back({"backward, accumulated", [&] {
                          router_rows_vjp(experts, R, tape, row_major(router.data(), N, D), options,
                                          row_major(grad.data(), N, D), experts_nfd(gradient.data(), shape),
                                          gradient_mode::accumulate, workspace, simd{}, executor);
                        }});
  contenders.push_back({"backward, factored", [&] {
                          router_rows_vjp_factored(experts, R, tape, row_major(router.data(), N, D), options,
                                                   row_major(grad.data(), N, D), factors,
                                                   gradient_mode::write, workspace, simd{}, executor);
                        }});
  const auto times = take_turns(contenders, turns);
  const std::size_t read = best_of(times, 0, reads);
  const std::size_t update = best_of(times, reads, floors - reads);
  std::printf("rows, %s, N = %td, F = %td, D = %td, gradient f32, %d threads\n", type, N, F, D, threads);
  for (const std::size_t i : {read, update, floors, floors + 1, floors + 2})
    std::printf("  %-48s %9.2f ms\n", contenders[i].name.c_str(), 1e3 * median(times[i]));
  const auto print_ratio = [&](const char* name, const std::vector<std::size_t>& top,
                               const std::vector<std::pair<std::size_t, double>>& bottom) {
    std::printf("  %-48s %9.3f\n", name, ratio(times, top, bottom));
  };
  print_ratio("forward / read", {floors}, {{read, 1}});
  print_ratio("backward / (read and update)", {floors + 1}, {{update, 1}});
  print_ratio("factored / read", {floors + 2}, {{read, 1}});
  print_ratio("(forward + backward) / (2 reads and update)", {floors, floors + 1}, {{read, 1}, {update, 1}});
  std::fflush(stdout);
}

void bench_gate(index_t T, index_t N, index_t D, int threads, int turns) {
  const openmp_executor executor{threads};
  Eigen::setNbThreads(threads);
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
      {"bare product, Eigen", [&] { by_eigen.noalias() = x * rows.transpose(); }}};
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
  const int threads = std::max(1, argument(1, 1));
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
