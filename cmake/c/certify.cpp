// mpi_router_find_directions and mpi_router_certify_rows.
#if !defined(MPIROUTER_C_PLAIN)
#include "any_operator.hpp"
#include "threads.hpp"

#include <mpi_router/verify/expert_direction.hpp>

#include <cmath>
#include <exception>
#include <mutex>
#include <numbers>

namespace mpi_router_c {
namespace {

certify_options options_of(const char* what, const mpi_router_certify_options* options) {
  const mpi_router_certify_options o = options == nullptr ? mpi_router_default_certify_options() : *options;
  core::expect(o.residual_tolerance >= 0 && o.max_steps >= 1 && o.basis >= 1 && o.rigorous_up_to >= 0, what,
               ": the options have a negative tolerance, or no step, or an empty basis");
  core::expect(o.failure_probability >= 1e-300 && o.failure_probability < 1, what,
               ": failure_probability is not between 1e-300 and 1");
  core::expect(o.probe_starts >= 1 && o.probe_starts <= 1'000'000 && o.probe_max_steps >= 1, what,
               ": the options leave the probe no start, or more than a million, or no step");
  return {.residual_tolerance = o.residual_tolerance,
          .max_steps = o.max_steps,
          .basis = o.basis,
          .rigorous_up_to = o.rigorous_up_to,
          .probe = {.failure_probability = o.failure_probability,
                    .starts = o.probe_starts,
                    .max_steps = o.probe_max_steps,
                    .seed = o.seed}};
}

/// task(i) for each expert; what one throws is thrown when all have ended, for tasks of an executor may not.
template <class Task>
void for_each_expert(index_t n, const callback_executor& run, const Task& task) {
  std::mutex mutex;
  std::exception_ptr first;
  run(n, [&](index_t i) {
    try {
      task(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      first = first ? first : std::current_exception();
    }
  });
  if (first) {
    std::rethrow_exception(first);
  }
}

/// Rows or directions that go with the experts, [N, D].
void check_rows(const char* what, const char* name, const mpi_router_matrix& matrix,
                const mpi_router_experts& experts) {
  check(what, name, matrix);
  expect_shape(what, name, matrix, experts.shape[0], experts.shape[2], "[N, D] of the experts");
}
void check_directions(const char* what, const mpi_router_matrix& directions,
                      const mpi_router_experts& experts) {
  check_rows(what, "directions", directions, experts);
  core::expect(directions.dtype == MPIROUTER_F64, what, ": directions is ", name_of(directions.dtype),
               ", not f64");
}

/// The cheapest way that proves enough: the trace ladder for small experts, else a search in float.
principal_direction find(const mpi_router_experts& experts, index_t i, vector_view<const double> start,
                         const certify_options& options) {
  if (std::min(experts.shape[1], experts.shape[2]) <= options.rigorous_up_to) {
    const gate_matrix dense = with_type(experts.dtype, [&]<class T>(std::type_identity<T>) {
      return detail::in_double(view_of<const T>(experts)[i]);
    });
    return find_principal(dense, start, options);
  }
  auto op = operator_in_double(experts, i);
  std::vector<float> rounded;
  auto fast = operator_in_float(experts, i, rounded);
  return find_expert_direction(op, fast, start, {.tolerance = -1}, options).found;
}

mpi_router_direction told(const principal_direction& found) {
  return {.certainty = static_cast<std::int32_t>(found.proof.label),
          .status = static_cast<std::int32_t>(found.at.state),
          .angle_bound = found.proof.angle_bound,
          .failure_probability = found.proof.failure_probability,
          .sigma_low = found.proof.sigma_low,
          .sigma_high = found.proof.sigma_high,
          .second_bound = found.proof.alpha,
          .rayleigh = found.at.rayleigh,
          .residual = found.at.residual,
          .applications = found.applications};
}

mpi_router_row_certificate told(const row_certificate& row) {
  return {.certainty = static_cast<std::int32_t>(row.label),
          .status = static_cast<std::int32_t>(row.state),
          .angle = row.angle,
          .angle_low = row.angle_low,
          .angle_high = row.angle_bound,
          .rayleigh = row.rayleigh,
          .residual = row.residual};
}

/// What certify_row reads of a direction that was found; empty where there was none.
principal_direction found_before(const mpi_router_direction& found, const mpi_router_matrix& directions,
                                 index_t i) {
  principal_direction principal;
  if (found.status == MPIROUTER_STATUS_OK) {
    principal.direction = map(vector_view<const double>(row_in_double(directions, i)));
  }
  principal.proof.label = static_cast<certainty>(found.certainty);
  principal.proof.angle_bound = found.angle_bound;
  return principal;
}

/// What a direction that was found is by itself; that it is of these experts is up to the caller.
void check_found(const char* what, const mpi_router_direction& found, const mpi_router_matrix& directions,
                 index_t i) {
  if (found.status != MPIROUTER_STATUS_OK) {
    return;
  }
  core::expect(found.angle_bound >= 0 && found.angle_bound <= std::numbers::pi / 2, what, ": found[", i,
               "] has an angle_bound outside [0, π/2]");
  const auto v = row_in_double(directions, i);
  const double squared = map(vector_view<const double>(v)).squaredNorm();
  core::expect(std::abs(squared - 1) < 1e-9, what, ": row ", i,
               " of directions is no unit vector, though found has a direction");
}

}  // namespace
}  // namespace mpi_router_c

using namespace mpi_router_c;

extern "C" {

mpi_router_certify_options mpi_router_default_certify_options() {
  const certify_options o;
  return {.residual_tolerance = o.residual_tolerance,
          .max_steps = o.max_steps,
          .basis = o.basis,
          .rigorous_up_to = o.rigorous_up_to,
          .failure_probability = o.probe.failure_probability,
          .probe_starts = o.probe.starts,
          .probe_max_steps = o.probe.max_steps,
          .seed = o.probe.seed};
}

mpi_router_code mpi_router_find_directions(const mpi_router_experts* experts, const mpi_router_matrix* starts,
                                           const mpi_router_certify_options* options,
                                           mpi_router_direction* found, const mpi_router_matrix* directions,
                                           const mpi_router_threads* threads) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_find_directions";
    const certify_options o = mpi_router_c::options_of(what, options);
    const index_t n = given(what, "experts", experts).shape[0];
    check(what, "experts", *experts);
    check_rows(what, "starts", given(what, "starts", starts), *experts);
    check_directions(what, given(what, "directions", directions), *experts);
    core::expect(found != nullptr || n == 0, what, ": found is null");
    memory_of_call memory(what);
    memory.reads("experts", *experts);
    memory.reads("starts", range_of(*starts));
    memory.writes("directions", *directions);
    memory.writes("found", range_of(reinterpret_cast<const char*>(found), n * index_t{sizeof *found}));
    for_each_expert(n, callback_executor(threads), [&](index_t i) {
      const principal_direction principal = find(*experts, i, row_in_double(*starts, i), o);
      const auto out = mpi_router_c::view_of<double>(*directions).row(i);
      for (index_t d = 0; d < out.size(); ++d) {
        out[d] = principal.direction.size() == 0 ? 0.0 : principal.direction[d];
      }
      found[i] = told(principal);
    });
  });
}

mpi_router_code mpi_router_certify_rows(const mpi_router_experts* experts, const mpi_router_matrix* rows,
                                        const mpi_router_direction* found,
                                        const mpi_router_matrix* directions,
                                        mpi_router_row_certificate* certificates,
                                        const mpi_router_threads* threads) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_certify_rows";
    const index_t n = given(what, "experts", experts).shape[0];
    check(what, "experts", *experts);
    check_rows(what, "rows", given(what, "rows", rows), *experts);
    check_directions(what, given(what, "directions", directions), *experts);
    core::expect((found != nullptr && certificates != nullptr) || n == 0, what,
                 ": found or certificates is null");
    for (index_t i = 0; i < n; ++i) {
      core::expect(found[i].certainty >= 0 && found[i].certainty <= MPIROUTER_CERTAINTY_RIGOROUS, what,
                   ": found[", i, "] has the certainty ", found[i].certainty, ", which is none");
      check_found(what, found[i], *directions, i);
    }
    memory_of_call memory(what);
    memory.reads("experts", *experts);
    memory.reads("rows", range_of(*rows));
    memory.reads("directions", range_of(*directions));
    memory.reads("found", range_of(reinterpret_cast<const char*>(found), n * index_t{sizeof *found}));
    memory.writes("certificates",
                  range_of(reinterpret_cast<const char*>(certificates), n * index_t{sizeof *certificates}));
    for_each_expert(n, callback_executor(threads), [&](index_t i) {
      auto op = operator_in_double(*experts, i);
      certificates[i] =
          told(certify_row(op, row_in_double(*rows, i), found_before(found[i], *directions, i)));
    });
  });
}

}  // extern "C"
#endif
