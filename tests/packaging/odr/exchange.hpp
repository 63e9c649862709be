// What libraries that were compiled for different instruction sets hand to each other: options, views and
// results.
#pragma once

#include <mpi_router/mpi_router.hpp>
#include <mpi_router/verify/certificate.hpp>
#include <mpi_router/verify/null_model.hpp>

// X(type): every plain type of the host library.
#define EXCHANGED(X)                                       \
  X(mpi_router::bf16)                                      \
  X(mpi_router::f16)                                       \
  X(mpi_router::status)                                    \
  X(mpi_router::router_radius)                             \
  X(mpi_router::vector_view<const float>)                  \
  X(mpi_router::matrix_view<float>)                        \
  X(mpi_router::expert_batch_view<const mpi_router::bf16>) \
  X(mpi_router::scaled_energy<float>)                      \
  X(mpi_router::step_result<float>)                        \
  X(mpi_router::step_length<double>)                       \
  X(mpi_router::rayleigh_result<double>)                   \
  X(mpi_router::saved_norm<float>)                         \
  X(mpi_router::rank2_factors<float>)                      \
  X(mpi_router::momentum<float>)                           \
  X(mpi_router::iteration_options<float>)                  \
  X(mpi_router::iteration_record<float>)                   \
  X(mpi_router::iteration_result<float>)                   \
  X(mpi_router::router_options)                            \
  X(mpi_router::router_by_products<float>)                 \
  X(mpi_router::router_factors<float>)                     \
  X(mpi_router::gating_options)                            \
  X(mpi_router::gate_output<float>)                        \
  X(mpi_router::router_biases<float>)                      \
  X(mpi_router::gradient_mode)                             \
  X(mpi_router::load_tracker)                              \
  X(mpi_router::dispatch_lists)                            \
  X(mpi_router::running_statistics)                        \
  X(mpi_router::alignment_statistics)                      \
  X(mpi_router::second_eigenvalue_bound)                   \
  X(mpi_router::certificate)                               \
  X(mpi_router::null_alignment)

/// Defined in an object of another instruction set: links only where the type is the same there.
#define DECLARE_PASS_ON(type) type pass_on(const type& value);
EXCHANGED(DECLARE_PASS_ON)

/// One step there.
mpi_router::step_result<float> step_elsewhere(mpi_router::matrix_view<const float> a,
                                              mpi_router::vector_view<const float> row,
                                              mpi_router::vector_view<float> out,
                                              const mpi_router::router_radius& radius);
/// Adds a load there.
void track_elsewhere(mpi_router::load_tracker& tracker, std::span<const mpi_router::index_t> load);
