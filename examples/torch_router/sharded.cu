// The step and its gradient of experts that are spread over GPUs, behind the C interface:
// mpi_router_sharded.py carries the messages over a process group.
#include "interface.hpp"

#include <mpi_router/distributed/sharded_router_rows.cuh>
#include <mpi_router/distributed/sharded_router_rows_vjp.cuh>

#include <memory>
#include <span>
#include <vector>

namespace {

using namespace torch_router;

/// call(p, q) with null pointers of the types of gates and router.
template <class Call>
void with_types(const sharded_tensors& layer, const Call& call) {
  const auto router = [&]<class T>(T* gates) {
    switch (layer.router->type) {
      case dtype::bf16: return call(gates, static_cast<bf16*>(nullptr));
      case dtype::f32: return call(gates, static_cast<float*>(nullptr));
      case dtype::f64: break;
    }
    throw usage_error("mpi_router: a router that is neither bf16 nor f32");
  };
  switch (layer.gates->type) {
    case dtype::bf16: return router(static_cast<bf16*>(nullptr));
    case dtype::f32: return router(static_cast<float*>(nullptr));
    case dtype::f64: break;
  }
  throw usage_error("mpi_router: gates that are neither bf16 nor f32");
}

template <class T, class R>
using forward_layers = std::vector<cuda::sharded_layer<neuron_shard<const T, device_space>, const R, R>>;
template <class T, class G, class R>
using backward_layers =
    std::vector<cuda::sharded_layer_vjp<neuron_shard<const T, device_space>, neuron_shard<G, device_space>,
                                        const R, const R, R>>;

cuda::saved_step saved_of(const sharded_tensors& layer) {
  return {layer.direction, layer.image_norm, static_cast<status*>(layer.statuses)};
}

template <class T, class R>
forward_layers<T, R> forward_of(std::span<const sharded_tensors> layers) {
  forward_layers<T, R> out;
  for (const sharded_tensors& l : layers) {
    out.push_back({shard_of<const T, device_space>(l, *l.gates),
                   matrix_of<const R, device_space>(*l.router),
                   matrix_of<R, device_space>(*l.rows),
                   {},
                   saved_of(l),
                   l.most});
  }
  return out;
}
template <class T, class G, class R>
backward_layers<T, G, R> backward_of(std::span<const sharded_tensors> layers) {
  backward_layers<T, G, R> out;
  for (const sharded_tensors& l : layers) {
    out.push_back({shard_of<const T, device_space>(l, *l.gates), matrix_of<const R, device_space>(*l.router),
                   saved_of(l), matrix_of<const R, device_space>(*l.grad_rows),
                   matrix_of<R, device_space>(*l.grad_router), shard_of<G, device_space>(l, *l.grad_gates),
                   l.most});
  }
  return out;
}
/// call(layers) with gradients of their type, f32 or that of the gates.
template <class T, class R, class Call>
void with_backward(std::span<const sharded_tensors> layers, const Call& call) {
  if (layers[0].grad_gates->type == dtype::f32) {
    const auto all = backward_of<T, float, R>(layers);
    return call(std::span(all));
  }
  if constexpr (std::is_same_v<T, bf16>) {
    const auto all = backward_of<T, bf16, R>(layers);
    return call(std::span(all));
  }
  throw usage_error("mpi_router: a gradient in bf16 to gates in f32");
}

/// The same for forward and backward: a row without a step is zero, and so is its gradient.
cuda::step_options options_of(double radius) {
  cuda::step_options options;
  options.radius = router_radius::fixed(radius);
  options.degenerate = degenerate_row::zero;
  return options;
}
cuda::context on_stream(const void* context, void* stream) {
  cuda::context ctx = *static_cast<const cuda::context*>(context);
  ctx.stream = static_cast<cuda::stream_t>(stream);
  return ctx;
}

}  // namespace

extern "C" {

/// Why the last call of this thread failed.
const char* mpi_router_sharded_error() { return last_error().c_str(); }

/// What the calls need to know of the current device; make it once. Null: an error.
void* mpi_router_sharded_context() {
  auto context = std::make_unique<cuda::context>();
  return guarded([&] { *context = cuda::make_context(); }) == 0 ? context.release() : nullptr;
}

/// Bytes of workspace of a forward of these layers, of one type each, or of a backward; −1: an error.
std::int64_t mpi_router_sharded_workspace(const void* context, const sharded_tensors* layers, int count,
                                          std::int64_t ranks, int backward, int add, int split) {
  std::int64_t bytes = -1;
  guarded([&] {
    const std::span all(layers, static_cast<std::size_t>(count));
    const cuda::context ctx = on_stream(context, nullptr);
    with_types(all[0], [&]<class T, class R>(T*, R*) {
      if (backward == 0) {
        const auto forward = forward_of<T, R>(all);
        bytes = static_cast<std::int64_t>(
            cuda::sharded_router_rows_workspace(ctx, std::span(forward.data(), forward.size()), ranks));
        return;
      }
      with_backward<T, R>(all, [&](const auto& back) {
        bytes = static_cast<std::int64_t>(
            cuda::sharded_router_rows_vjp_workspace(ctx, back, ranks, mode_of(add), tokens_of(split)));
      });
    });
  });
  return bytes;
}

/// The rows of all layers, and what their backward needs.
int mpi_router_sharded_forward(const void* context, void* stream, const carrier* by,
                               const sharded_tensors* layers, int count, double radius, void* workspace,
                               std::int64_t bytes) {
  return guarded([&] {
    const std::span all(layers, static_cast<std::size_t>(count));
    with_types(all[0], [&]<class T, class R>(T*, R*) {
      const auto forward = forward_of<T, R>(all);
      cuda::sharded_router_rows(on_stream(context, stream), borrowed_carrier{by},
                                std::span(forward.data(), forward.size()),
                                {workspace, static_cast<std::size_t>(bytes)}, options_of(radius));
    });
  });
}

/// The gradients to the routers, the same on every rank, and to this rank's gates, written or added.
int mpi_router_sharded_backward(const void* context, void* stream, const carrier* by,
                                const sharded_tensors* layers, int count, double radius, int add, int split,
                                void* workspace, std::int64_t bytes) {
  return guarded([&] {
    const std::span all(layers, static_cast<std::size_t>(count));
    with_types(all[0], [&]<class T, class R>(T*, R*) {
      with_backward<T, R>(all, [&](const auto& back) {
        cuda::sharded_router_rows_vjp(on_stream(context, stream), borrowed_carrier{by}, back, mode_of(add),
                                      {workspace, static_cast<std::size_t>(bytes)}, options_of(radius),
                                      tokens_of(split));
      });
    });
  });
}

}  // extern "C"
