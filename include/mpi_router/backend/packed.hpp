// Packed gate matrices as operators that decode in registers, for the instruction set that this file is
// compiled for: FP8, MXFP4, Q8_0, Q4_K. Other formats go row by row (gram_of_rows, core/matrix_rows.hpp).
#pragma once

// g++ 12 believes that its own AVX-512 headers use what they leave undefined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <mpi_router/backend/packed/fp8.hpp>
#include <mpi_router/backend/packed/mxfp4.hpp>
#include <mpi_router/backend/packed/q4_k.hpp>
#include <mpi_router/backend/packed/q8_0.hpp>
#include <mpi_router/backend/packed/sweep.hpp>
#include <mpi_router/backend/packed_operator.hpp>

MPIROUTER_BEGIN

/// Kernels over packed weights for xsimd architecture Arch, compiled in.
template <class Arch>
struct compiled_packed_kernels {
  template <PackedView View>
  [[nodiscard]] static constexpr const core::packed_kernel_table<View>& table() noexcept {
    return detail::kernels::packed_kernels<View, Arch>::table;
  }
};

template <class Kernels>
class one_read_backend;
template <class Arch>
struct compiled_kernels;

/// The operator of one packed gate matrix; throws usage_error where the view cannot be. For router_rows:
///
///   router_rows([&](index_t i) { return gram(mxfp4_view{…}); }, …);
template <PackedView View>
[[nodiscard]] auto gram(const View& a) {
  return packed_operator<View, compiled_packed_kernels<xsimd::default_arch>>(a);
}
/// The same for the instruction set of the backend of dense matrices, `simd`.
template <PackedView View, class Arch>
[[nodiscard]] auto gram(const View& a, const one_read_backend<compiled_kernels<Arch>>&) {
  return packed_operator<View, compiled_packed_kernels<Arch>>(a);
}

MPIROUTER_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
