// The step in two halves: over the neurons of one shard it is the step, bit by bit; over several, summed in
// between, it is the step of the whole.
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>
#include <mpi_router/router/row_images.hpp>

#include <doctest/doctest.h>
#include <support/apart.hpp>
#include <support/messages.hpp>

#include "batch.hpp"

namespace test_row_images {
using namespace mpi_router;
using namespace test_support;

namespace {

constexpr expert_shape shape{3, 11, 5};
constexpr index_t N = 3, F = 11, D = 5;

template <class S>
struct told {
  std::vector<status> statuses = std::vector<status>(3);
  std::vector<S> rayleigh = std::vector<S>(3), cosine = rayleigh, residual = rayleigh, energy = rayleigh,
                 row_norm = rayleigh, image_norm = rayleigh;
  std::vector<S> tape = std::vector<S>(static_cast<std::size_t>(router_tape_size(shape, {})));
  [[nodiscard]] router_by_products<S> view() {
    return {statuses, rayleigh, cosine, tape, residual, energy, row_norm, image_norm};
  }
  friend bool operator==(const told&, const told&) = default;
};

template <class S>
auto all_rows(std::vector<S>& v) {
  return row_major(v.data(), N, D);
}
template <class S>
auto all_rows(const std::vector<S>& v) {
  return row_major(v.data(), N, D);
}

template <class R>
std::vector<double> wide(const std::vector<R>& v) {
  std::vector<double> out;
  for (const R& x : v) out.push_back(widen<double>(x));
  return out;
}

/// images and energies of the neurons [first, first + count), added to what is there.
template <class S, class T, class R, class Backend>
void add_shard(const expert_batch_view<const T>& experts, const std::vector<R>& router, index_t first,
               index_t count, std::vector<S>& images, std::vector<S>& energies, const Backend& backend) {
  const expert_shape part{N, count, D};
  const auto shard = experts_strided(experts[0].middle_rows(first, count).data(), part, experts.strides());
  std::vector<S> u(images.size()), e(energies.size());
  std::vector<S> workspace(static_cast<std::size_t>(images_of_rows_workspace(part)));
  images_of_rows(shard, all_rows(router), all_rows(u), e, workspace, backend);
  for (std::size_t i = 0; i < u.size(); ++i) images[i] += u[i];
  for (std::size_t i = 0; i < e.size(); ++i) energies[i] += e[i];
}

template <class T, class R, class S>
void two_halves_are_the_step(const router_options& options) {
  random_source random(11);
  const auto a = random_vector<T>(random, N * F * D, 3);
  const auto router = random_vector<R>(random, N * D);
  const auto experts = experts_nfd(a.data(), shape);
  std::vector<R> want(router.size()), rows(router.size());
  told<S> of_step, of_halves;
  std::vector<S> workspace(static_cast<std::size_t>(router_rows_workspace(shape)));
  router_rows(experts, all_rows(router), all_rows(want), options, workspace, of_step.view());

  std::vector<S> images(router.size()), energies(3);
  add_shard<S>(experts, router, 0, F, images, energies, reference{});
  retract_images(all_rows(images), energies, all_rows(router), all_rows(rows), options, of_halves.view());
  CHECK(wide(rows) == wide(want));
  CHECK(of_halves == of_step);

  for (const index_t cut : {1, 6, 10}) {
    std::fill(images.begin(), images.end(), S{0});
    std::fill(energies.begin(), energies.end(), S{0});
    add_shard<S>(experts, router, 0, cut, images, energies, simd{});
    add_shard<S>(experts, router, cut, F - cut, images, energies, reference{});
    retract_images(all_rows(std::as_const(images)), energies, all_rows(router), all_rows(rows), options,
                   of_halves.view());
    const double bound = tolerance<S>.identity + tolerance<R>.storage;
    CHECK(relative_distance(wide(rows), wide(want)) < bound);
    CHECK(relative_distance(of_halves.rayleigh, of_step.rayleigh) < tolerance<S>.identity);
    CHECK(relative_distance(of_halves.cosine, of_step.cosine) < tolerance<S>.identity);
    CHECK(of_halves.statuses == of_step.statuses);

    // ρ comes from the images where there are no energies; and the router may be written over.
    std::vector<R> in_place(router);
    retract_images(all_rows(images), {}, all_rows(in_place), all_rows(in_place), options, of_halves.view());
    CHECK(relative_distance(wide(in_place), wide(rows)) < bound);
    CHECK(relative_distance(of_halves.rayleigh, of_step.rayleigh) < tolerance<S>.identity);
  }
}

}  // namespace

TEST_CASE("the neurons of one shard, or of two") {
  for (const auto policy : {degenerate_row::keep, degenerate_row::zero}) {
    const router_options options{.radius = 2, .degenerate = policy};
    two_halves_are_the_step<double, double, double>(options);
    two_halves_are_the_step<float, float, float>(options);
    two_halves_are_the_step<bf16, float, float>(options);
    two_halves_are_the_step<bf16, bf16, float>(options);
    two_halves_are_the_step<f16, double, double>(options);
  }
}

TEST_CASE("the tape of the halves is what the backward takes") {
  random_source random(12);
  const auto a = random_vector<double>(random, N * F * D);
  const auto router = random_vector<double>(random, N * D);
  const auto grad = random_vector<double>(random, N * D);
  const auto experts = experts_nfd(a.data(), shape);
  const router_options options{};
  std::vector<double> rows(router.size()), images(router.size()), energies(3);
  told<double> from_step, from_halves;
  std::vector<double> workspace(static_cast<std::size_t>(router_rows_vjp_workspace(shape)));
  router_rows(experts, all_rows(router), all_rows(rows), options, workspace, from_step.view());
  add_shard<double>(experts, router, 0, F, images, energies, reference{});
  retract_images(all_rows(images), energies, all_rows(router), all_rows(rows), options, from_halves.view());
  const auto gradient = [&](const std::vector<double>& tape) {
    std::vector<double> out(router.size());
    router_rows_vjp_detached(experts, all_rows(router), tape, all_rows(grad), options, all_rows(out),
                             gradient_mode::write, workspace);
    return out;
  };
  CHECK(gradient(from_halves.tape) == gradient(from_step.tape));
}

TEST_CASE("rows without a step are named, and become what the policy says") {
  const std::vector<double> router{0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 1, 0, 0, 0, 0};
  std::vector<double> images(router.size(), 1.0), energies{1, 0, 1};
  std::fill_n(images.begin() + D, D, 0.0);                  // the second has no image
  images[2 * D] = std::numeric_limits<double>::infinity();  // the third is not finite
  const std::vector<status> want{status::zero_row, status::zero_image, status::non_finite};
  for (const auto policy : {degenerate_row::keep, degenerate_row::zero}) {
    std::vector<double> rows(router.size(), 7);
    told<double> of;
    retract_images(all_rows(images), energies, all_rows(router), all_rows(rows), {.degenerate = policy},
                   of.view());
    CHECK(of.statuses == want);
    CHECK(of.rayleigh == std::vector<double>(3));
    CHECK(rows == (policy == degenerate_row::keep ? router : std::vector<double>(router.size())));
  }
}

TEST_CASE("a scale-free radius takes the number of images, or the total that it is given") {
  const std::vector<double> router(15, 1), energies(3, 5);
  std::vector<double> images(15, 1), rows(15);
  retract_images(all_rows(images), energies, all_rows(router), all_rows(rows), {});
  CHECK(close(rows[0], 4 / std::sqrt(15.0), 1e-15));
  retract_images(all_rows(images), energies, all_rows(router), all_rows(rows),
                 {.radius = router_radius::scale_free(4, 12)});
  CHECK(close(rows[0], 4 / std::sqrt(60.0), 1e-15));
}

TEST_CASE("what the halves refuse, by the words") {
  std::vector<float> a(N * F * D), router(N * D), images(N * D), rows(N * D), energies(3);
  const auto experts = experts_nfd(a.data(), shape);
  std::vector<float> work(static_cast<std::size_t>(images_of_rows_workspace(shape)));
  const std::vector<float> short_work(work.size() - 1);
  CHECK(refused(
      [&] { images_of_rows(experts, row_major(router.data(), 3, 4), all_rows(images), energies, work); },
      "images_of_rows: the experts are [N = 3, F = 11, D = 5], the router is [3, 4]"));
  CHECK(refused(
      [&] { images_of_rows(experts, all_rows(router), row_major(images.data(), 2, 5), energies, work); },
      "images_of_rows: the experts are [N = 3, F = 11, D = 5], the images is [2, 5]"));
  CHECK(refused(
      [&] {
        images_of_rows(experts, all_rows(router), all_rows(images), vector_view<float>(energies.data(), 2),
                       work);
      },
      "images_of_rows: there are 2 energies for 3 experts"));
  std::vector<float> four(4);
  CHECK(refused([&] { images_of_rows(experts, all_rows(router), all_rows(images), four, work); },
                "images_of_rows: there are 4 energies for 3 experts"));
  CHECK(refused(
      [&] {
        images_of_rows(experts, all_rows(router), all_rows(images), energies,
                       vector_view<float>(work.data(), std::ssize(work) - 1));
      },
      "images_of_rows: the workspace has " + std::to_string(short_work.size())));
  const auto retract = [&](const matrix_view<float>& u, const vector_view<const float>& e,
                           const matrix_view<float>& r, const matrix_view<float>& out,
                           const router_options& options, const router_by_products<float>& told = {}) {
    return [=] { retract_images(u, e, r, out, options, told); };
  };
  const auto u = all_rows(images), r = all_rows(router), out = all_rows(rows);
  CHECK(refused(retract(u, energies, row_major(router.data(), 3, 4), out, {}),
                "retract_images: the images are [3, 5], the router is [3, 4]"));
  CHECK(refused(retract(u, energies, r, row_major(rows.data(), 2, 5), {}),
                "retract_images: the images are [3, 5], the output is [2, 5]"));
  CHECK(refused(retract(u, {energies.data(), 2}, r, out, {}), "retract_images: 2 energies for 3 experts"));
  CHECK(refused(retract(u, energies, r, out, {.steps = 2}), "retract_images: steps is 2, not 1"));
  CHECK(refused(retract(u, energies, r, out, {.radius = 0}), "retract_images: the radius must be positive"));
  CHECK(refused(retract(u, energies, r, out, {}, {.cosine = {work.data(), 2}}),
                "retract_images: by-products for 2 experts in cosine, not 3"));
  CHECK(refused(retract(u, energies, r, out, {}, {.tape = {work.data(), 7}}),
                "retract_images: the tape has 7 elements"));
}

TEST_CASE("every two buffers that meet are named") {
  const auto vector_at = [](float* data, std::size_t size) {
    return vector_view<float>(data, static_cast<index_t>(size));
  };
  constexpr expert_shape four{4, 3, 5};  // a status each fills the four bytes of a float
  const auto work = static_cast<std::size_t>(images_of_rows_workspace(four));
  const auto tape = static_cast<std::size_t>(router_tape_size(four, {}));
  refuses_every_overlap<float>({{"a gate matrix", 60, false},
                                {"the router", 20, false},
                                {"the images", 20, true},
                                {"the energies", 4, true},
                                {"the workspace", work, true}},
                               [&](const auto& at) {
                                 images_of_rows(experts_nfd(static_cast<const float*>(at[0]), four),
                                                row_major(at[1], 4, 5), row_major(at[2], 4, 5),
                                                vector_at(at[3], 4), vector_at(at[4], work));
                               });
  refuses_every_overlap<float>({{"the images", 20, false},
                                {"the energies", 4, false},
                                {"the router", 20, false},
                                {"the output", 20, true},
                                {"the tape", tape, true},
                                {"rayleigh", 4, true},
                                {"cosine", 4, true},
                                {"the statuses", 1, true}},
                               [&](const auto& at) {
                                 retract_images(
                                     row_major(at[0], 4, 5), vector_at(at[1], 4), row_major(at[2], 4, 5),
                                     row_major(at[3], 4, 5), {},
                                     {std::span(reinterpret_cast<status*>(at[7]), 4), vector_at(at[5], 4),
                                      vector_at(at[6], 4), vector_at(at[4], tape)});
                               });
}

}  // namespace test_row_images
