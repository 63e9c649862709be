// What the calls on a GPU refuse, and in which words; nothing is launched.
#include <mpi_router/cuda/logits.cuh>

#include "gpu_checks.hpp"
#include "gpu_support.hpp"
#include "told.hpp"

namespace gpu_check {
namespace {

constexpr index_t n = 2, f = 4, d = 8;

/// Memory for calls that never run.
struct buffers {
  device_array<float> weights{64}, router{16}, rows{16}, images{16}, grad{16}, grad_router{16}, direction{16},
      grad_weights{64}, factors{24};
  device_array<double> norms{2}, energies{2};
  device_array<status> statuses{2};
  device_array<unsigned char> memory{1 << 22};
  const cuda::workspace scratch{memory.data(), 1 << 22};
  const cuda::saved_step saved{direction.data(), norms.data(), statuses.data()};

  [[nodiscard]] auto experts() const {
    return experts_nfd<device_space>(static_cast<const float*>(weights.data()), {n, f, d});
  }
  [[nodiscard]] auto gradient() const { return experts_nfd<device_space>(grad_weights.data(), {n, f, d}); }
  [[nodiscard]] static auto in(const device_array<float>& m, index_t offset = 0) {
    return row_major<device_space>(static_cast<const float*>(m.data()) + offset, n, d);
  }
  [[nodiscard]] static auto out(const device_array<float>& m, index_t offset = 0) {
    return row_major<device_space>(m.data() + offset, n, d);
  }
  [[nodiscard]] matrix_view<float, device_space> in_memory(index_t offset) const {
    return row_major<device_space>(reinterpret_cast<float*>(memory.data()) + offset, n, d);
  }
};

void refuse_steps(const cuda::context& ctx, const buffers& b) {
  const auto step = [&](const auto& router, const auto& rows, const cuda::step_options& options,
                        const cuda::workspace& work, const cuda::context& c) {
    cuda::router_rows(c, b.experts(), router, rows, {}, {}, work, options);
  };
  const auto router = buffers::in(b.router);
  const auto rows = buffers::out(b.rows);
  refused("the router of shape [1, 8] for experts [2, 4, 8]", [&] {
    step(row_major<device_space>(static_cast<const float*>(b.router.data()), 1, d), rows, {}, b.scratch, ctx);
  });
  refused("the output of shape [2, 4] for experts [2, 4, 8]",
          [&] { step(router, row_major<device_space>(b.rows.data(), n, 4), {}, b.scratch, ctx); });
  for (const double radius : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    refused("the radius must be positive and finite",
            [&] { step(router, rows, {.radius = radius}, b.scratch, ctx); });
  }
  refused("1 experts in all, where the call has 2",
          [&] { step(router, rows, {.radius = router_radius::scale_free(4, 1)}, b.scratch, ctx); });
  refused("0 steps", [&] { step(router, rows, {.steps = 0}, b.scratch, ctx); });
  refused("a workspace of 1 bytes", [&] { step(router, rows, {}, {b.memory.data(), 1}, ctx); });
  refused("null workspace", [&] { step(router, rows, {}, {nullptr, 1 << 22}, ctx); });
  refused("not aligned to 256", [&] { step(router, rows, {}, {b.memory.data() + 4, 1 << 20}, ctx); });
  refused("use make_context()", [&] { step(router, rows, {}, b.scratch, cuda::context{}); });
  refused("the router and the output overlap",
          [&] { step(router, buffers::out(b.router, 1), {}, b.scratch, ctx); });
  refused("the workspace and the output overlap", [&] { step(router, b.in_memory(0), {}, b.scratch, ctx); });
  refused("the workspace and the router overlap", [&] { step(b.in_memory(0), rows, {}, b.scratch, ctx); });
  refused("a gate matrix and the output overlap",
          [&] { step(router, buffers::out(b.weights, 40), {}, b.scratch, ctx); });
  refused("the saved direction and the router overlap", [&] {
    cuda::router_rows(ctx, b.experts(), router, rows, {}, {b.router.data(), nullptr, nullptr}, b.scratch, {});
  });
  refused("the context is of device 99", [&] {
    cuda::context other = ctx;
    other.device = 99;
    step(router, rows, {}, b.scratch, other);
  });
  refused("the images and the router overlap", [&] {
    cuda::images_of_rows(ctx, b.experts(), router, buffers::out(b.router), nullptr, b.scratch);
  });
  refused("N and F up to 2^30 - 1", [&] {
    const expert_strides still{0, 0, 0};
    cuda::router_rows(ctx,
                      experts_strided<device_space>(static_cast<const float*>(b.weights.data()),
                                                    {1, index_t{1} << 30, 1}, still),
                      row_major<device_space>(static_cast<const float*>(b.router.data()), 1, 1),
                      row_major<device_space>(b.rows.data(), 1, 1), {}, {}, b.scratch, {});
  });
}

void refuse_retractions(const cuda::context& ctx, const buffers& b) {
  const auto retract = [&](const auto& images, const auto& router, const auto& rows,
                           const cuda::step_options& options = {}) {
    cuda::retract_images(ctx, images, b.energies.data(), router, rows, {}, {}, options);
  };
  const auto images = buffers::in(b.images);
  const auto router = buffers::in(b.router);
  for (const index_t cols : {index_t{32769}, (index_t{1} << 32) + 1}) {
    const auto wide = [cols](const device_array<float>& m) {
      return matrix_view<const float, device_space>(m.data(), 1, cols, 0, 0);
    };
    refused("images [1, " + std::to_string(cols) + "], where D may be up to 32768", [&] {
      retract(wide(b.images), wide(b.router), matrix_view<float, device_space>(b.rows.data(), 1, cols, 0, 0));
    });
  }
  constexpr index_t many = (index_t{1} << 32) + 1;
  refused("N up to 2^30 - 1", [&] {
    retract(matrix_view<const float, device_space>(b.images.data(), many, 1, 0, 0),
            matrix_view<const float, device_space>(b.router.data(), many, 1, 0, 0),
            matrix_view<float, device_space>(b.rows.data(), many, 1, 0, 0));
  });
  refused("the router is [2, 4]", [&] {
    retract(images, row_major<device_space>(static_cast<const float*>(b.router.data()), n, 4),
            buffers::out(b.rows));
  });
  refused("the images and the output overlap", [&] { retract(images, router, buffers::out(b.images)); });
  refused("the router and the output overlap", [&] { retract(images, router, buffers::out(b.router, 1)); });
  refused("1 experts in all, where the call has 2", [&] {
    retract(images, router, buffers::out(b.rows), {.radius = router_radius::scale_free(4, 1)});
  });
}

void refuse_gradients(const cuda::context& ctx, const buffers& b) {
  const auto router = buffers::in(b.router);
  const auto upstream = buffers::in(b.grad);
  const auto to_router = buffers::out(b.grad_router);
  const auto pull = [&](const auto& grad_router, const auto& gradient, const cuda::saved_step& saved,
                        const cuda::step_options& options = {}) {
    cuda::router_rows_vjp(ctx, b.experts(), router, saved, upstream, grad_router, gradient,
                          gradient_mode::write, b.scratch, options);
  };
  refused("gradient of shape [2, 2, 8]",
          [&] { pull(to_router, experts_nfd<device_space>(b.grad_weights.data(), {n, 2, d}), b.saved); });
  refused("the gradient to the router of shape [2, 4]",
          [&] { pull(row_major<device_space>(b.grad_router.data(), n, 4), b.gradient(), b.saved); });
  refused("the gradient of 2 steps", [&] { pull(to_router, b.gradient(), b.saved, {.steps = 2}); });
  refused("the radius must be positive", [&] { pull(to_router, b.gradient(), b.saved, {.radius = 0}); });
  refused("direction and image_norm of the forward are needed",
          [&] { pull(to_router, b.gradient(), {nullptr, b.norms.data(), b.statuses.data()}); });
  refused("the statuses of the forward are needed",
          [&] { pull(to_router, b.gradient(), {b.direction.data(), b.norms.data(), nullptr}); });
  refused("the gradient to the router and the router overlap",
          [&] { pull(buffers::out(b.router), b.gradient(), b.saved); });
  refused("the gradient to the router and the gradient of the rows overlap",
          [&] { pull(buffers::out(b.grad, 3), b.gradient(), b.saved); });
  refused("the gradient to the router and the saved direction overlap",
          [&] { pull(buffers::out(b.direction), b.gradient(), b.saved); });
  refused("the gradient to the experts and a gate matrix overlap",
          [&] { pull(to_router, experts_nfd<device_space>(b.weights.data(), {n, f, d}), b.saved); });
  refused("a projection and the router overlap", [&] {
    cuda::router_rows_vjp_factored(ctx, b.experts(), router, b.saved, upstream, to_router,
                                   {b.router.data(), nullptr, nullptr}, b.scratch, {});
  });
  refused("the dual rows and the gradient of the rows overlap", [&] {
    cuda::router_rows_vjp_factored(ctx, b.experts(), router, b.saved, upstream, to_router,
                                   {nullptr, nullptr, b.grad.data()}, b.scratch, {});
  });
}

void refuse_gates(const cuda::context& ctx) {
  const device_array<float> logits(32), weights(8), bias(8);
  const device_array<expert_id> ids(8);
  const device_array<status> statuses(4);
  const device_array<int> load(8);
  const auto x = row_major<device_space>(static_cast<const float*>(logits.data()), 4, 8);
  const auto choose = [&](const gating_options& options, const cuda::gate_output& out,
                          const float* selection_bias = nullptr, const status* mask = nullptr) {
    cuda::gate(ctx, x, options, selection_bias, out, mask);
  };
  const cuda::gate_output out{weights.data(), ids.data(), statuses.data(), load.data()};
  refused("top_k is 9 for 8 experts", [&] { choose({.top_k = 9}, out); });
  refused("null output", [&] { choose({.top_k = 2}, {nullptr, ids.data()}); });
  refused("the weights and the logits overlap", [&] { choose({.top_k = 2}, {logits.data(), ids.data()}); });
  refused("the weights and the selection bias overlap", [&] { choose({.top_k = 2}, out, weights.data()); });
  refused("the weights and the expert ids overlap",
          [&] { choose({.top_k = 2}, {weights.data(), reinterpret_cast<expert_id*>(weights.data() + 2)}); });
  refused("the load and the logits overlap", [&] {
    choose({.top_k = 2},
           {weights.data(), ids.data(), statuses.data(), reinterpret_cast<int*>(logits.data())});
  });
  refused("the statuses and the statuses of the tokens overlap",
          [&] { choose({.top_k = 2}, out, nullptr, statuses.data() + 1); });
  refused("the logits have column stride 2",
          [&] { cuda::gate(ctx, {logits.data(), 2, 8, 16, 2}, {.top_k = 2}, nullptr, out); });
  refused("use make_context()", [&] { cuda::gate(cuda::context{}, x, {.top_k = 2}, nullptr, out); });
  cuda::context other = ctx;
  other.device = 99;
  refused("the context is of device 99", [&] { cuda::gate(other, x, {.top_k = 2}, nullptr, out); });
  refused("the context is of device 99", [&] { cuda::balance(other, load.data(), 8, nullptr, nullptr); });
  refused("cuda::balance: null load", [&] { cuda::balance(ctx, nullptr, 8, nullptr, nullptr); });
  refused("cuda::balance: 0 experts", [&] { cuda::balance(ctx, load.data(), 0, nullptr, nullptr); });
  refused("use make_context()", [&] { cuda::balance(cuda::context{}, load.data(), 8, nullptr, nullptr); });
  refused("times [3, -1]", [] { cuda::logits_product<float>(nullptr, 4, 3, -1); });
  refused("do not fit in memory",
          [] { cuda::logits_product<float>(nullptr, index_t{1} << 40, index_t{1} << 40, 8); });
}

/// A failing launch surfaces with its name, and leaves no error behind that a later call would find.
void check_launch_error(const cuda::context& ctx) {
  cuda::context broken = ctx;
  broken.shared_memory = 1 << 22;  // more than any block has
  const device_array<float> rows(4096), weights(2048);
  const expert_strides same_row{0, 0, 1};
  const auto experts =
      experts_strided<device_space>(static_cast<const float*>(weights.data()), {1, 1 << 22, 2048}, same_row);
  const std::size_t bytes = cuda::router_rows_workspace(broken, experts, 1);
  const device_array<unsigned char> scratch(bytes);
  try {
    cuda::router_rows(
        broken, experts, row_major<device_space>(static_cast<const float*>(rows.data()), 1, 2048),
        row_major<device_space>(rows.data() + 2048, 1, 2048), {}, {}, {scratch.data(), bytes}, {});
    check(false, "an impossible launch: not reported");
  } catch (const cuda::cuda_error& e) {
    check(std::string(e.what()).find("row_step_kernel") != std::string::npos && e.code() != 0, e.what());
  }
  cudaGetLastError();
}

/// Where there are two devices: a context of one does not run on the other.
void check_other_device(const buffers& b) {
  int devices = 0;
  must(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  if (devices < 2) {
    return;
  }
  const cuda::context first = cuda::make_context();
  must(cudaSetDevice(1), "cudaSetDevice");
  refused("the context is of device 0, where device 1 is current", [&] {
    cuda::router_rows(first, b.experts(), buffers::in(b.router), buffers::out(b.rows), {}, {}, b.scratch, {});
  });
  check(cuda::make_context().device == 1, "a context of the second device");
  must(cudaSetDevice(0), "cudaSetDevice");
  std::printf("refusals: two devices\n");
}

}  // namespace

void check_refusals(const cuda::context& ctx) {
  const buffers b;
  refuse_steps(ctx, b);
  refuse_retractions(ctx, b);
  refuse_gradients(ctx, b);
  refuse_gates(ctx);
  check_launch_error(ctx);
  check_other_device(b);
  std::printf("refusals: %d checks so far, %d failures\n", checks, failures);
}

}  // namespace gpu_check
