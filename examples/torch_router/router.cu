// The step and its gradient on a GPU behind a C interface, which any language can call: mpi_router_torch.py
// does. Every function returns at once, its work ordered on the stream; a failure is told by the return
// value, and then mpi_router_error() says why.
#include "interface.hpp"

#include <mpi_router/cuda/router.cuh>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace {

using namespace torch_router;

/// call(p) with a null pointer of the tensor's type.
template <class Call>
auto with_type(const tensor& t, const Call& call) {
  switch (t.type) {
    case dtype::bf16: return call(static_cast<bf16*>(nullptr));
    case dtype::f32: return call(static_cast<float*>(nullptr));
    case dtype::f64: break;
  }
  throw usage_error("mpi_router: neither bf16 nor f32");
}

template <class T>
auto experts(const tensor& t) {
  return experts_of<T, device_space>(t);
}
template <class T>
auto matrix(const tensor& t) {
  return matrix_of<T, device_space>(t);
}

/// call(view) with a gradient to gates of type T, which is of their type or of f32.
template <class T, class Call>
void with_gradient(const tensor& t, const Call& call) {
  if (t.type == dtype::f32) {
    call(experts<float>(t));
  } else if constexpr (std::is_same_v<T, bf16>) {
    call(experts<bf16>(t));
  } else {
    throw usage_error("mpi_router: a gradient in bf16 to gates in f32");
  }
}

/// The same for forward and backward: a row without a step is zero, and so is its gradient.
cuda::step_options options_of(double radius) {
  return {.radius = radius, .degenerate = degenerate_row::zero};
}

cuda::context on_stream(const void* context, void* stream) {
  cuda::context ctx = *static_cast<const cuda::context*>(context);
  ctx.stream = static_cast<cuda::stream_t>(stream);
  return ctx;
}

}  // namespace

extern "C" {

/// Why the last call of this thread failed.
const char* mpi_router_error() { return last_error().c_str(); }

/// What the calls need to know of the current device; make it once. Null: an error.
void* mpi_router_context() {
  auto context = std::make_unique<cuda::context>();
  return guarded([&] { *context = cuda::make_context(); }) == 0 ? context.release() : nullptr;
}

/// Bytes of workspace of a forward with these gates, and of a backward with this gradient to them (null:
/// none), written or added, whichever needs more; −1: an error.
std::int64_t mpi_router_workspace(const void* context, const tensor* gates, const tensor* grad_gates,
                                  int add) {
  std::int64_t bytes = -1;
  guarded([&] {
    const cuda::context ctx = on_stream(context, nullptr);
    with_type(*gates, [&]<class T>(T*) {
      const auto view = experts<T>(*gates);
      std::size_t most = std::max(cuda::router_rows_workspace(ctx, view),
                                  cuda::router_rows_vjp_factored_workspace(ctx, view));
      if (grad_gates != nullptr) {
        with_gradient<T>(*grad_gates, [&](const auto& gradient) {
          most = std::max(most, cuda::router_rows_vjp_workspace(ctx, view, gradient, mode_of(add)));
        });
      }
      bytes = static_cast<std::int64_t>(most);
    });
  });
  return bytes;
}

/// rows = C · rM / ‖rM‖ of the router [N, D]; direction [N, D] of f32, image_norm [N] of f64 and statuses [N]
/// of bytes are kept for the backward. Rows without a step become zero, as by torch.nn.functional.normalize.
int mpi_router_forward(const void* context, void* stream, const tensor* gates, const tensor* router,
                       const tensor* rows, double radius, float* direction, double* image_norm,
                       void* statuses, void* workspace, std::int64_t bytes) {
  return guarded([&] {
    with_type(*gates, [&]<class T>(T*) {
      with_type(*router, [&]<class R>(R*) {
        cuda::router_rows(on_stream(context, stream), experts<const T>(*gates), matrix<const R>(*router),
                          matrix<R>(*rows), {}, {direction, image_norm, static_cast<status*>(statuses)},
                          {workspace, static_cast<std::size_t>(bytes)}, options_of(radius));
      });
    });
  });
}

/// The gradients to the router and to the gates (null: not wanted), given the one of the rows and what the
/// forward kept. The one to the gates, in their type or in f32, is written or, if `add` is not 0, added. A
/// row without a step has none.
int mpi_router_backward(const void* context, void* stream, const tensor* gates, const tensor* router,
                        const tensor* grad_rows, const tensor* grad_router, const tensor* grad_gates, int add,
                        double radius, float* direction, double* image_norm, void* statuses, void* workspace,
                        std::int64_t bytes) {
  return guarded([&] {
    const cuda::context ctx = on_stream(context, stream);
    const cuda::saved_step saved{direction, image_norm, static_cast<status*>(statuses)};
    const cuda::workspace scratch{workspace, static_cast<std::size_t>(bytes)};
    with_type(*gates, [&]<class T>(T*) {
      with_type(*router, [&]<class R>(R*) {
        const auto view = experts<const T>(*gates);
        const auto r = matrix<const R>(*router);
        const auto upstream = matrix<const R>(*grad_rows);
        const auto to_router =
            grad_router != nullptr ? matrix<R>(*grad_router) : matrix_view<R, device_space>();
        if (grad_gates == nullptr) {
          cuda::router_rows_vjp_factored(ctx, view, r, saved, upstream, to_router, {}, scratch,
                                         options_of(radius));
          return;
        }
        with_gradient<T>(*grad_gates, [&](const auto& gradient) {
          cuda::router_rows_vjp(ctx, view, r, saved, upstream, to_router, gradient, mode_of(add), scratch,
                                options_of(radius));
        });
      });
    });
  });
}

}  // extern "C"
