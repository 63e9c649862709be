#include "analyse.hpp"

#include "kernels.hpp"
#include "parallel.hpp"

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/verify/singular.hpp>

#include <algorithm>
#include <cmath>

namespace verify {

namespace {

using namespace mpi_router;

/// The unit vector to measure angles against, and how far it may be from the principal direction.
struct reference_direction {
  Eigen::VectorXd v;
  double uncertainty = 0;

  [[nodiscard]] double angle(const Eigen::VectorXd& row) const {
    return line_angle<double>(view(row), view(v));
  }
  /// Of a row at this angle to v, at most, to the principal direction itself.
  [[nodiscard]] double sine_at(double angle) const {
    return std::sin(std::min(angle + uncertainty, std::numbers::pi / 2));
  }
};

/// M, that remembers the image of the last row: what is asked of one row again costs no read of A.
template <class Op>
class remembering_operator {
 public:
  using scalar = double;
  explicit remembering_operator(const Op& op) : op_(op) {}
  [[nodiscard]] index_t dimension() const { return op_.dimension(); }
  [[nodiscard]] index_t ffn_dim() const { return op_.ffn_dim(); }

  double apply(vector_view<const double> x, vector_view<double> u) {
    return recall(plain_, x, u, [&] { return op_.apply(x, u); });
  }
  scaled_energy<double> apply_scaled(vector_view<const double> x, vector_view<double> u) {
    return recall(scaled_, x, u, [&] { return op_.apply_scaled(x, u); });
  }

 private:
  template <class Energy>
  struct memory {
    Eigen::VectorXd row;
    Eigen::VectorXd image;
    Energy energy{};
  };
  template <class Energy, class Apply>
  static Energy recall(memory<Energy>& known, vector_view<const double> x, vector_view<double> u,
                       Apply apply) {
    if (known.row.size() == x.size() && map(x) == known.row) {
      map(u) = known.image;
    } else {
      known.energy = apply();
      known.row = map(x);
      known.image = map(u);
    }
    return known.energy;
  }

  const Op& op_;
  memory<double> plain_;
  memory<scaled_energy<double>> scaled_;
};

/// Runs the power iteration from `row`, for the steps that are needed to come within the tolerance, and for
/// the trace.
template <class Op>
void iterate(const Op& op, Eigen::VectorXd row, const reference_direction& principal,
             const analysis_options& options, expert_report& report) {
  if (!options.trace && principal.sine_at(0) > options.tolerance) {
    return;  // no row can be shown to have arrived
  }
  Eigen::VectorXd scratch(row.size());
  power_iteration(op, view(row), view(scratch), {.max_steps = options.max_steps},
                  [&](const iteration_record<double>& at, vector_view<const double> iterate) {
                    const double angle = line_angle<double>(iterate, view(principal.v));
                    if (options.trace) {
                      report.trace.push_back({at.step, at.rayleigh, at.residual, angle});
                    }
                    if (principal.sine_at(angle) <= options.tolerance) {
                      report.steps = at.step;
                      return false;
                    }
                    return true;
                  });
}

expert_report analyse_row(const gate_matrix& a, const Eigen::VectorXd& stored,
                          const analysis_options& options) {
  expert_report report;
  if (!a.allFinite()) {
    report.state = status::non_finite;
    return report;
  }
  const auto plain_op = gate_operator(a);
  remembering_operator op(plain_op);
  Eigen::VectorXd row(stored.size());
  report.state = retract(view(stored), view(row), 1.0);  // only its direction matters

  const auto certified = find_direction(a, view(std::as_const(row)));
  std::optional<singular_spectrum> spectrum;
  reference_direction principal{certified.direction, certified.proof.angle_bound};
  report.sigma_1 = std::sqrt(certified.at.rayleigh);
  if (options.exact) {
    spectrum.emplace(a);
    report.sigma_1 = spectrum->sigma_1();
    report.sigma_2 = spectrum->sigma_2();
    principal = {spectrum->principal_direction(), 0};
  }
  if (report.state != status::ok) {
    return report;
  }
  Eigen::VectorXd next(row.size());
  const auto at = rayleigh(op, view(std::as_const(row)), view(next));
  report.state = at.state;
  if (!(report.sigma_1 > 0) || principal.v.size() == 0) {
    report.state = report.state == status::ok ? status::zero_image : report.state;
    return report;
  }
  report.rayleigh = at.rayleigh;
  report.residual = at.residual;
  report.lambda_stored = alignment_spectral(at.rayleigh, report.sigma_1);
  report.angle = principal.angle(row);
  report.cosine_stored = std::abs(row.dot(principal.v));
  const auto proof = certify_row(op, view(std::as_const(row)), certified);
  if (report.state != status::ok) {
    return report;
  }
  report.certificate = to_string(proof.label);
  report.angle_bound = proof.angle_bound;

  power_step(op, view(std::as_const(row)), view(next), 1.0);
  report.cosine_step = std::abs(next.dot(principal.v));
  Eigen::VectorXd residual(row.size());
  report.lambda_step =
      alignment_spectral(rayleigh(op, view(std::as_const(next)), view(residual)).rayleigh, report.sigma_1);
  if (!options.exact || options.trace) {
    iterate(plain_op, row, principal, options, report);
  }
  if (options.exact) {
    report.steps = spectrum->steps_to(options.tolerance, view(std::as_const(row)), options.max_steps);
  }
  return report;
}

}  // namespace

expert_report analyse_expert(const moe_layer& layer, index_t expert, const analysis_options& options) {
  auto report = analyse_row(read_gate(layer.gates[static_cast<std::size_t>(expert)]),
                            read_row(*layer.router, layer.router_how, expert), options);
  report.expert = expert;
  for (double* ratio :
       {&report.cosine_stored, &report.cosine_step, &report.lambda_stored, &report.lambda_step}) {
    *ratio = *ratio > 1 ? 1 : *ratio;  // rounding
  }
  return report;
}

std::vector<layer_report> analyse(const std::vector<const moe_layer*>& layers,
                                  const analysis_options& options,
                                  const std::function<void(index_t, index_t)>& progress) {
  struct task {
    std::size_t layer;
    index_t expert;
  };
  std::vector<layer_report> reports;
  std::vector<task> tasks;
  for (const auto* layer : layers) {
    for (index_t e = 0; e < layer->num_experts; ++e) {
      tasks.push_back({reports.size(), e});
    }
    reports.push_back({layer, std::vector<expert_report>(static_cast<std::size_t>(layer->num_experts))});
  }

  Eigen::setNbThreads(1);  // the experts are what is spread
  for_each_parallel(
      static_cast<index_t>(tasks.size()),
      [&](index_t i) {
        const auto [layer, expert] = tasks[static_cast<std::size_t>(i)];
        reports[layer].experts[static_cast<std::size_t>(expert)] =
            analyse_expert(*layers[layer], expert, options);
      },
      progress);
  return reports;
}

}  // namespace verify
