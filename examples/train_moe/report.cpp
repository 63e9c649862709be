#include "report.hpp"

#include <mpi_router/io/safetensors.hpp>

#include <fmt/format.h>

#include <fstream>

namespace train {
namespace {

using mpi_router::running_statistics;

/// Last records of the runs of one router.
template <class Value>
running_statistics over_seeds(const std::vector<run_result>& runs, router_kind router, Value value) {
  running_statistics out;
  for (const auto& run : runs) {
    if (run.router == router) out.add(value(run.trace.back()));
  }
  return out;
}

std::string with_spread(const running_statistics& s, int digits) {
  return s.count > 1 ? fmt::format("{:.{}f} ±{:.{}f}", s.mean, digits, s.sample_deviation(), digits)
                     : fmt::format("{:.{}f}", s.mean, digits);
}

}  // namespace

void print_summary(std::FILE* out, const std::vector<run_result>& runs, index_t experts, index_t top_k) {
  fmt::print(out, "{:<16} {:>16} {:>16} {:>14} {:>14} {:>14} {:>14} {:>14}\n", "router", "test loss",
             "train loss", "λ (σ₁)", "λ (Frobenius)", "|cosine|", "MaxVio batch", "MaxVio global");
  for (const router_kind router : all_routers) {
    const auto column = [&](auto value, int digits) {
      return with_spread(over_seeds(runs, router, value), digits);
    };
    if (over_seeds(runs, router, [](const record&) { return 0.0; }).count == 0) continue;
    fmt::print(out, "{:<16} {:>16} {:>16} {:>14} {:>14} {:>14} {:>14} {:>14}\n", to_string(router),
               column([](const record& r) { return r.test_loss; }, 4),
               column([](const record& r) { return r.train_loss; }, 4),
               column([](const record& r) { return r.alignment.spectral.mean; }, 3),
               column([](const record& r) { return r.alignment.frobenius.mean; }, 3),
               column([](const record& r) { return r.alignment.cosine.mean; }, 3),
               column([](const record& r) { return r.max_violation_batch; }, 3),
               column([](const record& r) { return r.max_violation_global; }, 3));
  }
  fmt::print(
      out,
      "\nMean ± standard deviation over seeds, at the last step. Losses in nats per byte; λ and cosine of "
      "the "
      "rows\nthat tokens met, against the principal direction of each gate matrix, mean over experts and "
      "layers; MaxVio of\nthe steps since the record before, at most N/K − 1 = {:g}. Differences within the "
      "spread say nothing.\n",
      static_cast<double>(experts) / static_cast<double>(top_k) - 1);
}

void write_traces(const std::filesystem::path& path, const std::vector<run_result>& runs) {
  std::ofstream out(path);
  out << "router,seed,step,train_loss,test_loss,balance_loss,lambda_spectral,lambda_frobenius,cosine,cosine_"
         "min,"
         "maxvio_batch,maxvio_global,load_entropy\n";
  for (const auto& run : runs) {
    for (const record& r : run.trace) {
      out << fmt::format("{},{},{},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f}\n",
                         to_string(run.router), run.seed, r.step, r.train_loss, r.test_loss, r.balance_loss,
                         r.alignment.spectral.mean, r.alignment.frobenius.mean, r.alignment.cosine.mean,
                         r.alignment.cosine.min, r.max_violation_batch, r.max_violation_global, r.entropy);
    }
  }
  out.flush();
  if (!out) throw std::runtime_error(path.string() + " cannot be written");
}

void write_checkpoint(const std::filesystem::path& path, const run_result& run, const settings& s) {
  std::vector<mpi_router::tensor_source> tensors;
  for (const parameter* p : run.trained->parameters()) {
    tensors.push_back(mpi_router::make_tensor_source<float>(
        p->name, p->shape, {p->value.data(), static_cast<std::size_t>(p->value.size())}));
  }
  mpi_router::write_safetensors(path, tensors,
                                {{"router", std::string(to_string(run.router))},
                                 {"seed", std::to_string(run.seed)},
                                 {"steps", std::to_string(s.steps)},
                                 {"top_k", std::to_string(s.sizes.moe.top_k)},
                                 {"C_prime", fmt::format("{}", s.c_prime)}});
}

}  // namespace train
