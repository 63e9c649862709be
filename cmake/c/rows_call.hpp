// What the calls of the step and of its backward have in common: options, shapes, tape and scratch.
#pragma once

#include "rows.hpp"

#include <memory>

namespace mpi_router_c {

[[nodiscard]] router_options options_of(const char* what, const mpi_router_options* options);
[[nodiscard]] gradient_mode mode_of(const char* what, std::int32_t mode);

/// A matrix [N, D] that goes with the experts: its type, shape and memory.
void check_rows(const char* what, const char* name, const mpi_router_matrix& matrix,
                const mpi_router_experts& experts, place where = {});

/// A gradient like the experts: of their type or that of their sums.
void check_gradient(const char* what, const mpi_router_experts& experts,
                    const mpi_router_experts& grad_experts, place where = {});

/// Bytes of `elements` numbers, for so many steps, that experts of that type are summed in. Throws
/// usage_error where they do not fit in memory.
[[nodiscard]] std::int64_t bytes_of(const char* what, const char* name, double elements,
                                    mpi_router_dtype experts, index_t steps);

/// Throws usage_error where the buffer is null, not aligned, or smaller than `bytes`.
void check_buffer(const char* what, const char* name, const mpi_router_buffer& buffer, std::int64_t bytes);

/// On a GPU one step alone: unsupported_error where there are more.
[[nodiscard]] std::int64_t tape_bytes(const char* what, const mpi_router_experts& experts,
                                      const router_options& options);
[[nodiscard]] std::int64_t factor_bytes(const char* what, const mpi_router_experts& experts,
                                        const router_options& options);

template <class S>
[[nodiscard]] vector_view<S> view_of(const mpi_router_buffer& buffer, std::int64_t bytes) {
  return {static_cast<S*>(buffer.data), bytes / static_cast<std::int64_t>(sizeof(S))};
}

/// Memory of a call, not initialised.
template <class S>
class scratch {
 public:
  explicit scratch(index_t size) : memory_(new S[static_cast<std::size_t>(size)]), size_(size) {}
  [[nodiscard]] vector_view<S> view() const { return {memory_.get(), size_}; }

 private:
  std::unique_ptr<S[]> memory_;
  index_t size_;
};

}  // namespace mpi_router_c
