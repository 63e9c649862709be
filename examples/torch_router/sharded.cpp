// The same of experts that are spread over hosts: CPU tensors, any process group.
#include "interface.hpp"

#include <mpi_router/distributed/sharded_rows.hpp>
#include <mpi_router/distributed/sharded_rows_vjp.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace {

using namespace torch_router;

/// call(p, q) with null pointers of the types of gates and router: bf16 with either, else of one type.
template <class Call>
void with_types(const sharded_tensors& layer, const Call& call) {
  const dtype gates = layer.gates->type;
  const dtype router = layer.router->type;
  if (gates == dtype::bf16 && router == dtype::bf16) {
    return call(static_cast<bf16*>(nullptr), static_cast<bf16*>(nullptr));
  }
  if (gates == dtype::bf16 && router == dtype::f32) {
    return call(static_cast<bf16*>(nullptr), static_cast<float*>(nullptr));
  }
  if (gates == dtype::f32 && router == dtype::f32) {
    return call(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
  }
  if (gates == dtype::f64 && router == dtype::f64) {
    return call(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
  }
  throw usage_error("mpi_router: gates and router of these types are not taken on hosts");
}

router_options options_of(double radius) {
  return {.radius = router_radius::fixed(radius), .degenerate = degenerate_row::zero};
}
index_t tape_of(std::span<const sharded_tensors> layers) {
  index_t n = 0;
  for (const sharded_tensors& l : layers) n += l.whole[0];
  return router_tape_size({n, 0, layers[0].whole[2]}, options_of(1));
}
index_t most_of(std::span<const sharded_tensors> layers) {
  index_t most = 0;
  for (const sharded_tensors& l : layers) most = std::max<index_t>(most, l.most);
  return most;
}

template <class T, class G, class R>
void backward_in(const carrier& by, std::span<const sharded_tensors> layers, double radius, int add,
                 int split, const void* tape) {
  using S = router_scalar_t<T, R>;
  std::vector<sharded_layer_vjp<neuron_shard<const T>, const R, const R, R, neuron_shard<G>>> all;
  for (const sharded_tensors& l : layers) {
    all.push_back({shard_of<const T, host_space>(l, *l.gates), matrix_of<const R, host_space>(*l.router),
                   matrix_of<const R, host_space>(*l.grad_rows), matrix_of<R, host_space>(*l.grad_router),
                   shard_of<G, host_space>(l, *l.grad_gates)});
    if (add == 0) continue;  // the gradient to the router is written in any case: it begins at zero
    const auto to_router = all.back().grad_router;
    for (index_t i = 0; i < to_router.rows(); ++i) {
      for (index_t d = 0; d < to_router.cols(); ++d) to_router(i, d) = narrow<R>(0.0F);
    }
  }
  std::vector<S> workspace(
      static_cast<std::size_t>(sharded_router_rows_vjp_workspace(std::span(all), by.size, most_of(layers))));
  sharded_router_rows_vjp(borrowed_carrier{&by}, std::span(all),
                          vector_view<const S>(static_cast<const S*>(tape), tape_of(layers)),
                          options_of(radius), tokens_of(split), mode_of(add), workspace);
}

}  // namespace

extern "C" {

/// Why the last call of this thread failed.
const char* mpi_router_sharded_error() { return last_error().c_str(); }

/// Elements of what a forward keeps for its backward, of the type that it computes in (f64 where the gates
/// are).
std::int64_t mpi_router_sharded_tape(std::int64_t experts, std::int64_t hidden) {
  return router_tape_size({experts, 0, hidden}, options_of(1));
}

/// The rows of all layers, and the tape.
int mpi_router_sharded_forward(const carrier* by, const sharded_tensors* layers, int count, double radius,
                               void* tape) {
  return guarded([&] {
    const std::span given(layers, static_cast<std::size_t>(count));
    with_types(given[0], [&]<class T, class R>(T*, R*) {
      using S = router_scalar_t<T, R>;
      std::vector<sharded_layer<neuron_shard<const T>, const R, R>> all;
      for (const sharded_tensors& l : given) {
        all.push_back({shard_of<const T, host_space>(l, *l.gates), matrix_of<const R, host_space>(*l.router),
                       matrix_of<R, host_space>(*l.rows)});
      }
      std::vector<S> workspace(
          static_cast<std::size_t>(sharded_router_rows_workspace(std::span(all), by->size, most_of(given))));
      router_by_products<S> told;
      told.tape = {static_cast<S*>(tape), tape_of(given)};
      sharded_router_rows(borrowed_carrier{by}, std::span(all), options_of(radius), workspace, told);
    });
  });
}

/// The gradients to the routers, the same on every rank, and to this rank's gates, written or added.
int mpi_router_sharded_backward(const carrier* by, const sharded_tensors* layers, int count, double radius,
                                int add, int split, const void* tape) {
  return guarded([&] {
    const std::span given(layers, static_cast<std::size_t>(count));
    with_types(given[0], [&]<class T, class R>(T*, R*) {
      if (given[0].grad_gates->type == given[0].gates->type) {
        return backward_in<T, T, R>(*by, given, radius, add, split, tape);
      }
      if constexpr (std::is_same_v<T, bf16>) {
        if (given[0].grad_gates->type == dtype::f32) {
          return backward_in<T, float, R>(*by, given, radius, add, split, tape);
        }
      }
      throw usage_error("mpi_router: a gradient of that type to these gates is not made");
    });
  });
}

}  // extern "C"
