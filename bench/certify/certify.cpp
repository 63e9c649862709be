// How long it takes to certify an expert without an SVD, beside Eigen's BDCSVD and Spectra's partial SVD of
// the same matrix, in one run: the 32 experts of the two models that come with the project, and one large
// expert.
//
// Every round runs all of them in turn, so that a machine that slows down slows them all; the counters are
// medians over the rounds: milliseconds an expert, and ratios to the certificate by probe.
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/io/safetensors.hpp>
#include <mpi_router/verify/principal.hpp>
#include <mpi_router/verify/singular.hpp>

#include <benchmark/benchmark.h>

#include <Spectra/contrib/PartialSVDSolver.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace mpi_router;

// Relative to ρ: leaves σ₁ exact to 1e-16 and the direction to some 1e-8.
constexpr double residual_tolerance = 1e-8;

template <class S>
using by_rows = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct expert {
  Eigen::MatrixXd a;  // what Eigen and Spectra read, in Eigen's own order
  Eigen::VectorXd row;
  by_rows<double> stored = a;               // what the search reads, [F, D] as checkpoints store it
  by_rows<float> probed = a.cast<float>();  // what the probe reads: α needs few digits
};

std::vector<expert> experts_of(const std::string& model) {
  const safetensors_file file(std::filesystem::path(MPIROUTER_MODELS) / model);
  std::vector<expert> out;
  for (const std::string layer : {"model.layers.0.mlp.", "model.layers.1.mlp."}) {
    const auto& gate = file.at(layer + "experts.gate_proj");
    const auto& router = file.at(layer + "router.weight");
    const auto shape = gate.shape();
    const auto elements = gate.load<bf16>();
    const auto rows = router.load<float>();
    const auto batch =
        experts_nfd(elements.data(), {.num_experts = shape[0], .ffn_dim = shape[1], .hidden_dim = shape[2]});
    for (index_t e = 0; e < batch.num_experts(); ++e) {
      const auto a = batch[e];
      Eigen::MatrixXd dense(a.rows(), a.cols());
      for (index_t f = 0; f < a.rows(); ++f) {
        for (index_t d = 0; d < a.cols(); ++d) dense(f, d) = widen<double>(a(f, d));
      }
      out.push_back({dense, map(row_major(rows.data(), shape[0], shape[2]).row(e)).cast<double>()});
    }
  }
  return out;
}

/// The size of an expert of OLMoE (1024 × 2048), with a spectrum like those of the small models: σ_k = (1 +
/// k)^{-1/4}.
std::vector<expert> one_large() {
  constexpr index_t F = 1024, D = 2048, rank = 256;
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  const auto gaussian = [&](index_t rows, index_t cols) {
    return Eigen::MatrixXd::NullaryExpr(rows, cols, [&] { return normal(random); }).eval();
  };
  const auto orthonormal = [&](index_t rows) {
    const Eigen::HouseholderQR<Eigen::MatrixXd> qr(gaussian(rows, rank));
    return (qr.householderQ() * Eigen::MatrixXd::Identity(rows, rank)).eval();
  };
  const Eigen::VectorXd sigma =
      Eigen::VectorXd::LinSpaced(rank, 1, static_cast<double>(rank)).array().pow(-0.25);
  const expert one{orthonormal(F) * sigma.asDiagonal() * orthonormal(D).transpose(), gaussian(D, 1)};
  return {one};
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

template <class Work>
double seconds_of(Work work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void certify_beside_svd(benchmark::State& state, const std::vector<expert>& experts, index_t rigorous_up_to) {
  std::vector<double> ours, rigorous, bdc, partial, to_bdc, to_partial;
  const auto count = static_cast<double>(experts.size());
  for ([[maybe_unused]] auto _ : state) {
    double round[4] = {};
    for (const expert& e : experts) {
      const certify_options options{.residual_tolerance = residual_tolerance};
      round[0] += seconds_of([&] {
        auto found = find_principal(gram(e.stored, simd{}), gram(e.probed, simd{}), view(e.row), options);
        if (found.proof.label != certainty::probabilistic) state.SkipWithError("not certified by the probe");
        benchmark::DoNotOptimize(found.proof.angle_bound);
      });
      if (std::min(e.a.rows(), e.a.cols()) <= rigorous_up_to) {
        round[1] += seconds_of([&] {
          auto found = find_principal(e.a, view(e.row), options);
          if (found.proof.label != certainty::rigorous)
            state.SkipWithError("not certified by the trace ladder");
          benchmark::DoNotOptimize(found.proof.angle_bound);
        });
      }
      round[2] += seconds_of([&] {
        const auto svd = mpi_router::detail::bdc_svd(e.a);
        benchmark::DoNotOptimize(svd.singularValues().data());
      });
      round[3] += seconds_of([&] {  // two values, for the gap; 10 vectors were the fastest of 6, 10, 20
        Spectra::PartialSVDSolver<Eigen::MatrixXd> solver(e.a, 2, 10);
        if (solver.compute(1000, residual_tolerance) != 2) state.SkipWithError("Spectra did not converge");
        benchmark::DoNotOptimize(solver.matrix_V(1).data());
      });
    }
    ours.push_back(round[0] / count);
    rigorous.push_back(round[1] / count);
    bdc.push_back(round[2] / count);
    partial.push_back(round[3] / count);
    to_bdc.push_back(round[2] / round[0]);
    to_partial.push_back(round[3] / round[0]);
  }
  state.counters["probe_ms"] = 1e3 * median(ours);
  state.counters["ladder_ms"] = 1e3 * median(rigorous);
  state.counters["BDCSVD_ms"] = 1e3 * median(bdc);
  state.counters["Spectra_ms"] = 1e3 * median(partial);
  state.counters["BDCSVD/probe"] = median(to_bdc);
  state.counters["Spectra/probe"] = median(to_partial);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const auto with_mpi = experts_of("tiny-mpi.safetensors");
  const auto usual = experts_of("tiny-vanilla.safetensors");
  const auto large = one_large();
  const auto add = [](const char* name, const std::vector<expert>& experts, index_t rigorous_up_to,
                      int rounds) {
    benchmark::RegisterBenchmark(name,
                                 [&experts, rigorous_up_to](benchmark::State& state) {
                                   certify_beside_svd(state, experts, rigorous_up_to);
                                 })
        ->Iterations(rounds)
        ->Unit(benchmark::kMillisecond);
  };
  add("tiny-mpi, 16 experts of 128x256", with_mpi, 512, 31);
  add("tiny-vanilla, 16 experts of 128x256", usual, 512, 31);
  add("one expert of 1024x2048", large, 0, 9);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
