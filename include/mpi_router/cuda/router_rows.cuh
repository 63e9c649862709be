// The batched step over all experts on a GPU, and its two halves for sharded weights.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/views.hpp>
#include <mpi_router/cuda/context.cuh>
#include <mpi_router/cuda/detail/device/expect_step.cuh>
#include <mpi_router/cuda/detail/device/given_matrix.cuh>
#include <mpi_router/cuda/detail/finish/launch.cuh>
#include <mpi_router/cuda/detail/finish/steps.cuh>
#include <mpi_router/cuda/detail/generic/launch.cuh>
#include <mpi_router/cuda/detail/generic/vector_launch.cuh>
#include <mpi_router/cuda/detail/panels/launch.cuh>
#include <mpi_router/cuda/detail/plan/expect.hpp>
#include <mpi_router/cuda/detail/plan/forward_path.hpp>
#include <mpi_router/cuda/detail/rows/launch.cuh>

#include <cstddef>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A forward_path of weights in T, and the walk.
template <class T>
struct forward_plan : forward_path {
  forward_plan(const context& ctx, const expert_batch_view<const T, device_space>& experts, index_t steps,
               void* data)
      : forward_path(ctx, experts.shape(), experts.strides(), has_vectors<T> ? sizeof(T) : 8, steps, data) {}

  /// Reads the weights once with the rows of `args`, `at_rest` or not, then calls use(images), unless the
  /// step finished by itself as `args` say, which it may if `fuse`.
  template <class Use>
  void run(const context& ctx, const expert_batch_view<const T, device_space>& experts,
           const finish_args& args, bool at_rest, bool fuse, const Use& use) const {
    if (experts.empty()) {
      return use(matrix_images{});
    }
    const batch<const T> weights(experts);
    if constexpr (has_vectors<T>) {
      const bool in_floats = !args.rows.is_double();
      if (in_floats && rows.vectors > 0) {
        const bool fused = fuse && rows.cluster > 0;
        row_step<T>(ctx, rows, weights, experts.shape(), sums, fused, at_rest, args);
        return fused ? void() : use(slot_images{sums, rows.part});
      }
      if (in_floats && panels.lanes > 0) {
        const bool fused = fuse && panels.members > 0;
        const auto step = [&](const auto& columns) {
          panel_step(ctx, panels, columns, experts.shape(), sums, fused, at_rest, args);
        };
        this->in_pairs ? step(detail::in_pairs(weights)) : step(weights);
        return fused ? void() : use(slot_images{sums, panels.part});
      }
      if (in_floats && in_vectors) {
        step_of_products(vector_products<T>{ctx, weights, experts.shape(), scaled}, args.rows, y, u,
                         energies);
        return use(matrix_images{any_matrix(u, experts.hidden_dim()), energies});
      }
    }
    generic_step(plain_products<T>{ctx, weights, experts.shape()}, args.rows, y, u, energies, exponents);
    use(scaled_images{u, energies, exponents});
  }
};

/// router_rows, which says what it does; the rows and what is told go to `peers` too.
template <class T>
void forward(const char* name, const context& ctx, const expert_batch_view<const T, device_space>& experts,
             const given_matrix& router, const given_matrix& rows, const step_by_products& told,
             const saved_step& saved, const workspace& scratch, const step_options& options,
             const peer_copies& peers = {}) {
  expect_context(name, ctx);
  expect_experts(name, experts);
  expect(options.steps >= 1, name, ": ", options.steps, " steps");
  const double radius = expect_radius(name, options, experts.total_experts());
  const forward_plan<T> plan(ctx, experts, options.steps, scratch.data);
  expect_forward(name, experts, router, rows, told, saved, scratch, plan.bytes);
  if (experts.num_experts() == 0) {
    return;
  }
  const bool in_place = is_in_place(router, rows);
  take_steps(plan, experts.hidden_dim(), router.elements(), rows.elements(), radius, told, saved, options,
             peers, [&](const finish_args& args, bool is_first) {
               plan.run(ctx, experts, args, ctx.inputs_at_rest && is_first && !in_place, true,
                        [&](const auto& images) { finish(ctx, experts.num_experts(), images, args); });
             });
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// Bytes of workspace that router_rows, and images_of_rows with one step, need, of routers of any type.
template <class T>
[[nodiscard]] std::size_t router_rows_workspace(const context& ctx,
                                                const expert_batch_view<T, device_space>& experts,
                                                index_t steps = 1) {
  using value = std::remove_const_t<T>;
  return detail::forward_plan<value>(ctx, experts, steps, nullptr).bytes;
}

/// The batched step on a GPU: rows_i = C · r_i M_i / ‖r_i M_i‖ for all N experts (Eq. 4, 5), `options.steps`
/// times.
///
/// experts [N, F, D] in any layout; router [N, D], the parameter, whose rows are r_i; rows [N, D], the
/// result; of any storage types. rows may be the router itself (the stateful form); else nothing overlaps.
/// `told` and `saved`: what the caller wants to know besides; saved is of the last step.
///
/// Reads the weights once a step where one axis of theirs has stride 1 and a block, or a cluster, holds what
/// belongs to D: with stride 1 along D up to 16384 columns (f32 on sm_86, sm_89 and sm_120: 12128), along F
/// up to 32768 (sm_120: 16384; sm_80 and sm_87: 8192; sm_86 and sm_89: 2048); beyond that twice, likewise in
/// f32. Once too, on sm_90, sm_100 and sm_103, with stride 2 along F, the others even, up to 16384 (gate and
/// up interleaved: whole vectors are read, with what lies between). Twice and in f64 on the generic path:
/// weights or router of f64 (narrow_rows makes floats of the latter), and other strides. Sums in f32 have a
/// scale of their own, and so do those of rows and images of f64: for weights and rows of any magnitude,
/// except for denormal f64. By-products out of the range of f64 are infinite or 0. Stream-ordered, no
/// synchronisation, no allocation, may be captured in a graph. Bitwise the same from run to run on one kind
/// of device.
///
/// Throws usage_error for shapes, workspace, or another current device than the context's, cuda_error if a
/// launch fails. A row without a step becomes what `options.degenerate` says; its by-products are zero. With
/// no experts, does nothing; with F = 0 every image is zero, with D = 0 every row.
template <class T, class R, class O>
void router_rows(const context& ctx, const expert_batch_view<T, device_space>& experts,
                 const matrix_view<R, device_space>& router, const matrix_view<O, device_space>& rows,
                 const step_by_products& told, const saved_step& saved, const workspace& scratch,
                 const step_options& options) {
  static_assert(!std::is_const_v<O>, "router_rows: the output is const");
  using value = std::remove_const_t<T>;
  detail::forward<value>("cuda::router_rows", ctx, experts, router, rows, told, saved, scratch, options);
}

/// Bytes of workspace that images_of_rows needs.
template <class T>
[[nodiscard]] std::size_t images_of_rows_workspace(const context& ctx,
                                                   const expert_batch_view<T, device_space>& experts) {
  return router_rows_workspace(ctx, experts, 1);
}

/// The partial form: images u_i = r_i M_i [N, D] and energies ‖A_i r_i‖² [N] (device memory, or null) of the
/// shard of the weights at hand, before any normalising. Where F is sharded, sum both over the shards, then
/// retract_images; where the experts are sharded there is nothing to sum. Cost and guarantees as for
/// router_rows, but that ‖r‖² and ‖u‖² are f64 in retract_images: rows and images of f64 outside about 1e±150
/// count as zero or not finite there. In f32 images of weights beyond about 1e±18 leave the range: give an
/// f64 `images` then.
template <class T, class R, class O>
void images_of_rows(const context& ctx, const expert_batch_view<T, device_space>& experts,
                    const matrix_view<R, device_space>& router, const matrix_view<O, device_space>& images,
                    double* energies, const workspace& scratch) {
  static_assert(!std::is_const_v<O>, "images_of_rows: the images are const");
  using value = std::remove_const_t<T>;
  constexpr const char* name = "cuda::images_of_rows";
  const expert_batch_view<const value, device_space> weights = experts;
  detail::expect_context(name, ctx);
  detail::expect_experts(name, weights);
  const detail::forward_plan<value> plan(ctx, weights, 1, scratch.data);
  detail::expect_images(name, weights, router, images, energies, scratch, plan.bytes);
  if (weights.num_experts() == 0) {
    return;
  }
  const int hidden = static_cast<int>(weights.hidden_dim());
  detail::finish_args args{};
  args.rows = detail::any_matrix(router);
  plan.run(ctx, weights, args, ctx.inputs_at_rest, false, [&](const auto& source) {
    detail::collect(ctx, weights.num_experts(),
                    detail::collect_args<std::remove_cvref_t<decltype(source)>>{
                        source, detail::any_matrix(images), energies, nullptr, {}, hidden});
  });
}

/// Second half of the partial form: rows_i = C · u_i / ‖u_i‖ from images [N, D] and energies [N] (may be null
/// if no by-product needs them) that were summed over shards. router [N, D] is what images_of_rows was given:
/// it says what a row without a step becomes; rows may be the router itself. D up to 32768, N up to 2^30 − 1.
/// No workspace; O(N·D).
template <class U, class R, class O>
void retract_images(const context& ctx, const matrix_view<U, device_space>& images, const double* energies,
                    const matrix_view<R, device_space>& router, const matrix_view<O, device_space>& rows,
                    const step_by_products& told, const saved_step& saved, const step_options& options) {
  static_assert(!std::is_const_v<O>, "retract_images: the output is const");
  constexpr const char* name = "cuda::retract_images";
  detail::expect_context(name, ctx);
  detail::expect(images.rows() <= detail::most_extent && images.cols() <= detail::most_hidden, name,
                 ": images [", images.rows(), ", ", images.cols(),
                 "], where D may be up to 32768 and N up to 2^30 - 1");
  detail::expect(router.rows() == images.rows() && router.cols() == images.cols() &&
                     rows.rows() == images.rows() && rows.cols() == images.cols(),
                 name, ": images [", images.rows(), ", ", images.cols(), "], the router is [", router.rows(),
                 ", ", router.cols(), "], the output [", rows.rows(), ", ", rows.cols(), "]");
  detail::expect(energies != nullptr || (told.rayleigh == nullptr && told.cosine == nullptr &&
                                         told.residual == nullptr && told.energy == nullptr),
                 name,
                 ": no energies, of which the Rayleigh quotient, the cosine, the residual and the energy are "
                 "made");
  const double radius = detail::expect_radius(name, options, images.rows());
  detail::expect_told_apart(name, told, saved, rows.rows(), rows.cols(),
                            {{"the images", core::addresses(images)},
                             {"the energies", detail::addresses_of(energies, images.rows())},
                             {"the router", core::addresses(router)},
                             {"the output", core::addresses(rows)}});
  detail::expect(!core::overlap(images, rows), name, ": the images and the output overlap");
  detail::expect_in_place_or_apart(name, router, rows);
  if (images.rows() == 0) {
    return;
  }
  detail::finish(ctx, images.rows(), detail::matrix_images{detail::any_matrix(images), energies},
                 detail::finish_args{detail::any_matrix(router), detail::any_matrix(rows), radius,
                                     static_cast<int>(images.cols()), options.degenerate, nullptr, nullptr,
                                     told, saved});
}

/// to = from [N, D] in the type of `to`: of any storage types, rounded to nearest (to 16 bits from f64 by way
/// of f32), infinite where it is out of range. Rows of f64, with which a call goes the generic way, in f32,
/// with which it reads the weights once. No workspace; O(N·D).
template <class U, class V>
void narrow_rows(const context& ctx, const matrix_view<U, device_space>& from,
                 const matrix_view<V, device_space>& to) {
  static_assert(!std::is_const_v<V>, "narrow_rows: the output is const");
  constexpr const char* name = "cuda::narrow_rows";
  detail::expect_context(name, ctx);
  detail::expect(from.rows() <= detail::most_extent && from.cols() <= detail::most_extent &&
                     to.rows() == from.rows() && to.cols() == from.cols(),
                 name, ": rows [", from.rows(), ", ", from.cols(), "] into [", to.rows(), ", ", to.cols(),
                 "], where N and D may be up to 2^30 - 1");
  detail::expect(!core::overlap(from, to), name, ": the rows and the output overlap");
  if (from.rows() > 0) {
    detail::collect(ctx, from.rows(),
                    detail::collect_args<detail::matrix_images>{{detail::any_matrix(from)},
                                                                detail::any_matrix(to),
                                                                nullptr,
                                                                nullptr,
                                                                {},
                                                                static_cast<int>(from.cols())});
  }
}

MPIROUTER_CUDA_END
