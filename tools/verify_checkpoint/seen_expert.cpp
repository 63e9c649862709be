#include "seen_expert.hpp"

#include "gates.hpp"
#include "gpu_operator.hpp"

#include <mpi_router/manifold/power_step.hpp>

#include <cmath>
#include <concepts>
#include <utility>

namespace verify {

namespace {

using namespace mpi_router;

/// The principal direction, found from `start`. Steps are not counted: no row arrives within 1e-300.
template <class Gate>
expert_direction find_direction(const Gate& a, vector_view<const double> start, gpu* device) {
  constexpr course_options course{.tolerance = 1e-300, .max_steps = 0};
  if constexpr (!std::same_as<Gate, packed_gate>) {
    if (multiplies_on_gpu({.device = device}, a.rows(), a.cols())) {
      gpu_operator op(*device, a);
      return find_expert_direction(op, start, course);
    }
  }
  const auto source = decomposes(spectrum_choice::automatic, a.rows(), a.cols())
                          ? direction_source::svd
                          : direction_source::certificate;
  return direction_of(a, start, source, course);
}

/// a: a matrix_view or a packed_gate.
template <class Gate>
seen_expert look_at_gate(const Gate& a, const moe_layer& layer, index_t expert, gpu* device) {
  seen_expert seen;
  seen.row = read_row(layer, expert);
  Eigen::VectorXd start(seen.row.size());
  seen.numbers.expert = expert;
  seen.numbers.ffn_dim = a.rows();
  seen.numbers.has_row = retract(view(seen.row), view(start), 1.0) == status::ok;
  const auto principal = find_direction(a, view(std::as_const(start)), device);
  seen.v = Eigen::VectorXd::Zero(seen.row.size());
  seen.next = start;
  seen.found = principal.found;
  if (seen.found.at.state == status::non_finite) {
    return seen;
  }
  const bool is_known = principal.spectrum || std::isfinite(principal.sigma_2());
  seen.numbers.sigma_1 = principal.sigma_1();
  seen.numbers.sigma_2 = seen.found.direction.size() == 0 ? 0 : principal.sigma_2();
  seen.numbers.sigma_2_from = principal.spectrum ? "svd" : is_known ? "ritz (estimate)" : "none";
  if (seen.found.direction.size() > 0) {
    seen.v = seen.found.direction;
  }
  seen.numbers.cosine_stored = std::abs(compare_rows(view(start), view(seen.v)).cosine);
  if (seen.numbers.has_row) {
    auto op = operator_in_double(a);
    power_step(op, view(std::as_const(start)), view(seen.next), 1.0);
  }
  return seen;
}

}  // namespace

seen_expert look_at(const moe_layer& layer, index_t expert, gpu* device) {
  const core_of_host core(device);
  if (const auto packed =
          device != nullptr ? std::nullopt : kept_packed(layer, expert, spectrum_choice::automatic)) {
    return look_at_gate(*packed, layer, expert, nullptr);
  }
  const auto a = read_gate(layer, expert);
  return look_at_gate(view(a), layer, expert, device);
}

}  // namespace verify
