// The fast backend for people who ship one binary: the instruction set is chosen when the program runs. Needs
// the compiled target mpi_router::dispatch (CMake option MPIROUTER_DISPATCH); its sources are in
// cmake/dispatch/. Packed weights: packed_dispatch.hpp.
#pragma once

#include <mpi_router/backend/one_read.hpp>

MPIROUTER_BEGIN_TYPES

/// The instruction sets that mpi_router::dispatch was compiled for, the smallest first. On processors that
/// are not x86-64 there is the one that the compiler takes for granted.
enum class instruction_set : unsigned char { baseline, x86_64_v3, x86_64_v4 };

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(instruction_set s) noexcept {
  switch (s) {
    case instruction_set::baseline: return "baseline";
    case instruction_set::x86_64_v3: return "x86-64-v3";
    case instruction_set::x86_64_v4: return "x86-64-v4";
  }
  return "unknown";
}

namespace core {

/// Null where this processor lacks the instruction set, or it was not compiled.
[[nodiscard]] const kernel_tables* tables_of(instruction_set s) noexcept;

}  // namespace core

/// The best that this processor can run.
[[nodiscard]] instruction_set best_instruction_set() noexcept;

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// Kernels chosen at run time: the best for this processor, or those of a given instruction set.
class dispatched_kernels {
 public:
  dispatched_kernels() : dispatched_kernels(best_instruction_set()) {}
  /// Throws usage_error where this processor lacks the instruction set.
  explicit dispatched_kernels(instruction_set s) : set_(s), tables_(core::tables_of(s)) {
    detail::expect(tables_ != nullptr, "dispatch: this processor or build has no ", to_string(s));
  }

  [[nodiscard]] instruction_set instructions() const noexcept { return set_; }

  template <storage_format Format>
  static constexpr bool has = core::kernel_tables::has<Format>;
  template <storage_format Format>
  [[nodiscard]] const auto& table() const noexcept {
    return tables_->of<Format>();
  }

 private:
  instruction_set set_;
  const core::kernel_tables* tables_;
};

/// One read of A, in the best instruction set of the processor: `dispatch{}`, or
/// `dispatch{dispatched_kernels{set}}`. See one_read_backend; the results are those of `simd` compiled for
/// that instruction set, bit for bit.
using dispatch = one_read_backend<dispatched_kernels>;

MPIROUTER_END
