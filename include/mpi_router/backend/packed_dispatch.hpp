// Packed gate matrices as operators whose instruction set is chosen when the program runs. Needs the compiled
// target mpi_router::dispatch, as runtime_dispatch.hpp does, and no xsimd.
#pragma once

#include <mpi_router/backend/packed_operator.hpp>
#include <mpi_router/backend/runtime_dispatch.hpp>

MPIROUTER_BEGIN_TYPES
namespace core {

/// Null where this processor lacks the instruction set, or it was not compiled.
[[nodiscard]] const packed_tables* packed_tables_of(instruction_set s) noexcept;

}  // namespace core
MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// Kernels over packed weights chosen at run time.
class dispatched_packed_kernels {
 public:
  /// Throws usage_error where this processor lacks the instruction set.
  explicit dispatched_packed_kernels(instruction_set s) : tables_(core::packed_tables_of(s)) {
    detail::expect(tables_ != nullptr, "dispatch: this processor or build has no ", to_string(s));
  }
  template <PackedView View>
  [[nodiscard]] const core::packed_kernel_table<View>& table() const noexcept {
    return tables_->of<View>();
  }

 private:
  const core::packed_tables* tables_;
};

/// The operator of one packed gate matrix, as gram(a) of packed.hpp compiled for the instruction set of
/// `backend` gives it, bit for bit. Throws usage_error where the view cannot be.
template <PackedView View>
[[nodiscard]] auto gram(const View& a, const dispatch& backend) {
  return packed_operator<View, dispatched_packed_kernels>(
      a, dispatched_packed_kernels(backend.kernels().instructions()));
}

MPIROUTER_END
