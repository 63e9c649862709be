#include "experiment.hpp"

#include <mpi_router/manifold/rayleigh.hpp>

#include <Eigen/Eigenvalues>

namespace train {
namespace {

using namespace mpi_router;

/// λ and the cosine of every row against the top eigenvector of its M.
alignment_statistics measure_alignment(model& m) {
  alignment_statistics out;
  for (const auto& layer : m.layers()) {
    const auto gates = layer->gates();
    for (index_t e = 0; e < gates.num_experts(); ++e) {
      const Eigen::MatrixXd a = map(gates[e]).cast<double>();
      const Eigen::VectorXd row = layer->rows().row(e).transpose().cast<double>();
      const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(a.transpose() * a);
      const double rho = (a * row).squaredNorm() / row.squaredNorm();
      const double sigma_1 = std::sqrt(solver.eigenvalues().tail<1>()[0]);
      out.add(rho, sigma_1, a.norm(), solver.eigenvectors().rightCols<1>().col(0).dot(row.normalized()));
    }
  }
  return out;
}

/// Loads of each layer since the last record.
class layer_loads {
 public:
  layer_loads(index_t layers, index_t experts) {
    for (index_t l = 0; l < layers; ++l) totals_.emplace_back(static_cast<std::size_t>(experts));
    for (auto& total : totals_) trackers_.emplace_back(total);
  }
  void add(model& m) {
    for (std::size_t l = 0; l < trackers_.size(); ++l) trackers_[l].add(m.layers()[l]->load());
  }
  void report(record& r) const {
    running_statistics batch, global, entropy;
    for (const auto& t : trackers_) {
      batch.add(t.batch_violation().mean);
      global.add(t.global_violation());
      entropy.add(t.global_entropy());
    }
    r.max_violation_batch = batch.mean;
    r.max_violation_global = global.mean;
    r.entropy = entropy.mean;
  }

 private:
  std::vector<std::vector<index_t>> totals_;
  std::vector<load_tracker> trackers_;
};

double test_loss(model& m, const corpus& text, const settings& s) {
  return static_cast<double>(m.forward(text.test(4 * s.sequences, s.sizes.length)));
}

/// Warm-up over a twentieth of the steps, then a cosine down to a tenth.
float rate_at(const settings& s, index_t step) {
  const auto at = static_cast<float>(step);
  const float warm = std::max(1.0F, static_cast<float>(s.steps) / 20);
  if (at < warm) return s.rate * (at + 1) / warm;
  const float progress = (at - warm) / std::max(1.0F, static_cast<float>(s.steps) - warm);
  return s.rate * (0.55F + 0.45F * std::cos(3.14159265F * progress));
}

}  // namespace

run_result train_one(const corpus& text, const settings& s, router_kind router, std::uint64_t seed,
                     const std::function<void()>& progress) {
  run_result out{router, seed, {}, std::make_unique<model>(s.sizes, router, s.c_prime, seed)};
  model& m = *out.trained;
  random_source batches(seed + 1000003);
  adamw optimiser;
  running_statistics train_loss, balance;
  layer_loads loads(s.sizes.layers, s.sizes.moe.experts);
  for (index_t step = 0; step < s.steps; ++step) {
    const batch data = text.sample(batches, s.sequences, s.sizes.length);
    train_loss.add(static_cast<double>(m.forward(data)));
    balance.add(static_cast<double>(m.balance()));
    loads.add(m);
    m.backward(data, s.coefficient);
    optimiser.update(m.parameters(), rate_at(s, step));
    if ((step + 1) % s.every == 0 || step + 1 == s.steps) {
      record r;
      r.step = step + 1;
      r.train_loss = train_loss.mean;
      r.balance_loss = balance.mean;
      loads.report(r);
      r.test_loss = test_loss(m, text, s);
      r.alignment = measure_alignment(m);
      out.trace.push_back(r);
      train_loss = {};
      balance = {};
      loads = layer_loads(s.sizes.layers, s.sizes.moe.experts);
    }
    progress();
  }
  return out;
}

}  // namespace train
