// The table of ratios: time over the time of the floor, for the one-read kernels and for what people would
// use instead. Then the growth with N·F·D, and many steps on an expert that stays in cache.
#include "cases.hpp"
#include "measure.hpp"

#include <mpi_router/backend/simd.hpp>

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <fmt/ostream.h>
#include <omp.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

namespace bench {

timings run_f64(const bench_case& c, int repetitions, double seconds);
timings run_f32(const bench_case& c, int repetitions, double seconds);
timings run_bf16(const bench_case& c, int repetitions, double seconds);
timings run_f16(const bench_case& c, int repetitions, double seconds);

namespace {

timings run(const bench_case& c, int repetitions, double seconds) {
  if (c.dtype == "f64") return run_f64(c, repetitions, seconds);
  if (c.dtype == "f32") return run_f32(c, repetitions, seconds);
  if (c.dtype == "bf16") return run_bf16(c, repetitions, seconds);
  return run_f16(c, repetitions, seconds);
}

std::string first_line_with(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string ratio(std::optional<double> time, double floor) {
  return time ? fmt::format("{:.2f}", *time / floor) : std::string("-");
}

/// Least-squares slope of log time against log N·F·D.
double slope(const std::vector<std::pair<double, double>>& points) {
  double mx = 0;
  double my = 0;
  for (const auto& [x, y] : points) {
    mx += std::log(x) / static_cast<double>(points.size());
    my += std::log(y) / static_cast<double>(points.size());
  }
  double xy = 0;
  double xx = 0;
  for (const auto& [x, y] : points) {
    xy += (std::log(x) - mx) * (std::log(y) - my);
    xx += (std::log(x) - mx) * (std::log(x) - mx);
  }
  return xy / xx;
}

/// Three decades of N·F·D, all larger than the caches, F and D as in the first large shape.
void print_growth(int repetitions) {
  std::vector<std::pair<double, double>> points;
  fmt::print("\nGrowth, f32 [N, F, D], 1 thread:\n  N x F x D          N·F·D      seconds   ns per weight\n");
  for (const index_t f : {1, 4, 16, 64, 256, 1024}) {
    // 64 experts of f × 2048: between 2^17 and 2^27 weights.
    const bench_case c{{64, f, 2048}, "f32", true, work_kind::forward, 1};
    const double weights = bytes_of(c) / 4;
    const double t = run(c, repetitions, 0.02).ours;
    points.emplace_back(weights, t);
    fmt::print("  {:<14} {:>10.3g}  {:>11.3e}  {:>8.3f}\n", shape_name(c.shape), weights, t,
               t / weights * 1e9);
  }
  fmt::print("  slope of log time against log N·F·D: {:.3f}\n", slope(points));
}

/// k steps expert by expert, against k sweeps over all experts.
void print_steps(int repetitions) {
  constexpr index_t steps = 16;
  constexpr index_t experts = 32;
  constexpr index_t f = 1024;
  constexpr index_t d = 2048;
  std::vector<float> weights(static_cast<std::size_t>(experts * f * d));
  for (std::size_t i = 0; i < weights.size(); ++i) {
    weights[i] = static_cast<float>(static_cast<int>((i * 2654435761U >> 8U) % 2001U) - 1000) / 1024.0F;
  }
  std::vector<float> rows(static_cast<std::size_t>(experts * d), 1.0F);
  std::vector<float> image(static_cast<std::size_t>(d));
  const auto step = [&](index_t i) {
    const auto a = mpi_router::gate_fd<mpi_router::host_space>(
        static_cast<const float*>(weights.data()) + i * f * d, f, d);
    float* const row = rows.data() + i * d;
    mpi_router::simd{}.apply(a, mpi_router::vector_view<const float>(row, d),
                             mpi_router::vector_view<float>(image));
    float square = 0;
    for (const float u : image) square += u * u;
    const float scale = 1.0F / std::sqrt(square);
    for (std::size_t k = 0; k < image.size(); ++k) row[k] = image[k] * scale;
  };
  const std::vector<contender> all{{"expert by expert",
                                    [&] {
                                      for (index_t i = 0; i < experts; ++i) {
                                        for (index_t k = 0; k < steps; ++k) step(i);
                                      }
                                    }},
                                   {"sweep by sweep", [&] {
                                      for (index_t k = 0; k < steps; ++k) {
                                        for (index_t i = 0; i < experts; ++i) step(i);
                                      }
                                    }}};
  const std::vector<double> t = medians(all, repetitions, 0);
  fmt::print(
      "\n{} steps on {} experts of {} MB, f32, 1 thread: expert by expert {:.3f} s, sweep by sweep {:.3f} s, "
      "ratio {:.2f}\n",
      steps, experts, f * d * 4 / (1 << 20), t[0], t[1], t[0] / t[1]);
}

nlohmann::ordered_json as_json(const bench_case& c, const timings& t) {
  const auto or_null = [](std::optional<double> x) {
    return x ? nlohmann::ordered_json(*x) : nlohmann::ordered_json();
  };
  return {{"shape", shape_name(c.shape)},
          {"dtype", c.dtype},
          {"layout", layout_name(c)},
          {"work", to_string(c.work)},
          {"threads", c.threads},
          {"floor_s", t.floor},
          {"ours_s", t.ours},
          {"eigen_s", or_null(t.eigen)},
          {"openblas_s", or_null(t.openblas)},
          {"libtorch_s", or_null(t.libtorch)}};
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  bool quick = false;
  std::string json_path;
  std::string only;
  int repetitions = 0;
  int threads = omp_get_max_threads();
  CLI::App app(
      "Times the one-read kernels beside a plain read of the weights, Eigen, OpenBLAS and libtorch.");
  app.add_flag("--quick", quick, "two large shapes, under a minute");
  app.add_option("--json", json_path, "write the seconds to this file");
  app.add_option("--threads", threads, "the second number of threads")->check(CLI::PositiveNumber);
  app.add_option("--repetitions", repetitions, "rounds of each case")->check(CLI::PositiveNumber);
  app.add_option("--only", only,
                 "cases whose line contains this, such as f32 or 64x1024x2048; growth, steps: these alone");
  CLI11_PARSE(app, argc, argv);
  if (repetitions == 0) repetitions = quick ? 5 : 11;

  char name[] = "bench_cpu";
  char interleave[] = "--benchmark_enable_random_interleaving=true";
  char* library_argv[] = {name, interleave, nullptr};
  int library_argc = 2;
  benchmark::Initialize(&library_argc, library_argv);

  fmt::print("{}\n{}, xsimd {}, median of {} rounds\n", bench::first_line_with("/proc/cpuinfo", "model name"),
             MPIROUTER_BENCH_COMPILER, xsimd::default_arch::name(), repetitions);
  fmt::print("Times the floor; the floor in ms and GB/s (forward: bytes of the weights).\n\n");
  fmt::print("{:<15} {:<5} {:<6} {:<9} {:>7}  {:>9} {:>6}  {:>5} {:>6} {:>8} {:>8}\n", "shape NxFxD", "dtype",
             "layout", "work", "threads", "floor ms", "GB/s", "ours", "Eigen", "OpenBLAS", "libtorch");
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const bench::bench_case& c : bench::table_cases(quick, threads)) {
    const std::string head = fmt::format("{:<15} {:<5} {:<6} {:<9} {:>7}", bench::shape_name(c.shape),
                                         c.dtype, bench::layout_name(c), bench::to_string(c.work), c.threads);
    if (head.find(only) == std::string::npos) continue;
    const bench::timings t = bench::run(c, repetitions, 0.02);
    fmt::print("{}  {:>9.3f} {:>6.1f}  {:>5} {:>6} {:>8} {:>8}\n", head, t.floor * 1e3,
               bench::bytes_of(c) / t.floor * 1e-9, bench::ratio(t.ours, t.floor),
               bench::ratio(t.eigen, t.floor), bench::ratio(t.openblas, t.floor),
               bench::ratio(t.libtorch, t.floor));
    std::cout.flush();
    list.push_back(bench::as_json(c, t));
  }
  if (!json_path.empty()) {
    std::ofstream file(json_path);
    file << list.dump(2) << '\n';
    if (!file) {
      fmt::print(std::cerr, "cannot write {}\n", json_path);
      return 1;
    }
  }
  const auto follows = [&](const char* part) { return only == part || (!quick && only.empty()); };
  if (follows("growth")) bench::print_growth(repetitions);
  if (follows("steps")) bench::print_steps(std::min(repetitions, 5));
  return 0;
}
