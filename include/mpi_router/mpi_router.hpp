// mpi_router: Manifold Power Iteration for Mixture-of-Experts routers (arXiv 2606.12397).
// The host library in one include. Needs a C++20 compiler and nothing else.
#pragma once

#include <mpi_router/backend/dense.hpp>
#include <mpi_router/backend/executors.hpp>
#include <mpi_router/backend/reference.hpp>
#include <mpi_router/core/concepts.hpp>
#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/operators.hpp>
#include <mpi_router/core/options.hpp>
#include <mpi_router/core/stacked.hpp>
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/manifold/power_step_vjp.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/manifold/sphere.hpp>
#include <mpi_router/manifold/steepest_ascent.hpp>
#include <mpi_router/router/balance.hpp>
#include <mpi_router/router/dispatch.hpp>
#include <mpi_router/router/gating.hpp>
#include <mpi_router/router/gating_vjp.hpp>
#include <mpi_router/router/latent_vjp.hpp>
#include <mpi_router/router/router_rows.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>
#include <mpi_router/router/row_images.hpp>
#include <mpi_router/router/statistics.hpp>
#include <mpi_router/router/z_loss.hpp>
