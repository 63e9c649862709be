// The batched step in its two halves: multiply, retract. Where the neurons of the experts are spread over
// shards, M = Σ_s A_sᵀA_s, images and energies are summed over them in between.
#pragma once

#include <mpi_router/router/router_rows.hpp>

#include <array>

MPIROUTER_BEGIN

/// Elements of scratch that images_of_rows needs: N · D, and partial images as router_rows.
[[nodiscard]] constexpr index_t images_of_rows_workspace(const expert_shape& shape) noexcept {
  return shape.num_experts * shape.hidden_dim + apply_experts_workspace(shape);
}

namespace detail {

template <Accumulator S, class Experts, class R, class Run>
void multiply_rows(const Experts& experts, const matrix_view<R>& router, const matrix_view<S>& images,
                   const vector_view<S>& energies, const vector_view<S>& workspace, const Run& executor) {
  constexpr const char* what = "images_of_rows";
  const auto [n, f, d] = experts.shape();
  const index_t needed = n * d + experts.partial();
  expect_rows(what, "the router", experts.shape(), router);
  expect_rows(what, "the images", experts.shape(), images);
  expect(energies.size() == n, what, ": there are ", energies.size(), " energies for ", n, " experts");
  expect_workspace(what, workspace, needed);
  const std::array written{named_range{"the images", addresses(images)},
                           named_range{"the energies", addresses(energies)},
                           named_range{"the workspace", first_elements(workspace, needed)}};
  experts.expect_apart(what, written);
  expect_apart(what, written, {{"the router", addresses(router)}});
  workspace_pieces<S> pieces(workspace);
  const matrix_view<S> rows = pieces.matrix(n, d);
  executor(n, [&](index_t i) { copy_into<S>(router.row(i), rows.row(i)); });
  experts.multiply(rows, images, energies, pieces.vector(experts.partial()), executor);
}

}  // namespace detail

/// images_i = r_i M_i and energies_i = r_i M_i r_iᵀ of the neurons at hand, before any normalising. Sum both
/// over the shards, if there are several, then retract_images.
///
/// experts: [N, F, D] in any layout; router: [N, D] of any storage type; images: [N, D] and energies: N
/// elements of S; workspace: images_of_rows_workspace(shape) elements. Weights whose squares leave the range
/// of S give images that are not finite, or so small that they count as zero, which the status says: take S =
/// double for them. Cost, determinism and errors as of router_rows.
template <Scalar T, Scalar R, Accumulator S, class Backend = reference, class Run = serial_executor>
  requires DenseBackend<Backend, std::remove_const_t<T>, S> &&
           (std::same_as<S, double> || std::same_as<router_scalar_t<T, R>, float>)
void images_of_rows(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                    const matrix_view<S>& images, const std::type_identity_t<vector_view<S>>& energies,
                    const std::type_identity_t<vector_view<S>>& workspace, const Backend& backend = {},
                    const Run& executor = {}) {
  detail::multiply_rows<S>(detail::dense_experts<S, T, Backend>{experts, backend}, router, images, energies,
                           workspace, executor);
}

/// The same over operators, one for each row of the router; workspace: N · D elements.
template <GramOperators Operators, Scalar R, class Run = serial_executor,
          Accumulator S = scalar_of_operators<Operators>>
void images_of_rows(const Operators& operators, const matrix_view<R>& router,
                    const std::type_identity_t<matrix_view<S>>& images,
                    const std::type_identity_t<vector_view<S>>& energies,
                    const std::type_identity_t<vector_view<S>>& workspace, const Run& executor = {}) {
  detail::multiply_rows<S>(detail::operators_of("images_of_rows", operators, router), router, images,
                           energies, workspace, executor);
}

namespace detail {

/// Shapes, options and memory of retract_images. Returns C.
template <Accumulator S, class U, class R, class O>
[[nodiscard]] S expect_retract(const char* what, const matrix_view<U>& images,
                               const vector_view<const S>& energies, const matrix_view<R>& router,
                               const matrix_view<O>& rows, const router_options& options,
                               const router_by_products<S>& told) {
  const index_t n = images.rows();
  expect(options.steps == 1, what, ": steps is ", options.steps, ", not 1");
  const S radius = expect_options<S>(what, options, n);
  expect_like(what, "the images are", images, "the router", router);
  expect_like(what, "the images are", images, "the output", rows);
  expect(energies.size() == 0 || energies.size() == n, what, ": ", energies.size(), " energies for ", n,
         " experts");
  const auto told_at = expect_by_products(what, told, {n, 0, images.cols()}, options);
  expect(is_in_place(router, rows) || !overlap(router, rows), what, ": the router and the output overlap");
  const named_range input{"the images", addresses(images)};
  const named_range energy{"the energies", addresses(energies)};
  const named_range output{"the output", addresses(rows)};
  expect_apart(what, told_at, {input, energy, {"the router", addresses(router)}, output});
  expect_apart(what, output, {input, energy});
  return radius;
}

}  // namespace detail

/// rows_i = C · u_i/‖u_i‖ (Eq. 5) from images and energies that were summed over all shards.
///
/// images: [N, D]; energies: N elements, or none, and ρ comes from the images; router: [N, D], as
/// images_of_rows was given it; rows: [N, D] of any storage type, the router itself or apart from it and from
/// the images; told: as of router_rows, the tape is that of one step. options.steps is 1. A scale-free radius
/// takes N from the images: where they are a part of the experts, give it the total. O(N·D). Throws
/// usage_error on shapes, overlap, radius, steps.
template <Scalar U, Scalar R, WritableScalar O, class Run = serial_executor,
          Accumulator S = std::remove_const_t<U>>
void retract_images(const matrix_view<U>& images, const std::type_identity_t<vector_view<const S>>& energies,
                    const matrix_view<R>& router, const matrix_view<O>& rows, const router_options& options,
                    const std::type_identity_t<router_by_products<S>>& told = {}, const Run& executor = {}) {
  const S radius = detail::expect_retract<S>("retract_images", images, energies, router, rows, options, told);
  const index_t n = images.rows();
  const detail::step_tape<S> tape(told.tape, {n, 0, images.cols()}, 1);
  executor(n, [&](index_t i) {
    const auto u = images.row(i);
    const S energy_of_row = energies.size() != 0 ? energies[i] : std::numeric_limits<S>::quiet_NaN();
    const auto image = detail::measure_image(router.row(i), u, energy_of_row, detail::never_again{});
    detail::tell_step<S>(told, i, true, image, router.row(i), u);
    if (told.tape.size() != 0) {
      tape.save(0, i, image.image_norm);
      detail::retract_image(image, router.row(i), u, tape.rows(0).row(i), radius, options.degenerate);
    }
    detail::retract_image(image, router.row(i), u, rows.row(i), radius, options.degenerate);
  });
}

MPIROUTER_END
