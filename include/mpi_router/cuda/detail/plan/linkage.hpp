// What all of cuda/ is wrapped in. Nothing in plan/ needs a CUDA header: it is host code that any compiler
// takes, with a few functions that kernels call too.
#pragma once

#include <mpi_router/core/error.hpp>

// Kernels, and the host functions that launch them, have internal linkage: two shared objects that both
// instantiate a weak __global__ template end up launching a kernel that one of them never registered.
// clang-format off
#define MPIROUTER_CUDA_BEGIN MPIROUTER_BEGIN_TYPES namespace cuda { namespace {
#define MPIROUTER_CUDA_END } } MPIROUTER_END_TYPES
#define MPIROUTER_CUDA_DETAIL_BEGIN MPIROUTER_BEGIN_TYPES namespace cuda::detail { namespace {
#define MPIROUTER_CUDA_DETAIL_END } } MPIROUTER_END_TYPES
// clang-format on

MPIROUTER_CUDA_DETAIL_BEGIN

using core::concatenate;
using core::expect;

MPIROUTER_CUDA_DETAIL_END
