// Configuration: what the compiler offers, and the namespaces that keep incompatible builds apart.
//
// Types of core/ live in mpi_router::v0_1, named after the version (plus "_nx" without exceptions): they may
// cross translation units that were compiled with different instruction sets, and are never taken for those
// of another minor version. Everything that computes lives one inline namespace deeper, named after the
// instruction set and math flags (…::avx2_fma), so that the linker can never hand code built with -mavx512f
// to a program that asked for less.
#pragma once

// What follows the first error would hide it: a file that is not there ends the compilation at once.
#if defined(_MSVC_LANG) ? _MSVC_LANG < 202002L : __cplusplus < 201709L
#error "mpi_router needs C++20: compile with -std=c++20 (g++, clang++, nvcc) or /std:c++20 (MSVC)"
#include <mpi_router needs C++20>
#endif

#ifdef MPIROUTER_SINGLE_HEADER
#error "mpi_router: headers of include/mpi_router/ come after the single header; include one or the others"
#include <mpi_router twice>
#endif

#include <cstddef>

#include <mpi_router/core/version.hpp>

#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
#define MPIROUTER_HAS_EXCEPTIONS 1
#else
#define MPIROUTER_HAS_EXCEPTIONS 0
#endif

// What types of core/ compute, every object keeps to itself, for objects of one program may be compiled for
// different instruction sets. Where all are compiled for one, -DMPIROUTER_ALWAYS_INLINE=inline makes
// unoptimised builds many times as fast to compile.
#if defined(MPIROUTER_ALWAYS_INLINE)
#elif defined(_MSC_VER) && !defined(__clang__)
#define MPIROUTER_ALWAYS_INLINE __forceinline
#else
#define MPIROUTER_ALWAYS_INLINE [[gnu::always_inline]] inline
#endif

/// Before a function that host and GPU share.
#if defined(__CUDACC__)
#define MPIROUTER_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MPIROUTER_HOST_DEVICE MPIROUTER_ALWAYS_INLINE
#endif

#define MPIROUTER_DETAIL_CONCAT_(a, b) a##b
#define MPIROUTER_DETAIL_CONCAT(a, b) MPIROUTER_DETAIL_CONCAT_(a, b)

#if MPIROUTER_HAS_EXCEPTIONS
#define MPIROUTER_DETAIL_ABI_SUFFIX
#else
#define MPIROUTER_DETAIL_ABI_SUFFIX _nx
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define MPIROUTER_DETAIL_ISA avx512
#elif defined(__AVX512F__)
#define MPIROUTER_DETAIL_ISA avx512f
#elif defined(__AVX2__) && defined(__FMA__)
#define MPIROUTER_DETAIL_ISA avx2_fma
#elif defined(__AVX2__)
#define MPIROUTER_DETAIL_ISA avx2
#elif defined(__AVX__)
#define MPIROUTER_DETAIL_ISA avx
#elif defined(__SSE4_1__)
#define MPIROUTER_DETAIL_ISA sse4
#elif defined(__ARM_FEATURE_SVE)
#define MPIROUTER_DETAIL_ISA sve
#elif defined(__ARM_NEON)
#define MPIROUTER_DETAIL_ISA neon
#else
#define MPIROUTER_DETAIL_ISA generic
#endif

#if defined(__FAST_MATH__)
#define MPIROUTER_DETAIL_MATH_SUFFIX _fast
#else
#define MPIROUTER_DETAIL_MATH_SUFFIX
#endif

#define MPIROUTER_DETAIL_VERSION                                               \
  MPIROUTER_DETAIL_CONCAT(MPIROUTER_DETAIL_CONCAT(v, MPIROUTER_VERSION_MAJOR), \
                          MPIROUTER_DETAIL_CONCAT(_, MPIROUTER_VERSION_MINOR))

/// Inline namespace of the types of core/.
#define MPIROUTER_ABI_NAMESPACE MPIROUTER_DETAIL_CONCAT(MPIROUTER_DETAIL_VERSION, MPIROUTER_DETAIL_ABI_SUFFIX)
/// Inline namespace of everything that computes.
#define MPIROUTER_ISA_NAMESPACE MPIROUTER_DETAIL_CONCAT(MPIROUTER_DETAIL_ISA, MPIROUTER_DETAIL_MATH_SUFFIX)

// clang-format off
#define MPIROUTER_BEGIN_TYPES namespace mpi_router { inline namespace MPIROUTER_ABI_NAMESPACE {
#define MPIROUTER_END_TYPES } }
#define MPIROUTER_BEGIN MPIROUTER_BEGIN_TYPES inline namespace MPIROUTER_ISA_NAMESPACE {
#define MPIROUTER_END } MPIROUTER_END_TYPES
// cuda/: kernels, and the host functions that launch them, have internal linkage. Two shared objects that both
// instantiate a weak __global__ template end up launching a kernel that one of them never registered.
#define MPIROUTER_CUDA_BEGIN MPIROUTER_BEGIN_TYPES namespace cuda { namespace {
#define MPIROUTER_CUDA_END } } MPIROUTER_END_TYPES
#define MPIROUTER_CUDA_DETAIL_BEGIN MPIROUTER_BEGIN_TYPES namespace cuda::detail { namespace {
#define MPIROUTER_CUDA_DETAIL_END } } MPIROUTER_END_TYPES
// clang-format on

MPIROUTER_BEGIN_TYPES
/// Extents, strides and counts are signed, as in std::ssize and Eigen.
using index_t = std::ptrdiff_t;
MPIROUTER_END_TYPES
