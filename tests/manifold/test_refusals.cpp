// What is refused, by its words: sizes, radii, steps, workspaces one element short, and every two vectors
// that meet.
#include <mpi_router/backend/dense.hpp>
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/manifold/power_step_vjp.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/manifold/steepest_ascent.hpp>

#include <doctest/doctest.h>
#include <support/apart.hpp>

#include <limits>
#include <vector>

#include "vectors.hpp"

namespace test_refusals {
using namespace mpi_router;
using namespace test_support;

TEST_CASE("a gradient of another shape is refused") {
  std::vector<double> y{1, 2}, w{3, 5}, q{7, 11, 13}, p{17, 19, 23};
  const rank2_factors<double> factors{y, q, w, p};
  for (const auto& [rows, cols] : {std::pair<index_t, index_t>{3, 2}, {2, 2}, {1, 3}, {3, 3}}) {
    std::vector<double> some(9);
    const auto call = [&] { add_rank2(factors, row_major(some.data(), rows, cols), gradient_mode::write); };
    CHECK(refused(call, "add_rank2: the gradient is [" + std::to_string(rows) + ", " + std::to_string(cols) +
                            "], the factors have F = 2, D = 3"));
  }
}

TEST_CASE("sizes, radii, steps and workspaces are refused by name") {
  const std::vector<double> a(6, 1);
  const auto op = gram(row_major(a.data(), 2, 3));
  std::vector<double> three{1, 2, 3}, other(3), four(4), workspace(6);
  const auto rows_of = [&](index_t size) { return out<double>(four.data(), size); };
  for (const double radius : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    CHECK(refused([&] { power_step(op, three, other, radius); }, "power_step: the radius must be"));
    CHECK(
        refused([&] { adaptive_ascent_step(op, three, other, radius); }, "adaptive_ascent_step: the radius"));
    CHECK(refused([&] { retract<double>(three, other, radius); }, "retract: the radius must be"));
    CHECK(refused([&] { static_cast<void>(geodesic_distance<double>(three, other, radius)); },
                  "geodesic_distance: the radius must be"));
    CHECK(refused([&] { power_iteration(op, three, workspace, {.radius = radius}); },
                  "power_iteration: the radius must be"));
  }
  for (const index_t size : {2, 4}) {
    CHECK(refused([&] { retract<double>(three, rows_of(size), 1.0); }, "retract: vectors of 3 and"));
    CHECK(refused([&] { project_to_tangent<double>(three, rows_of(size), out<double>(other)); },
                  "project_to_tangent: vectors of 3 and"));
    CHECK(refused([&] { project_to_tangent<double>(three, other, rows_of(size)); },
                  "project_to_tangent: vectors of 3 and"));
    CHECK(
        refused([&] { static_cast<void>(angle<double>(three, rows_of(size))); }, "angle: vectors of 3 and"));
    CHECK(refused([&] { power_step(op, three, rows_of(size), 1.0); }, "the output " + std::to_string(size)));
    CHECK(refused([&] { power_step(op, rows_of(size), three, 1.0); }, "the row " + std::to_string(size)));
    CHECK(refused([&] { op.project(three, rows_of(size == 2 ? 3 : 1)); }, "project: A is [F = 2, D = 3]"));
    CHECK(refused([&] { op.lift(rows_of(size == 2 ? 3 : 1), three); }, "lift: A is [F = 2, D = 3]"));
    CHECK(refused([&] { op.apply(three, rows_of(size)); }, "apply: A is [F = 2, D = 3]"));
    CHECK(refused([&] { op.apply(rows_of(size), three); }, "apply: A is [F = 2, D = 3]"));
    CHECK(refused([&] { op.apply_scaled(three, rows_of(size)); }, "apply_scaled: A is [F = 2, D = 3]"));
  }
  for (std::size_t wrong = 0; wrong < 3; ++wrong) {
    CAPTURE(wrong);
    const auto image = image_of_row(op, in<double>(three), out<double>(other));
    const auto at = [&](std::size_t k, std::vector<double>& v) {
      return out<double>(v.data(), k == wrong ? 2 : 3);
    };
    CHECK(refused([&] { retract_image<double>(image, at(0, three), at(1, other), at(2, four), 1.0); },
                  "retract_image: vectors of "));
    CHECK(refused([&] { retract_image<double>(image, three, other, out<double>(four.data(), 3), -1.0); },
                  "retract_image: the radius must be"));
  }
  CHECK(refused([&] { steepest_ascent_step(op, three, other, 1.0, std::numeric_limits<double>::infinity()); },
                "eta is not finite"));
  CHECK(refused([&] { power_iteration(op, three, workspace, {.max_steps = -1}); }, "max_steps is -1"));
  for (const double beta : {-0.1, std::nan(""), std::numeric_limits<double>::infinity()}) {
    CHECK(refused(
        [&] { power_iteration(op, three, workspace, {.acceleration = momentum<double>::fixed(beta)}); },
        "beta must be finite"));
  }
  const auto iterate = [&](momentum<double> rule, const out<double>& scratch) {
    power_iteration(op, three, scratch, {.max_steps = 1, .acceleration = rule});
  };
  for (const auto rule :
       {momentum<double>::none(), momentum<double>::fixed(0.1), momentum<double>::estimated()}) {
    const index_t needed = rule.rule == momentum<double>::kind::none ? 3 : 6;
    CHECK(message_of([&] { iterate(rule, {workspace.data(), needed}); }) == "");
    CHECK(
        refused([&] { iterate(rule, {workspace.data(), needed - 1}); },
                "workspace has " + std::to_string(needed - 1) + " elements, not " + std::to_string(needed)));
    std::vector<double> apart(12);
    CHECK(refused([&] { iterate(rule, {apart.data(), needed, 2}); }, "the workspace has"));
  }
}

TEST_CASE("sizes of the backward are refused by name") {
  const std::vector<double> a(6, 1);
  const auto op = gram(row_major(a.data(), 2, 3));
  const saved_norm<double> saved{1, 0};
  std::vector<std::vector<double>> v(9, std::vector<double>(8, 1));
  const auto factored = [&](std::size_t wrong, double radius = 1) {
    const auto at = [&](std::size_t k, index_t size) {
      return out<double>(v[k].data(), k == wrong ? size + 1 : size);
    };
    power_step_vjp(op, in<double>(at(0, 3)), in<double>(at(1, 3)), saved, in<double>(at(2, 3)), radius,
                   at(3, 3), rank2_factors<double>{at(4, 2), at(5, 3), at(6, 2), at(7, 3)});
  };
  CHECK(message_of([&] { factored(99); }) == "");
  for (std::size_t wrong = 0; wrong < 8; ++wrong) {
    CAPTURE(wrong);
    CHECK(refused([&] { factored(wrong); }, "power_step_vjp: vectors of"));
  }
  CHECK(refused([&] { factored(99, 0); }, "power_step_vjp: the radius"));
  const auto detached = [&](std::size_t wrong, double radius = 1) {
    const auto at = [&](std::size_t k) { return out<double>(v[k].data(), k == wrong ? 4 : 3); };
    power_step_vjp(op, in<double>(at(0)), saved, in<double>(at(1)), radius, at(2), at(3));
  };
  CHECK(message_of([&] { detached(99); }) == "");
  for (std::size_t wrong = 0; wrong < 4; ++wrong) {
    CHECK(refused([&] { detached(wrong); }, "power_step_vjp: vectors of"));
  }
  CHECK(refused([&] { detached(99, -1); }, "power_step_vjp: the radius"));
}

TEST_CASE("vectors that overlap are refused, and both are named") {
  const std::vector<double> a(6, 1);
  const auto op = gram(row_major(a.data(), 2, 3));
  const saved_norm<double> saved{1, 0};
  refuses_every_overlap<double>({{"the row", 3, false}, {"the output", 3, true}}, [&](const auto& at) {
    power_step(op, in<double>(at[0], 3), out<double>(at[1], 3), 1.0);
  });
  refuses_every_overlap<double>({{"the row", 3, false}, {"the output", 3, true}}, [&](const auto& at) {
    rayleigh(op, in<double>(at[0], 3), out<double>(at[1], 3));
  });
  refuses_every_overlap<double>({{"the row", 3, true}, {"the workspace", 3, true}}, [&](const auto& at) {
    power_iteration(op, out<double>(at[0], 3), out<double>(at[1], 3), {.max_steps = 1});
  });
  refuses_every_overlap<double>({{"the row", 3, true}, {"the workspace", 6, true}}, [&](const auto& at) {
    power_iteration(op, out<double>(at[0], 3), out<double>(at[1], 6),
                    {.max_steps = 1, .acceleration = momentum<double>::fixed(0.1)});
  });
  refuses_every_overlap<double>({{"the vector", 3, false}, {"the output", 3, true}}, [&](const auto& at) {
    retract<double>(in<double>(at[0], 3), out<double>(at[1], 3), 1.0);
  });
  refuses_every_overlap<double>({{"the row", 3, false}, {"the image", 3, false}, {"the output", 3, true}},
                                [&](const auto& at) {
                                  retract_image<double>(row_image<double>{}, in<double>(at[0], 3),
                                                        in<double>(at[1], 3), out<double>(at[2], 3), 1.0);
                                });
  refuses_every_overlap<double>(
      {{"the base", 3, false}, {"the vector", 3, false}, {"the output", 3, true}}, [&](const auto& at) {
        project_to_tangent<double>(in<double>(at[0], 3), in<double>(at[1], 3), out<double>(at[2], 3));
      });
  refuses_every_overlap<double>(
      {{"the new row", 3, false},
       {"the gradient", 3, false},
       {"the gradient to the row", 3, true},
       {"the scratch", 3, true}},
      [&](const auto& at) {
        power_step_vjp(op, in<double>(at[0], 3), saved, in<double>(at[1], 3), 1.0, out<double>(at[2], 3),
                       out<double>(at[3], 3));
      },
      {{"the gradient", "the gradient to the row"}, {"the new row", "the gradient to the row"}});
  refuses_every_overlap<double>(
      {{"the row", 3, false},
       {"the new row", 3, false},
       {"the gradient", 3, false},
       {"the gradient to the row", 3, true},
       {"the projection", 2, true},
       {"the dual row", 3, true},
       {"the dual projection", 2, true},
       {"the scaled row", 3, true}},
      [&](const auto& at) {
        const auto v = [&](std::size_t k, index_t size) { return out<double>(at[k], size); };
        power_step_vjp(op, in<double>(at[0], 3), in<double>(at[1], 3), saved, in<double>(at[2], 3), 1.0,
                       v(3, 3), rank2_factors<double>{v(4, 2), v(5, 3), v(6, 2), v(7, 3)});
      },
      {{"the gradient", "the gradient to the row"},
       {"the new row", "the gradient to the row"},
       {"the row", "the gradient to the row"},
       {"the gradient", "the dual row"}});
}

}  // namespace test_refusals
