// The batched product u_i = r_i M_i of all experts, spread over threads; the result does not depend on them.
//
// Experts alone are too few tasks where N is small, so the sums over the F neurons of an expert are split
// into blocks. How many, and where they end, depends on F, D and the layout: not on threads, not on N.
// Each block gives a partial image, and the partial images of an expert are added in order. So the bits are
// the same for every executor, and for an expert on its own or in any batch.
#pragma once

#include <mpi_router/backend/reference.hpp>
#include <mpi_router/core/apart.hpp>
#include <mpi_router/core/experts.hpp>

MPIROUTER_BEGIN

namespace detail {

/// A block reads at least this many weights, so that adding its D partial sums costs little beside it.
inline constexpr index_t block_weights = index_t{1} << 18;
/// And no expert has more blocks than this.
inline constexpr index_t most_blocks = 16;
/// With this many experts each is one task: threads enough for anyone have work, and partial images stay in
/// cache.
inline constexpr index_t many_experts = 64;

/// Blocks end at multiples of so many neurons: a group of rows, or, where neurons are contiguous in memory,
/// as many as a panel of floats has, for memory gives short pieces slowly. An expert of fewer is one task.
[[nodiscard]] constexpr index_t block_unit(const expert_strides& strides) noexcept {
  return strides.ffn == 1 ? 2048 : 8;
}
/// Blocks of neurons of one expert, none of them empty; an empty expert has one.
[[nodiscard]] constexpr index_t blocks_of(const expert_shape& s, index_t unit) noexcept {
  const index_t units = (s.ffn_dim + unit - 1) / unit;
  const index_t by_size = s.ffn_dim * s.hidden_dim / block_weights;
  const index_t most = units < most_blocks ? units : most_blocks;
  return most <= 1 || by_size <= 1 ? 1 : (by_size < most ? by_size : most);
}
/// First neuron of a block.
[[nodiscard]] constexpr index_t block_start(const expert_shape& s, index_t unit, index_t block) noexcept {
  const index_t units = (s.ffn_dim + unit - 1) / unit;
  const index_t first = unit * (units * block / blocks_of(s, unit));
  return first < s.ffn_dim ? first : s.ffn_dim;
}

/// image += partial.
template <Accumulator S>
void add_to(const vector_view<S>& image, const vector_view<S>& partial) noexcept {
  for (index_t d = 0; d < image.size(); ++d) {
    image[d] += partial[d];
  }
}

/// Where the partial images and energies of one task's block are.
template <Accumulator S>
struct partial_sums {
  S* data;
  index_t dimension;
  [[nodiscard]] vector_view<S> image(index_t slot) const {
    return {data + slot * (dimension + 1), dimension};
  }
  [[nodiscard]] S& energy(index_t slot) const { return data[slot * (dimension + 1) + dimension]; }
  /// Those of the slots [first, end), in order.
  void add_up(index_t first, index_t end, const vector_view<S>& to, S& energies) const {
    copy_into<S>(image(first), to);
    energies = energy(first);
    for (index_t slot = first + 1; slot < end; ++slot) {
      add_to(to, image(slot));
      energies += energy(slot);
    }
  }
};

}  // namespace detail

/// Elements of S that apply_experts needs as scratch.
[[nodiscard]] constexpr index_t apply_experts_workspace(const expert_shape& shape) noexcept {
  const index_t blocks = detail::blocks_of(shape, 8);  // in the layout that has most
  const index_t slots = blocks == 1 ? 0 : (shape.num_experts >= detail::many_experts ? 1 : blocks);
  return shape.num_experts * slots * (shape.hidden_dim + 1);
}

namespace detail {

template <Accumulator S>
void expect_apply_experts(const expert_shape& shape, const matrix_view<const S>& rows,
                          const matrix_view<S>& images, const vector_view<S>& energies,
                          const vector_view<S>& workspace) {
  const auto [n, f, d] = shape;
  expect(rows.rows() == n && rows.cols() == d && images.rows() == n && images.cols() == d &&
             energies.size() == n,
         "apply_experts: the experts are [", n, ", ", f, ", ", d, "], but the rows are [", rows.rows(), ", ",
         rows.cols(), "], the images [", images.rows(), ", ", images.cols(), "] and there are ",
         energies.size(), " energies");
  const index_t needed = apply_experts_workspace(shape);
  expect(workspace.size() >= needed && workspace.is_contiguous(), "apply_experts: the workspace has ",
         workspace.size(), " elements, not ", needed);
  expect_apart("apply_experts",
               {{"the images", addresses(images)},
                {"the energies", addresses(energies)},
                {"the workspace", first_elements(workspace, needed)}},
               {{"the rows", addresses(rows)}});
}

}  // namespace detail

/// images[i] = rows[i] · M_i and energies[i] = rows[i] M_i rows[i]ᵀ for all experts, M_i = A_iᵀA_i. The
/// partial form: no row is scaled or normalised, so shards of F can be summed before that. O(N·F·D), one read
/// of A from memory.
///
/// experts: [N, F, D] in any layout; rows and images: [N, D]; energies: N elements; workspace:
/// apply_experts_workspace(shape) elements, contiguous. Tasks run on `executor`; nothing is allocated.
/// Bitwise the same for every executor and number of threads. Throws usage_error on shapes and overlap.
template <Scalar T, Accumulator S, class Backend, class Run = serial_executor>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void apply_experts(const Backend& backend, const expert_batch_view<T>& experts,
                   const std::type_identity_t<matrix_view<const S>>& rows, const matrix_view<S>& images,
                   const std::type_identity_t<vector_view<S>>& energies,
                   const std::type_identity_t<vector_view<S>>& workspace, const Run& executor = {}) {
  using element = const std::remove_const_t<T>;
  const expert_shape shape = experts.shape();
  const index_t n = shape.num_experts;
  detail::expect_apply_experts<S>(shape, rows, images, energies, workspace);
  const index_t unit = detail::block_unit(experts.strides());
  const index_t blocks = detail::blocks_of(shape, unit);
  const auto apply_block = [&](index_t i, index_t block, const vector_view<S>& image) {
    const index_t first = detail::block_start(shape, unit, block);
    const index_t count = detail::block_start(shape, unit, block + 1) - first;
    const matrix_view<element> a = experts[i];
    return backend.template apply<std::remove_const_t<T>, S>(a.middle_rows(first, count), rows.row(i), image);
  };
  const detail::partial_sums<S> partial{workspace.data(), shape.hidden_dim};
  if (blocks == 1) {
    executor(n, [&](index_t i) { energies[i] = apply_block(i, 0, images.row(i)); });
    return;
  }
  if (n >= detail::many_experts) {  // the same sums, one block after the other
    executor(n, [&](index_t i) {
      energies[i] = apply_block(i, 0, images.row(i));
      for (index_t block = 1; block < blocks; ++block) {
        energies[i] += apply_block(i, block, partial.image(i));
        detail::add_to(images.row(i), partial.image(i));
      }
    });
    return;
  }
  executor(n * blocks, [&](index_t task) {
    partial.energy(task) = apply_block(task / blocks, task % blocks, partial.image(task));
  });
  executor(n, [&](index_t i) { partial.add_up(i * blocks, (i + 1) * blocks, images.row(i), energies[i]); });
}

MPIROUTER_END
