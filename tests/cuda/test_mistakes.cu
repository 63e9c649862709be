// Mistakes of the caller on the GPU's calls: each is refused with words that name it, before CUDA is called.
// So it needs no GPU; where there is one it is hidden, and a call without a mistake ends at the first call of
// CUDA.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <mpi_router/cuda/logits.cuh>
#include <mpi_router/cuda/router.cuh>
#include <string>
#include <support/messages.hpp>

using namespace mpi_router;
using test_support::contains;

namespace {

const int no_device = setenv("CUDA_VISIBLE_DEVICES", "", 1);

/// What became of a call: the words of its usage_error, "cuda" where it reached CUDA, "returned" where it had
/// nothing to do.
template <class Call>
[[nodiscard]] std::string outcome(const Call& call) {
  try {
    call();
  } catch (const usage_error& e) {
    return e.what();
  } catch (const cuda::cuda_error&) {
    return "cuda";
  }
  return "returned";
}

/// Addresses that nothing is read from, each buffer with a mebibyte of its own.
template <class T>
[[nodiscard]] T* buffer(int number) {
  return reinterpret_cast<T*>(std::uintptr_t{0x10000000} + static_cast<std::uintptr_t>(number) * 0x100000);
}

[[nodiscard]] cuda::context made() {
  cuda::context ctx;
  ctx.multiprocessors = 132;
  ctx.capability = 90;
  ctx.shared_memory = 227 * 1024;
  ctx.clusters[0] = 132;
  ctx.clusters[1] = 66;
  ctx.clusters[2] = 32;
  ctx.clusters[3] = 16;
  return ctx;
}

template <class T>
using matrix = matrix_view<T, device_space>;
template <class T>
using batch_of = expert_batch_view<const T, device_space>;

template <class T>
[[nodiscard]] batch_of<T> weights(const expert_shape& s) {
  return experts_nfd<device_space>(static_cast<const T*>(buffer<T>(0)), s);
}
template <class T>
[[nodiscard]] matrix<T> array(int number, index_t rows, index_t cols) {
  return row_major<device_space>(buffer<T>(number), rows, cols);
}

constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();
constexpr double infinite = std::numeric_limits<double>::infinity();

/// A step of [2, 4, 8] without a mistake, in parts that the tests spoil one at a time. The weights are f64,
/// whose kernels are few.
struct step {
  cuda::context ctx = made();
  batch_of<double> experts = weights<double>({2, 4, 8});
  matrix<const float> rows = array<const float>(1, 2, 8);
  matrix<float> out = array<float>(2, 2, 8);
  cuda::workspace scratch{buffer<void*>(3), 1 << 16};
  cuda::step_options options{};
  cuda::step_by_products told{};
  cuda::saved_step saved{};
  double* energies = buffer<double>(4);

  [[nodiscard]] std::string router_rows() const {
    return outcome([&] { cuda::router_rows(ctx, experts, rows, out, told, saved, scratch, options); });
  }
  [[nodiscard]] std::string images_of_rows() const {
    return outcome([&] { cuda::images_of_rows(ctx, experts, rows, out, energies, scratch); });
  }
  [[nodiscard]] std::string retract_images() const {
    return outcome([&] {
      cuda::retract_images(ctx, images, static_cast<const double*>(energies), rows, out, told, saved,
                           options);
    });
  }
  matrix<const float> images = array<const float>(5, 2, 8);
};

/// `what` is refused by the call `name`, with these words.
void refused(const std::string& what, const char* name, const char* words) {
  INFO(what);
  CHECK(contains(what, std::string(name) + ": "));
  CHECK(contains(what, words));
}

/// Both halves and the whole of a step, spoilt alike.
template <class Spoil>
void refused_by_steps(const Spoil& spoil, const char* words) {
  step s;
  spoil(s);
  refused(s.router_rows(), "router_rows", words);
  refused(s.images_of_rows(), "images_of_rows", words);
}

constexpr index_t two_to_30 = index_t{1} << 30;

}  // namespace

TEST_CASE("without a mistake the calls reach CUDA") {
  REQUIRE(no_device == 0);
  CHECK(step{}.router_rows() == "cuda");
  CHECK(step{}.images_of_rows() == "cuda");
  CHECK(step{}.retract_images() == "cuda");
  step in_place;
  in_place.rows = array<const float>(2, 2, 8);
  CHECK(in_place.router_rows() == "cuda");
  step none;
  none.experts = weights<double>({0, 4, 8});
  none.rows = array<const float>(1, 0, 8);
  none.out = array<float>(2, 0, 8);
  none.scratch = {};
  CHECK(none.router_rows() == "returned");
  CHECK(none.images_of_rows() == "returned");
}

TEST_CASE("a context that nobody made") {
  refused_by_steps([](step& s) { s.ctx = {}; },
                   "a context of capability 0 with 0 multiprocessors: use make_context()");
  refused_by_steps([](step& s) { s.ctx.capability = 75; },
                   "a context of capability 75 with 132 multiprocessors");
  refused_by_steps([](step& s) { s.ctx.multiprocessors = 0; }, "capability 90 with 0 multiprocessors");
  step s;
  s.ctx = {};
  refused(s.retract_images(), "retract_images", "use make_context()");
}

TEST_CASE("extents beyond what the kernels count") {
  const auto with = [](const expert_shape& shape) {
    return [shape](step& s) {
      s.experts = batch_of<double>(buffer<const double>(0), shape, {0, 0, 0});
      s.rows = matrix<const float>(buffer<const float>(1), shape.num_experts, shape.hidden_dim, 0, 0);
      s.out = matrix<float>(buffer<float>(200), shape.num_experts, shape.hidden_dim, 0, 0);
    };
  };
  refused_by_steps(with({2, 4, 32769}),
                   "experts [2, 4, 32769], where D may be up to 32768 and N and F up to 2^30 - 1");
  refused_by_steps(with({two_to_30, 4, 8}), "experts [1073741824, 4, 8], where D may be");
  refused_by_steps(with({2, two_to_30, 8}), "experts [2, 1073741824, 8], where D may be");
  step most;
  with({2, 4, 32768})(most);
  most.scratch.bytes = 1 << 30;
  CHECK(most.router_rows() == "cuda");
}

TEST_CASE("rows that do not fit the experts") {
  const char* const words = "of shape [3, 8] for experts [2, 4, 8]";
  refused_by_steps([](step& s) { s.rows = array<const float>(1, 3, 8); }, words);
  refused_by_steps([](step& s) { s.out = array<float>(2, 3, 8); }, words);
  refused_by_steps([](step& s) { s.rows = array<const float>(1, 2, 9); },
                   "of shape [2, 9] for experts [2, 4, 8]");
  refused_by_steps([](step& s) { s.out = array<float>(2, 2, 7); }, "of shape [2, 7] for experts [2, 4, 8]");
  refused_by_steps([](step& s) { s.out = {}; }, "of shape [0, 0] for experts [2, 4, 8]");
  const auto retracted = [](auto spoil) {
    step s;
    spoil(s);
    return s.retract_images();
  };
  refused(retracted([](step& s) { s.images = array<const float>(5, 3, 8); }), "retract_images",
          "images [3, 8]");
  refused(retracted([](step& s) { s.rows = array<const float>(1, 3, 8); }), "retract_images", "[3, 8]");
  refused(retracted([](step& s) { s.rows = array<const float>(1, 2, 7); }), "retract_images", "[2, 7]");
  refused(retracted([](step& s) { s.out = array<float>(2, 3, 8); }), "retract_images", "[3, 8]");
  refused(retracted([](step& s) { s.out = array<float>(2, 2, 7); }), "retract_images", "[2, 7]");
}

TEST_CASE("radii and steps") {
  for (const double radius : {0.0, -1.0, nan_value, infinite, -infinite}) {
    step s;
    s.options.radius = radius;
    refused(s.router_rows(), "router_rows", "the radius must be positive and finite, not ");
    refused(s.retract_images(), "retract_images", "the radius must be positive and finite, not ");
    CHECK(s.images_of_rows() == "cuda");  // takes none
  }
  step s;
  s.options.radius = 1e-300;
  CHECK(s.router_rows() == "cuda");
  for (const int steps : {0, -1}) {
    s.options.steps = steps;
    refused(s.router_rows(), "router_rows", steps == 0 ? ": 0 steps" : ": -1 steps");
  }
}

TEST_CASE("what is written overlaps what is read") {
  // The last element of one is the first of the other, from both sides; and in place, but of another type or
  // order.
  const auto at = [](std::size_t bytes) {
    return row_major<device_space>(reinterpret_cast<float*>(buffer<char>(1) + bytes), 2, 8);
  };
  for (const std::size_t bytes : {std::size_t{4}, std::size_t{60}}) {
    refused_by_steps([&](step& s) { s.out = at(bytes); }, "overlap");
  }
  refused_by_steps(
      [&](step& s) {
        s.rows = array<const float>(2, 2, 8), s.out = matrix<float>(buffer<float>(2), 2, 8, 1, 2);
      },
      "overlap");
  step apart;
  apart.out = at(64);
  CHECK(apart.router_rows() == "cuda");
  CHECK(apart.images_of_rows() == "cuda");
  step in_place;
  in_place.rows = array<const float>(2, 2, 8);
  refused(in_place.images_of_rows(), "images_of_rows", "overlap");
  step other_type;
  CHECK(contains(outcome([&] {
                   cuda::router_rows(other_type.ctx, other_type.experts, array<const float>(2, 2, 8),
                                     array<bf16>(2, 2, 8), {}, {}, other_type.scratch, {});
                 }),
                 "overlap"));
  step images;
  images.out = row_major<device_space>(buffer<float>(5) + 15, 2, 8);
  refused(images.retract_images(), "retract_images", "overlap");
  images.out = row_major<device_space>(buffer<float>(5) + 16, 2, 8);
  CHECK(images.retract_images() == "cuda");
}

TEST_CASE("a step: memory of its own for all that is written") {
  const auto spoilt = [](auto spoil) {
    step s;
    s.saved = {buffer<float>(6), buffer<double>(7), buffer<status>(8)};
    spoil(s);
    return s;
  };
  const std::size_t bytes = cuda::router_rows_workspace(made(), step{}.experts);
  const auto behind = [=](std::size_t offset) {
    return reinterpret_cast<float*>(buffer<char>(3) + bytes - offset);
  };
  CHECK(spoilt([&](step& s) { s.saved.direction = behind(0); }).router_rows() == "cuda");
  const auto whole = [&](auto spoil, const char* words) {
    refused(spoilt(spoil).router_rows(), "router_rows", words);
  };
  whole([](step& s) { s.scratch.data = buffer<char>(2); }, "the workspace and the output overlap");
  whole([](step& s) { s.scratch.data = buffer<char>(1); }, "the workspace and the router overlap");
  whole([&](step& s) { s.saved.direction = behind(4); }, "the saved direction and the workspace overlap");
  whole([](step& s) { s.saved.direction = buffer<float>(2) + 15; },
        "the saved direction and the output overlap");
  whole([](step& s) { s.saved.direction = buffer<float>(1) + 15; },
        "the saved direction and the router overlap");
  whole([](step& s) { s.scratch.data = buffer<char>(0); }, "a gate matrix and the workspace overlap");
  whole([](step& s) { s.out = row_major<device_space>(buffer<float>(0) + 127, 2, 8); },
        "a gate matrix and the output overlap");
  whole([](step& s) { s.saved.direction = buffer<float>(0) + 127; },
        "a gate matrix and the saved direction overlap");
  CHECK(spoilt([](step& s) { s.saved.direction = buffer<float>(0) + 128; }).router_rows() == "cuda");
  CHECK(spoilt([](step& s) {
          s.rows = row_major<device_space>(static_cast<const float*>(buffer<float>(0)), 2, 8);
        }).router_rows() == "cuda");  // both are read

  const auto all_told = [](step& s) {
    s.told = {.statuses = buffer<status>(25),
              .rayleigh = buffer<double>(20),
              .cosine = buffer<double>(26),
              .residual = buffer<double>(21),
              .energy = buffer<double>(22),
              .row_norm = buffer<double>(23),
              .image_norm = buffer<double>(24)};
  };
  CHECK(spoilt(all_told).router_rows() == "cuda");
  CHECK(spoilt(all_told).retract_images() == "cuda");
  const auto each = [&](auto spoil, const std::string& words) {
    const auto spoil_both = [&](step& s) { all_told(s), spoil(s); };
    refused(spoilt(spoil_both).router_rows(), "router_rows", (words + " and the output overlap").c_str());
    refused(spoilt(spoil_both).retract_images(), "retract_images",
            (words + " and the output overlap").c_str());
  };
  each([](step& s) { s.told.rayleigh = buffer<double>(2); }, "rayleigh");
  each([](step& s) { s.told.cosine = buffer<double>(2); }, "cosine");
  each([](step& s) { s.told.residual = buffer<double>(2); }, "residual");
  each([](step& s) { s.told.energy = buffer<double>(2); }, "energy");
  each([](step& s) { s.told.row_norm = buffer<double>(2); }, "row_norm");
  each([](step& s) { s.told.image_norm = buffer<double>(2); }, "image_norm");
  each([](step& s) { s.told.statuses = buffer<status>(2); }, "the statuses");
  each([](step& s) { s.saved.image_norm = buffer<double>(2); }, "the saved norms");
  each([](step& s) { s.saved.statuses = buffer<status>(2); }, "the saved statuses");
  whole([](step& s) { s.told.energy = buffer<double>(0); }, "a gate matrix and energy overlap");
  whole([](step& s) { s.told.energy = s.told.rayleigh = buffer<double>(20); }, "rayleigh and energy overlap");

  CHECK(spoilt([&](step& s) {
          all_told(s);
          s.told.statuses = s.saved.statuses;
          s.told.image_norm = s.saved.image_norm;
        }).router_rows() == "cuda");  // the same numbers
  whole([](step& s) { s.told.statuses = s.saved.statuses + 1; },
        "the statuses and the saved statuses overlap");

  const auto half = [&](auto spoil, const char* words) {
    refused(spoilt(spoil).images_of_rows(), "images_of_rows", words);
  };
  half([](step& s) { s.scratch.data = buffer<char>(2); }, "the images and the workspace overlap");
  half([](step& s) { s.scratch.data = buffer<char>(1); }, "the workspace and the router overlap");
  half([](step& s) { s.scratch.data = buffer<char>(0); }, "a gate matrix and the workspace overlap");
  half([](step& s) { s.energies = buffer<double>(2); }, "the images and the energies overlap");
  half([](step& s) { s.energies = buffer<double>(3); }, "the workspace and the energies overlap");
  half([](step& s) { s.energies = buffer<double>(1); }, "the energies and the router overlap");
  half([](step& s) { s.energies = buffer<double>(0); }, "a gate matrix and the energies overlap");
  half([](step& s) { s.out = row_major<device_space>(buffer<float>(0) + 127, 2, 8); },
       "a gate matrix and the images overlap");

  const auto rest = [&](auto spoil, const char* words) {
    refused(spoilt(spoil).retract_images(), "retract_images", words);
  };
  rest([](step& s) { s.out = row_major<device_space>(buffer<float>(1) + 1, 2, 8); },
       "the router and the output overlap");
  rest([](step& s) { s.saved.direction = buffer<float>(5); }, "the saved direction and the images overlap");
  rest([](step& s) { s.told.energy = s.energies; }, "energy and the energies overlap");
  rest([](step& s) { s.energies = nullptr, s.told.rayleigh = buffer<double>(20); }, "no energies, of which");
  rest([](step& s) { s.energies = nullptr, s.told.cosine = buffer<double>(20); }, "no energies, of which");
  rest([](step& s) { s.energies = nullptr, s.told.residual = buffer<double>(20); }, "no energies, of which");
  rest([](step& s) { s.energies = nullptr, s.told.energy = buffer<double>(20); }, "no energies, of which");
  CHECK(spoilt([](step& s) { s.energies = nullptr; }).retract_images() == "cuda");
  rest([](step& s) { s.out = row_major<device_space>(buffer<float>(5), 2, 8); },
       "the images and the output overlap");
  CHECK(spoilt([](step& s) { s.rows = array<const float>(2, 2, 8); }).retract_images() ==
        "cuda");  // in place
}

TEST_CASE("a table of pointers lies on the device: it is not looked at") {
  step s;
  s.experts = batch_of<double>(buffer<const double* const>(2), {2, 4, 8}, {0, 8, 1});
  CHECK(s.router_rows() == "cuda");
}

TEST_CASE("images that are retracted: extents beyond what the kernels count") {
  const auto retracted = [](index_t rows, index_t cols) {
    step s;
    s.images = matrix<const float>(buffer<const float>(5), rows, cols, 0, 0);
    s.rows = matrix<const float>(buffer<const float>(1), rows, cols, 0, 0);
    s.out = matrix<float>(buffer<float>(2), rows, cols, 0, 0);
    return s.retract_images();
  };
  CHECK(retracted(2, 32768) == "cuda");
  refused(retracted(2, 32769), "retract_images",
          "images [2, 32769], where D may be up to 32768 and N up to 2^30 - 1");
  refused(retracted(1, (index_t{1} << 32) + 1), "retract_images", "images [1, 4294967297], where D may be");
  refused(retracted(two_to_30, 8), "retract_images", "images [1073741824, 8], where D may be");
  CHECK(retracted(0, 8) == "returned");
}

TEST_CASE("rows that are narrowed: shapes and overlap") {
  const auto narrowed = [](index_t rows, index_t cols, const matrix<float>& to) {
    return outcome(
        [&] { cuda::narrow_rows(made(), matrix<const double>(buffer<double>(1), rows, cols, 8, 1), to); });
  };
  CHECK(narrowed(2, 8, array<float>(2, 2, 8)) == "cuda");
  CHECK(narrowed(0, 8, array<float>(2, 0, 8)) == "returned");
  refused(narrowed(2, 7, array<float>(2, 2, 8)), "narrow_rows", "rows [2, 7] into [2, 8]");
  refused(narrowed(3, 8, array<float>(2, 2, 8)), "narrow_rows", "rows [3, 8] into [2, 8]");
  refused(narrowed(2, 8, matrix<float>(buffer<float>(1) + 31, 2, 8, 8, 1)), "narrow_rows", "overlap");
  refused(narrowed(two_to_30, 8, array<float>(2, 2, 8)), "narrow_rows", "may be up to 2^30 - 1");
}

TEST_CASE("radii by the number of experts") {
  step s;
  s.options.radius = router_radius::scale_free(4, 1);
  refused(s.router_rows(), "router_radius", "1 experts in all, where the call has 2");
  s.options.radius = router_radius::scale_free(4, 2);
  CHECK(s.router_rows() == "cuda");
  s.options.radius = router_radius::scale_free(-4);
  refused(s.router_rows(), "router_rows", "the radius must be positive and finite, not -2.8");
}

TEST_CASE("workspaces: a byte short, not there, not aligned") {
  step s;
  for (const int steps : {1, 2, 3}) {
    s.options.steps = steps;
    const std::size_t needed = cuda::router_rows_workspace(s.ctx, s.experts, steps);
    s.scratch.bytes = needed;
    CHECK(s.router_rows() == "cuda");
    s.scratch.bytes = needed - 1;
    refused(s.router_rows(), "router_rows",
            core::concatenate("a workspace of ", needed - 1, " bytes where ", needed, " are needed").c_str());
  }
  const std::size_t needed = cuda::images_of_rows_workspace(s.ctx, s.experts);
  // y, u, the energies, and the exponents of r, y and u.
  CHECK(needed == 2 * 4 * 8 + 2 * 8 * 8 + (256 - 64) + (256 - 128) + 256 + 3 * 256);
  s.scratch.bytes = needed;
  CHECK(s.images_of_rows() == "cuda");
  s.scratch.bytes = needed - 1;
  refused(s.images_of_rows(), "images_of_rows", "bytes where 1536 are needed");
  refused_by_steps([](step& t) { t.scratch = {}; }, "a workspace of 0 bytes where 1536 are needed");
  refused_by_steps([](step& t) { t.scratch.data = nullptr; }, "null workspace");
  refused_by_steps([](step& t) { t.scratch.data = buffer<char>(3) + 128; },
                   "the workspace is not aligned to 256");
}

TEST_CASE("shapes that the counters of a plan do not hold are refused by the query already") {
  const auto bytes = [](const expert_shape& shape) {
    return outcome([&] { static_cast<void>(cuda::router_rows_workspace(made(), weights<bf16>(shape))); });
  };
  CHECK(bytes({two_to_30 - 256, 16, 1}) == "returned");
  CHECK(contains(bytes({two_to_30 - 1, 16, 1}),
                 "cuda: experts [1073741823, 16, 1] make 2147483646 tiles, where "));
}

namespace {

/// A backward of [2, 4, 8] without a mistake.
struct gradient {
  cuda::context ctx = made();
  batch_of<double> experts = weights<double>({2, 4, 8});
  matrix<const float> rows = array<const float>(1, 2, 8);
  cuda::saved_step saved{buffer<float>(2), buffer<double>(3), buffer<status>(4)};
  matrix<const float> grad_out = array<const float>(5, 2, 8);
  matrix<float> grad_rows = array<float>(6, 2, 8);
  expert_batch_view<float, device_space> grad_experts =
      experts_nfd<device_space>(buffer<float>(7), {2, 4, 8});
  cuda::workspace scratch{buffer<void*>(8), 1 << 16};
  cuda::step_options options{};
  cuda::gradient_factors factors{buffer<float>(9), buffer<float>(10), buffer<float>(11)};

  [[nodiscard]] std::string write() const { return run(gradient_mode::write); }
  [[nodiscard]] std::string accumulate() const { return run(gradient_mode::accumulate); }
  [[nodiscard]] std::string factored() const {
    return outcome([&] {
      cuda::router_rows_vjp_factored(ctx, experts, rows, saved, grad_out, grad_rows, factors, scratch,
                                     options);
    });
  }

 private:
  [[nodiscard]] std::string run(gradient_mode mode) const {
    return outcome([&] {
      cuda::router_rows_vjp(ctx, experts, rows, saved, grad_out, grad_rows, grad_experts, mode, scratch,
                            options);
    });
  }
};

template <class Spoil>
void refused_by_gradients(const Spoil& spoil, const char* words) {
  gradient g;
  spoil(g);
  refused(g.write(), "router_rows_vjp", words);
  refused(g.accumulate(), "router_rows_vjp", words);
  refused(g.factored(), "router_rows_vjp_factored", words);
}

}  // namespace

TEST_CASE("the gradient: shapes, extents, radius, steps") {
  gradient right;
  CHECK(right.write() == "cuda");
  CHECK(right.accumulate() == "cuda");
  CHECK(right.factored() == "cuda");
  right.grad_rows = {};  // not wanted
  CHECK(right.write() == "cuda");

  refused_by_gradients([](gradient& g) { g.ctx = {}; }, "use make_context()");
  refused_by_gradients([](gradient& g) { g.rows = array<const float>(1, 3, 8); },
                       "of shape [3, 8] for experts [2, 4, 8]");
  refused_by_gradients([](gradient& g) { g.grad_out = array<const float>(5, 2, 7); },
                       "of shape [2, 7] for experts");
  refused_by_gradients([](gradient& g) { g.grad_rows = array<float>(6, 1, 8); },
                       "of shape [1, 8] for experts");
  refused_by_gradients([](gradient& g) { g.options.steps = 2; },
                       "the gradient of 2 steps; take it of one step at a time");
  refused_by_gradients([](gradient& g) { g.options.steps = 0; }, "the gradient of 0 steps");
  refused_by_gradients([](gradient& g) { g.options.through = differentiate::none; },
                       "nothing is differentiated");
  for (const double radius : {0.0, -1.0, nan_value, infinite}) {
    refused_by_gradients([&](gradient& g) { g.options.radius = radius; },
                         "the radius must be positive and finite");
  }
  gradient g;
  g.grad_experts = experts_nfd<device_space>(buffer<float>(7), {2, 5, 8});
  refused(g.write(), "router_rows_vjp", "gradient of shape [2, 5, 8] for experts [2, 4, 8]");
  refused_by_gradients(
      [](gradient& far) {
        const expert_shape shape{2, 4, 32769};
        far.experts = batch_of<double>(buffer<const double>(0), shape, {0, 0, 0});
        far.grad_experts = expert_batch_view<float, device_space>(buffer<float>(7), shape, {0, 0, 0});
      },
      "experts [2, 4, 32769], where D may be up to 32768");
}

TEST_CASE("the gradient: what the forward saved, overlap, workspace") {
  const char* const words = "direction and image_norm of the forward are needed";
  refused_by_gradients([](gradient& g) { g.saved.direction = nullptr; }, words);
  refused_by_gradients([](gradient& g) { g.saved.image_norm = nullptr; }, words);
  refused_by_gradients([](gradient& g) { g.saved.statuses = nullptr; },
                       "the statuses of the forward are needed");

  refused_by_gradients(
      [](gradient& g) { g.grad_rows = row_major<device_space>(buffer<float>(1) + 15, 2, 8); }, "overlap");
  refused_by_gradients(
      [](gradient& g) { g.grad_rows = row_major<device_space>(buffer<float>(5) + 15, 2, 8); }, "overlap");

  gradient g;
  const std::size_t needed =
      cuda::router_rows_vjp_workspace(g.ctx, g.experts, g.grad_experts, gradient_mode::write);
  CHECK(needed ==
        cuda::router_rows_vjp_workspace(g.ctx, g.experts, g.grad_experts, gradient_mode::accumulate));
  CHECK(needed == cuda::router_rows_vjp_factored_workspace(g.ctx, g.experts));
  g.scratch.bytes = needed;
  CHECK(g.write() == "cuda");
  CHECK(g.factored() == "cuda");
  const std::string short_of =
      core::concatenate("a workspace of ", needed - 1, " bytes where ", needed, " are needed");
  refused_by_gradients([&](gradient& s) { s.scratch.bytes = needed - 1; }, short_of.c_str());
  refused_by_gradients([](gradient& s) { s.scratch.data = nullptr; }, "null workspace");
  refused_by_gradients([](gradient& s) { s.scratch.data = buffer<char>(8) + 8; },
                       "the workspace is not aligned to 256");
}

TEST_CASE("the gradient: memory of its own for all that is written") {
  const auto floats = [](int number) { return row_major<device_space>(buffer<float>(number) + 15, 2, 8); };
  refused_by_gradients([&](gradient& g) { g.grad_rows = floats(1); },
                       "the gradient to the router and the router overlap");
  refused_by_gradients([&](gradient& g) { g.grad_rows = floats(5); },
                       "the gradient to the router and the gradient of the rows overlap");
  refused_by_gradients([&](gradient& g) { g.grad_rows = floats(2); },
                       "the gradient to the router and the saved direction overlap");
  refused_by_gradients([&](gradient& g) { g.grad_rows = floats(8); },
                       "the gradient to the router and the workspace overlap");
  refused_by_gradients([](gradient& g) { g.scratch.data = buffer<char>(1); },
                       "the workspace and the router overlap");
  refused_by_gradients([](gradient& g) { g.scratch.data = buffer<char>(5); },
                       "the workspace and the gradient of the rows overlap");
  refused_by_gradients([](gradient& g) { g.scratch.data = buffer<char>(2); },
                       "the workspace and the saved direction overlap");
  refused_by_gradients([](gradient& g) { g.scratch.data = buffer<char>(0); },
                       "a gate matrix and the workspace overlap");
  refused_by_gradients([&](gradient& g) { g.grad_rows = floats(0); },
                       "a gate matrix and the gradient to the router overlap");

  struct pair_of {
    int number;
    const char* name;
  };
  const pair_of others[] = {{1, "the router"},          {5, "the gradient of the rows"},
                            {2, "the saved direction"}, {6, "the gradient to the router"},
                            {8, "the workspace"},       {0, "a gate matrix"}};
  for (const pair_of& other : others) {
    gradient g;
    g.grad_experts = experts_nfd<device_space>(buffer<float>(other.number), {2, 4, 8});
    refused(g.write(), "router_rows_vjp", other.name);
    refused(g.accumulate(), "router_rows_vjp", "overlap");
    const pair_of factors[] = {{0, "a projection"}, {1, "a dual projection"}, {2, "the dual rows"}};
    for (const pair_of& factor : factors) {
      g.factors = {buffer<float>(9), buffer<float>(10), buffer<float>(11)};
      float** const all[] = {&g.factors.projection, &g.factors.dual_projection, &g.factors.dual_row};
      *all[factor.number] = buffer<float>(other.number);
      const std::string words = other.number == 0
                                    ? core::concatenate(other.name, " and ", factor.name, " overlap")
                                    : core::concatenate(factor.name, " and ", other.name, " overlap");
      refused(g.factored(), "router_rows_vjp_factored", words.c_str());
      *all[factor.number] = nullptr;  // not wanted
      CHECK(g.factored() == "cuda");
    }
  }
}

TEST_CASE("the gate: shapes, options, outputs") {
  cuda::context ctx = made();
  const auto run = [&](const matrix<const float>& logits, const gating_options& options,
                       bool weights_there = true, bool experts_there = true) {
    const auto out = [&] {
      cuda::gate_output o;
      o.weights = weights_there ? buffer<float>(2) : nullptr;
      o.experts = experts_there ? buffer<expert_id>(3) : nullptr;
      return o;
    }();
    return outcome([&] { cuda::gate(ctx, logits, options, nullptr, out); });
  };
  const auto logits = array<const float>(1, 5, 8);
  CHECK(run(logits, {.top_k = 2}) == "cuda");
  CHECK(run(array<const float>(1, 5, 8192), {.top_k = 2}) == "cuda");
  CHECK(run(array<const float>(1, 0, 8), {.top_k = 2}) == "returned");
  refused(run(array<const float>(1, 5, 8193), {.top_k = 2}), "gate", "8193 experts, where 8192 are the most");
  refused(run(matrix<const float>(buffer<float>(1), 5, 8, 16, 2), {.top_k = 2}), "gate",
          "the logits have column stride 2");
  refused(run(logits, {.top_k = 0}), "gate", "top_k is 0 for 8 experts");
  refused(run(logits, {.top_k = 9}), "gate", "top_k is 9 for 8 experts");
  refused(run(logits, {.top_k = 2, .n_group = 3}), "gate", "8 experts do not fall into n_group = 3 groups");
  refused(run(logits, {.top_k = 2, .n_group = 4, .topk_group = 5}), "gate", "topk_group is 5 of n_group = 4");
  refused(run(logits, {.top_k = 5, .n_group = 4, .topk_group = 2}), "gate",
          "top_k = 5 experts cannot come from 2 groups of 2");
  for (const double factor : {0.0, -1.0, nan_value, infinite}) {
    refused(run(logits, {.top_k = 2, .scaling_factor = factor}), "gate", "not above 0 and at most 1e30");
  }
  refused(run(logits, {.top_k = 2}, false), "gate", "null output");
  refused(run(logits, {.top_k = 2}, true, false), "gate", "null output");
  ctx = {};
  refused(run(logits, {.top_k = 2}), "gate", "use make_context()");
}

TEST_CASE("the gate: memory of its own for all that is written") {
  cuda::gate_output out{buffer<float>(2), buffer<expert_id>(3), buffer<status>(4), buffer<int>(5)};
  const auto run = [](const cuda::gate_output& to, const float* bias, const status* mask) {
    return outcome([&] { cuda::gate(made(), array<const float>(1, 5, 8), {.top_k = 2}, bias, to, mask); });
  };
  const auto* const bias = buffer<const float>(6);
  const auto* const mask = buffer<const status>(7);
  CHECK(run(out, bias, mask) == "cuda");
  CHECK(run(out, bias, out.statuses) == "cuda");
  CHECK(run(out, nullptr, nullptr) == "cuda");
  struct input {
    int number;
    const char* name;
  };
  const input inputs[] = {{1, "the logits"}, {6, "the selection bias"}, {7, "the statuses of the tokens"}};
  for (const input& in : inputs) {
    const auto spoilt = [&](auto spoil, const char* written) {
      cuda::gate_output o = out;
      spoil(o);
      refused(run(o, bias, mask), "gate", core::concatenate(written, " and ", in.name, " overlap").c_str());
    };
    // Five tokens and eight experts take from 5 bytes on: every start meets at least the first.
    spoilt([&](auto& o) { o.weights = buffer<float>(in.number); }, "the weights");
    spoilt([&](auto& o) { o.experts = buffer<expert_id>(in.number); }, "the expert ids");
    spoilt([&](auto& o) { o.load = buffer<int>(in.number); }, "the load");
    spoilt([&](auto& o) { o.statuses = buffer<status>(in.number) + (in.number == 7 ? 4 : 0); },
           "the statuses");
  }
  const auto both = [&](auto spoil, const char* words) {
    cuda::gate_output o = out;
    spoil(o);
    refused(run(o, bias, mask), "gate", words);
  };
  both([](auto& o) { o.experts = reinterpret_cast<expert_id*>(o.weights + 9); },
       "the weights and the expert ids overlap");
  both([](auto& o) { o.statuses = reinterpret_cast<status*>(o.weights + 9); },
       "the weights and the statuses overlap");
  both([](auto& o) { o.load = reinterpret_cast<int*>(o.weights + 9); }, "the weights and the load overlap");
  both([](auto& o) { o.statuses = reinterpret_cast<status*>(o.experts + 9); },
       "the expert ids and the statuses overlap");
  both([](auto& o) { o.load = reinterpret_cast<int*>(o.experts + 9); },
       "the expert ids and the load overlap");
  both([](auto& o) { o.statuses = reinterpret_cast<status*>(o.load + 7); },
       "the load and the statuses overlap");
}

TEST_CASE("balance and the product of the logits") {
  const auto balance = [](index_t experts) {
    return outcome(
        [&] { cuda::balance(made(), buffer<int>(1), experts, buffer<double>(2), buffer<double>(3)); });
  };
  CHECK(balance(8) == "cuda");
  refused(balance(0), "balance", ": 0 experts");
  refused(balance(-1), "balance", ": -1 experts");
  refused(balance(two_to_30), "balance", ": 1073741824 experts");
  refused(outcome([] { cuda::balance(made(), nullptr, 8, nullptr, nullptr); }), "balance", "null load");
  refused(outcome([] { cuda::balance({}, buffer<int>(1), 8, nullptr, nullptr); }), "balance",
          "use make_context()");
  const auto product = [](index_t tokens, index_t experts, index_t hidden) {
    return outcome([&] { cuda::logits_product<bf16>(nullptr, tokens, experts, hidden); });
  };
  CHECK(product(5, 4, 0) == "returned");  // nothing to multiply
  refused(product(index_t{1} << 40, index_t{1} << 40, 8), "logits_product", "elements do not fit in memory");
  refused(product(-1, 4, 8), "logits_product", "[-1, 8] times [4, 8]");
  refused(product(5, -1, 8), "logits_product", "[5, 8] times [-1, 8]");
  refused(product(5, 4, -1), "logits_product", "[5, -1] times [4, -1]");
}
