// What a batched step leaves behind: the tape for the backward, the by-products; and the workspace it stands
// in.
#pragma once

#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/router/router_options.hpp>

#include <utility>

MPIROUTER_BEGIN
namespace detail {

/// The tape: of each step the rows after it, [N, D], and ‖rM‖ before the retraction as value and exponent.
template <class Element>
class step_tape {
 public:
  using S = std::remove_const_t<Element>;
  step_tape(const vector_view<Element>& storage, const expert_shape& extents, index_t steps)
      : base_(storage.data()), steps_(steps), shape_(extents) {}

  [[nodiscard]] matrix_view<Element> rows(index_t step) const {
    return row_major(base_ + step * shape_.num_experts * shape_.hidden_dim, shape_.num_experts,
                     shape_.hidden_dim);
  }
  [[nodiscard]] saved_norm<S> norm(index_t step, index_t expert) const {
    const auto* at = norm_at(step, expert);
    return {at[0], static_cast<int>(at[1])};
  }
  void save(index_t step, index_t expert, const saved_norm<S>& norm) const {
    Element* at = norm_at(step, expert);
    at[0] = norm.value;
    at[1] = static_cast<S>(norm.exponent);
  }

 private:
  [[nodiscard]] Element* norm_at(index_t step, index_t expert) const {
    return base_ + shape_.num_experts * (steps_ * shape_.hidden_dim + 2 * step) + 2 * expert;
  }

  Element* base_;
  index_t steps_;
  expert_shape shape_;
};

/// Hands out the workspace, piece by piece.
template <Accumulator S>
class workspace_pieces {
 public:
  explicit workspace_pieces(const vector_view<S>& workspace) : at_(workspace.data()) {}
  [[nodiscard]] vector_view<S> vector(index_t size) { return {std::exchange(at_, at_ + size), size}; }
  [[nodiscard]] matrix_view<S> matrix(index_t rows, index_t cols) {
    return row_major(std::exchange(at_, at_ + rows * cols), rows, cols);
  }

 private:
  S* at_;
};

/// What is told of the step of row i, of which u is the image.
template <Accumulator S, class R>
void tell_step(const router_by_products<S>& told, index_t i, bool is_first_step, const row_image<S>& image,
               const vector_view<R>& row, const vector_view<const S>& u) {
  const bool ok = image.state == status::ok;
  if (!told.statuses.empty()) {
    status& state = told.statuses[static_cast<std::size_t>(i)];
    state = is_first_step || state == status::ok ? image.state : state;
  }
  const auto put = [&](const vector_view<S>& where, const auto& number) {
    if (where.size() != 0) where[i] = ok ? number() : S{0};
  };
  put(told.rayleigh, [&] { return image.rayleigh.unscaled(); });
  put(told.cosine, [&] { return image.cosine(); });
  put(told.residual, [&] {  // ‖g‖ = ρ tan ψ
    return (image.rayleigh * scale_free(u, row, image).tan(row.size())).unscaled();
  });
  put(told.energy, [&] { return (image.rayleigh * image.row_norm * image.row_norm).unscaled(); });
  put(told.row_norm, [&] { return image.row_norm.unscaled(); });
  put(told.image_norm, [&] { return image.image_norm.unscaled(); });
}

}  // namespace detail
MPIROUTER_END
