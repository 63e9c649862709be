// What the batched step tells besides the rows: one definition for host and GPU. Plain data.
#pragma once

#include <mpi_router/core/views.hpp>

#include <span>

MPIROUTER_BEGIN_TYPES

namespace core {

/// What takes one T for each expert, or nothing: a view on the host; on a GPU a pointer to as many elements.
template <class T, class Space>
struct each_expert {
  using type = T*;
};
template <Scalar T>
struct each_expert<T, host_space> {
  using type = vector_view<T>;
};
template <>
struct each_expert<status, host_space> {
  using type = std::span<status>;
};

/// A GPU saves for the backward what cuda::saved_step says.
struct no_tape {};

}  // namespace core

/// What router_rows and retract_images tell besides the rows, N elements each. Each may be left empty: not
/// wanted. All numbers are of the row r that the last step started from, zero where a row had no step, and
/// infinite where S cannot hold them.
template <Accumulator S, class Space = host_space>
struct router_by_products {
  using numbers = typename core::each_expert<S, Space>::type;
  using tape_view = std::conditional_t<std::same_as<Space, host_space>, vector_view<S>, core::no_tape>;

  /// What became of each row; of the first step that failed, if there are several.
  typename core::each_expert<status, Space>::type statuses{};
  numbers rayleigh{};    ///< ρ = ‖A r‖² / ‖r‖² (Eq. 3)
  numbers cosine{};      ///< ρ / ‖r̂M‖, cos of the angle of the step, in [0, 1]
  tape_view tape{};      ///< router_tape_size(…) elements: what the backward needs
  numbers residual{};    ///< ‖r̂M − ρ r̂‖: some eigenvalue of M lies within it of ρ
  numbers energy{};      ///< ‖A r‖²; with row_norm, λ = √energy / (row_norm · σ₁)
  numbers row_norm{};    ///< ‖r‖
  numbers image_norm{};  ///< ‖r M‖
};

namespace core {

/// f(name, elements) for each by-product but the tape.
template <class S, class Space, class F>
MPIROUTER_ALWAYS_INLINE constexpr void for_each_by_product(const router_by_products<S, Space>& told,
                                                           const F& f) {
  f("the statuses", told.statuses);
  f("rayleigh", told.rayleigh);
  f("cosine", told.cosine);
  f("residual", told.residual);
  f("energy", told.energy);
  f("row_norm", told.row_norm);
  f("image_norm", told.image_norm);
}

}  // namespace core

MPIROUTER_END_TYPES
