// The fast backend: one read of A, over xsimd, for the instruction set that this file is compiled for.
#pragma once

#include <mpi_router/backend/one_read.hpp>
#include <mpi_router/backend/simd/table.hpp>

MPIROUTER_BEGIN

/// Kernels for xsimd architecture Arch, compiled in.
template <class Arch>
struct compiled_kernels {
  template <storage_format Format>
  static constexpr bool has = true;
  template <storage_format Format>
  [[nodiscard]] static constexpr const auto& table() noexcept {
    return detail::kernels::kernels_of<Format, Arch>::table;
  }
};

/// One read of A, for an architecture of xsimd: see one_read_backend.
template <class Arch = xsimd::default_arch>
using basic_simd = one_read_backend<compiled_kernels<Arch>>;

/// One read of A, for the architecture that the compiler was told of: see one_read_backend.
using simd = basic_simd<>;

MPIROUTER_END
