// What a call writes lies apart from what it reads.
#pragma once

#include <mpi_router/cuda/detail/check.cuh>

#include <initializer_list>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// Device memory that a call reads or writes, and what to call it.
struct memory_range {
  const char* name;
  core::address_range range;
};

template <class T>
[[nodiscard]] core::address_range addresses_of(const T* data, index_t count) {
  return core::addresses(data, data == nullptr ? 0 : count, 1, 1, 1);
}
/// The bytes of a workspace that a call uses: there may be more.
[[nodiscard]] inline core::address_range addresses_of(const workspace& scratch, std::size_t bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(scratch.data);
  return {first, first + bytes};
}

/// `one` meets none of the others.
inline void expect_apart(const char* what, const memory_range& one,
                         std::initializer_list<memory_range> others) {
  for (const memory_range& other : others) {
    expect(!core::overlap(one.range, other.range), what, ": ", one.name, " and ", other.name, " overlap");
  }
}

/// The weights meet nothing that is written, where they have one base pointer: a table of them is in device
/// memory, which the host does not read.
template <class T>
void expect_weights_apart(const char* what, const expert_batch_view<T, device_space>& weights,
                          std::initializer_list<memory_range> written) {
  if (weights.table() == nullptr) {
    expect_apart(what, {"a gate matrix", core::addresses(weights)}, written);
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
