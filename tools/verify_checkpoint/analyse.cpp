#include "analyse.hpp"

#include "gates.hpp"
#include "gpu_operator.hpp"
#include "parallel.hpp"

#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/verify/any_operator.hpp>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace verify {

namespace {

using namespace mpi_router;

/// M, that remembers the image of the last row: what is asked of one row again costs no read of A.
class remembering_operator {
 public:
  using scalar = double;
  explicit remembering_operator(any_operator<double>& op) : op_(op) {}
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

  any_operator<double>& op_;
  memory<double> plain_;
  memory<scaled_energy<double>> scaled_;
};

/// Runs the power iteration from `row`, for the steps that are needed to come within the tolerance, and for
/// the trace.
void iterate(any_operator<double>& op, Eigen::VectorXd row, const expert_direction& principal,
             const analysis_options& options, expert_result& result) {
  if (!options.trace && principal.sine_at(0) > options.tolerance) {
    return;  // no row can be shown to have arrived
  }
  Eigen::VectorXd scratch(row.size());
  power_iteration(op, view(row), view(scratch), {.max_steps = options.max_steps},
                  [&](const iteration_record<double>& at, vector_view<const double> iterate) {
                    const double angle = principal.angle(iterate);
                    if (options.trace) {
                      result.trace.push_back({at.step, at.rayleigh, at.residual, angle});
                    }
                    if (principal.sine_at(angle) <= options.tolerance) {
                      result.steps = at.step;
                      return false;
                    }
                    return true;
                  });
}

/// The numbers of a unit row that has an image.
void measure(any_operator<double>& plain_op, const Eigen::VectorXd& row, const expert_direction& principal,
             const analysis_options& options, expert_result& result) {
  remembering_operator op(plain_op);
  Eigen::VectorXd next(row.size());
  const auto at = rayleigh(op, view(row), view(next));
  result.state = at.state;
  if (!(result.sigma_1 > 0) || principal.v.size() == 0) {
    result.state = result.state == status::ok ? status::zero_image : result.state;
    return;
  }
  result.rayleigh = at.rayleigh;
  result.residual = at.residual;
  result.lambda_stored = alignment_spectral(at.rayleigh, result.sigma_1);
  result.angle = principal.angle(view(row));
  result.cosine_stored = std::abs(row.dot(principal.v));
  if (result.state != status::ok) {
    return;
  }
  const auto proof = certify_row(op, view(row), principal.found);
  result.certificate = to_string(proof.label);
  result.angle_bound = proof.angle_bound;

  power_step(op, view(row), view(next), 1.0);
  result.cosine_step = std::abs(next.dot(principal.v));
  Eigen::VectorXd residual(row.size());
  result.lambda_step =
      alignment_spectral(rayleigh(op, view(std::as_const(next)), view(residual)).rayleigh, result.sigma_1);
  const bool is_known = principal.spectrum || principal.forecast.converged();
  if (!is_known || options.trace) {
    iterate(plain_op, row, principal, options, result);
  }
  if (!principal.spectrum && is_known) {
    result.steps = principal.forecast.steps;
  } else if (principal.spectrum) {
    result.steps = principal.spectrum->steps_to(options.tolerance, view(row), options.max_steps);
  }
}

/// The numbers of a row whose direction is known. `op` is M in double.
void measure_row(any_operator<double> op, const Eigen::VectorXd& row, const expert_direction& principal,
                 const analysis_options& options, expert_result& result) {
  if (principal.found.at.state == status::non_finite) {
    result.state = status::non_finite;
    return;
  }
  result.sigma_1 = principal.sigma_1();
  result.sigma_2 = principal.sigma_2();
  result.sigma_2_from = principal.spectrum                   ? "svd"
                        : std::isfinite(principal.sigma_2()) ? "ritz (estimate)"
                                                             : "none";
  if (result.state == status::ok) {
    measure(op, row, principal, options, result);
  }
}

/// a: a matrix_view or a packed_gate.
template <class Gate>
expert_result analyse_row(const Gate& a, const Eigen::VectorXd& stored, const analysis_options& options) {
  expert_result result;
  Eigen::VectorXd row(stored.size());
  result.state = retract(view(stored), view(row), 1.0);  // only its direction matters
  const course_options course{.tolerance = options.tolerance, .max_steps = options.max_steps};
  const auto start = view(std::as_const(row));
  if constexpr (!std::same_as<Gate, packed_gate>) {
    if (multiplies_on_gpu(options, a.rows(), a.cols())) {
      gpu_operator op(*options.device, a);
      measure_row(any_operator<double>(op), row, find_expert_direction(op, start, course), options, result);
      return result;
    }
  }
  const auto source = decomposes(options.spectrum, a.rows(), a.cols()) ? direction_source::svd
                                                                       : direction_source::certificate;
  const auto principal = direction_of(a, start, source, course);
  auto op = operator_in_double(a);
  measure_row(any_operator<double>(op), row, principal, options, result);
  return result;
}

/// look(a) where the rows of A lie contiguous, else of a copy in which they do.
template <class T, class Look>
expert_result look_by_rows(const matrix_view<const T>& a, const Look& look) {
  if (a.col_stride() == 1) {
    return look(a);
  }
  std::vector<T> rows(static_cast<std::size_t>(a.rows() * a.cols()));
  for (index_t f = 0; f < a.rows(); ++f) {
    for (index_t d = 0; d < a.cols(); ++d) {
      rows[static_cast<std::size_t>(f * a.cols() + d)] = a(f, d);
    }
  }
  return look(row_major(std::as_const(rows).data(), a.rows(), a.cols()));
}

}  // namespace

bool multiplies_on_gpu(const analysis_options& options, index_t ffn_dim, index_t hidden_dim) {
  return options.device != nullptr && !decomposes(options.spectrum, ffn_dim, hidden_dim) &&
         std::min(ffn_dim, hidden_dim) > certify_options{}.rigorous_up_to;
}

expert_result analyse_expert(const moe_layer& layer, index_t expert, const analysis_options& options) {
  const auto row = read_row(layer, expert);
  const auto* gate = only_block(layer, expert);
  const auto look = [&](const auto& a) { return analyse_row(a, row, options); };
  // Small ones in double. Larger ones as they are stored, for memory and time count there: where they lie, or
  // row after row, so that every layout gives the same bits. Packed ones stay packed where they can; else
  // they have products of codes and scales that floats do not hold, and A P and sums lie nowhere: in double,
  // the largest in float. A GPU takes what lies somewhere as it is; all else keeps a core and memory of the
  // host busy, and there are more threads than cores.
  const index_t ffn_dim = gate == nullptr ? 0 : gate->ffn_dim;
  const bool large = is_large(ffn_dim, layer.hidden_dim);
  const bool on_gpu = multiplies_on_gpu(options, ffn_dim, layer.hidden_dim);
  const bool as_stored = std::min(ffn_dim, layer.hidden_dim) > certify_options{}.rigorous_up_to &&
                         layer.latent == nullptr && !gate->tensor->is_packed();
  const core_of_host core(on_gpu && as_stored ? nullptr : options.device);
  expert_result result;
  if (const auto packed = on_gpu ? std::nullopt : kept_packed(layer, expert, options.spectrum)) {
    result = look(*packed);
  } else if (large && layer.latent != nullptr) {
    const auto a = times_latent<float>(layer, read_matrix(layer, expert));
    result = look(view(a));
  } else if (large || as_stored) {
    result = mpi_router::visit_gate(*gate,
                                    [&](const auto& a) { return on_gpu ? look(a) : look_by_rows(a, look); });
  } else {
    const auto a = read_gate(layer, expert);
    result = look(view(a));
  }
  result.expert = expert;
  for (double* ratio :
       {&result.cosine_stored, &result.cosine_step, &result.lambda_stored, &result.lambda_step}) {
    *ratio = *ratio > 1 ? 1 : *ratio;  // rounding
  }
  return result;
}

}  // namespace verify
