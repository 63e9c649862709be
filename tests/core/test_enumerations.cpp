// A value that an enumeration does not have, as a cast integer may be, is refused and never taken for the
// last one.
#include <mpi_router/mpi_router.hpp>

#include <doctest/doctest.h>

#include <support/messages.hpp>

#include <array>
#include <vector>

namespace test_enumerations {
using namespace mpi_router;
using test_support::refused;

namespace {

constexpr expert_shape shape{.num_experts = 1, .ffn_dim = 1, .hidden_dim = 2};
const std::array<float, 2> weights{2, 1};
const std::array<float, 2> row{1, 1};

template <class Enum>
constexpr Enum unknown = static_cast<Enum>(99);

/// router_rows and its backward with these options and this mode.
void forward_and_back(const router_options& options, gradient_mode mode) {
  std::array<float, 2> rows{};
  std::array<float, 2> grad_router{};
  std::array<float, 2> grad_gate{};
  std::vector<float> workspace(64);
  std::vector<float> tape(static_cast<std::size_t>(router_tape_size(shape, options)));
  const auto experts = experts_nfd(weights.data(), shape);
  const auto router = row_major(row.data(), 1, 2);
  const auto out = row_major(rows.data(), 1, 2);
  router_rows(experts, router, out, options, workspace, {.tape = tape});
  router_rows_vjp(experts, router, tape, out, options, row_major(grad_router.data(), 1, 2),
                  experts_nfd(grad_gate.data(), shape), mode, workspace);
}

}  // namespace

TEST_CASE("halves of fused tensors") {
  const auto half = unknown<fused_half>;
  CHECK(refused([&] { static_cast<void>(experts_n2fd_concatenated(weights.data(), shape, half)); },
                "fused_half: 99 is none of its values"));
  CHECK(refused([&] { static_cast<void>(experts_n2fd_interleaved(weights.data(), shape, half)); },
                "fused_half: 99 is none of its values"));
  CHECK(refused([&] { static_cast<void>(experts_nd2f_concatenated(weights.data(), shape, half)); },
                "fused_half: 99 is none of its values"));
  CHECK(refused([&] { static_cast<void>(experts_nd2f_interleaved(weights.data(), shape, half)); },
                "fused_half: 99 is none of its values"));
}

TEST_CASE("what becomes of a row without a step") {
  const std::array<float, 2> none{};
  std::array<float, 2> out{};
  const auto op = gram(gate_fd(weights.data(), 1, 2));
  const auto policy = unknown<degenerate_row>;
  CHECK(
      refused([&] { power_step(op, none, out, 1.0F, policy); }, "degenerate_row: 99 is none of its values"));
  CHECK(refused([&] { power_step_vjp(op, row, saved_norm<float>{}, row, 1.0F, out, out, policy); },
                "the scratch and the gradient to the row overlap"));
  std::array<float, 2> scratch{};
  CHECK(refused([&] { power_step_vjp(op, row, saved_norm<float>{}, row, 1.0F, out, scratch, policy); },
                "degenerate_row: 99 is none of its values"));
  // Of many rows before any is looked at: tasks do not throw.
  CHECK(refused([&] { forward_and_back({.degenerate = policy}, gradient_mode::write); },
                "degenerate_row: 99 is none of its values"));
}

TEST_CASE("through which steps and how gradients are written") {
  CHECK_NOTHROW(forward_and_back({}, gradient_mode::accumulate));
  CHECK(refused([&] { forward_and_back({}, unknown<gradient_mode>); },
                "gradient_mode: 99 is none of its values"));
  CHECK(refused([&] { forward_and_back({.through = unknown<differentiate>}, gradient_mode::write); },
                "differentiate: 99 is none of its values"));
  CHECK(refused(
      [&] { static_cast<void>(router_factors<float>::size(shape, {.through = unknown<differentiate>})); },
      "differentiate: 99"));
  std::array<float, 6> buffer{};
  std::array<float, 2> grad_gate{};
  const router_factors<float> factors(buffer, shape, {});
  CHECK(refused([&] { add_factors(factors, experts_nfd(grad_gate.data(), shape), unknown<gradient_mode>); },
                "gradient_mode: 99 is none of its values"));
}

TEST_CASE("how the gradients of the gate and the losses are written") {
  const auto mode = unknown<gradient_mode>;
  const auto refuses = [](const auto& call) {
    return refused(call, "gradient_mode: 99 is none of its values");
  };
  std::array<float, 2> x{1, 2};
  std::array<float, 2> grad{3, 4};
  std::array<float, 64> scratch{};
  const std::array<expert_id, 2> ids{0, 1};
  const std::array<index_t, 2> load{1, 1};
  const auto logits = row_major(x.data(), 1, 2);
  const auto out = row_major(grad.data(), 1, 2);
  CHECK(refuses([&] { gate_vjp<float>(logits, {}, ids, logits, out, mode, scratch); }));
  CHECK(refuses([&] { z_loss_vjp<float>(logits, 1.0F, out, mode); }));
  CHECK(refuses([&] {
    balance_loss_vjp<float>(logits, score_function::softmax, ids, 2, 1, 1.0F, out, mode, scratch);
  }));
  CHECK(refuses([&] {
    global_balance_loss_vjp<float>(logits, score_function::softmax, load, 1.0F, out, mode, scratch);
  }));
  CHECK(refuses(
      [&] { router_logits_vjp<float, float>(logits, logits, {}, {}, {}, vector_view<float>(grad), mode); }));
  const matrix_view<const float> in = logits;
  CHECK(refuses([&] { plain_products{}.multiply(in, in.transposed(), row_major(grad.data(), 1, 1), mode); }));
  CHECK(grad == std::array<float, 2>{3, 4});
}

TEST_CASE("momentum") {
  std::array<float, 2> iterate = row;
  std::array<float, 4> workspace{};
  iteration_options<float> options;
  options.acceleration.rule = unknown<momentum<float>::kind>;
  const auto op = gram(gate_fd(weights.data(), 1, 2));
  CHECK(refused([&] { power_iteration(op, iterate, workspace, options); },
                "momentum: 99 is none of its values"));
}

TEST_CASE("which tokens count") {
  CHECK(is_routed(status::ok));
  CHECK(is_routed(status::closed_expert));
  for (const status s : {status::zero_row, status::zero_image, status::non_finite, status::masked}) {
    CHECK_FALSE(is_routed(s));
  }
}

}  // namespace test_enumerations
