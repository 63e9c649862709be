// The C interface behind the operator of sharded experts for PyTorch: tensors as their owners describe them,
// errors as return values, and a communicator whose messages the caller carries. That of one device is
// mpi_router::c.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/options.hpp>
#include <mpi_router/core/storage_traits.hpp>
#include <mpi_router/cuda/types.hpp>
#include <mpi_router/distributed/communicator.hpp>
#include <mpi_router/distributed/shards.hpp>
#include <mpi_router/distributed/tokens_of_rows.hpp>

#include <cstdint>
#include <exception>
#include <string>
#include <type_traits>

enum class dtype : int { bf16, f32, f64 };

/// A tensor of up to three axes as its owner describes it; sizes and strides in elements, those of gates [N,
/// F, D], of anything else [N, D] (the third unused).
struct tensor {
  void* data;
  std::int64_t size[3];
  std::int64_t stride[3];
  dtype type;
};

/// What a rank holds of a layer, and what is made of it.
struct sharded_tensors {
  const tensor* gates;    // [n, f, D], or rows [count, D] of the flat [N·F, D]
  std::int64_t whole[3];  // N, F, D of all ranks
  std::int64_t first_expert;
  std::int64_t first_neuron;  // of a run of rows: the first row
  std::int64_t is_rows;
  std::int64_t most;  // experts that any rank has a part of, at most
  const tensor* router;
  const tensor* rows;
  float* direction;  // of the forward on a GPU, for its backward
  double* image_norm;
  void* statuses;
  const tensor* grad_rows;
  const tensor* grad_router;
  const tensor* grad_gates;
};

/// What carries the messages: rank, size, and gather(count, of doubles, mine, all), which returns 0 if it
/// went well.
struct carrier {
  std::int64_t rank;
  std::int64_t size;
  int (*gather)(std::int64_t count, int doubles, const void* mine, void* all);
};

namespace torch_router {

using namespace mpi_router;

inline std::string& last_error() {
  thread_local std::string text;
  return text;
}

template <class Call>
int guarded(const Call& call) {
  try {
    call();
    return 0;
  } catch (const std::exception& e) {
    last_error() = e.what();
    return 1;
  }
}

template <class T, class Space>
expert_batch_view<T, Space> experts_of(const tensor& t) {
  return {
      static_cast<T*>(t.data), {t.size[0], t.size[1], t.size[2]}, {t.stride[0], t.stride[1], t.stride[2]}};
}
template <class T, class Space>
matrix_view<T, Space> matrix_of(const tensor& t) {
  return {static_cast<T*>(t.data), t.size[0], t.size[1], t.stride[0], t.stride[1]};
}

/// The part of a layer that is in `t`, of the gates or of their gradient.
template <class T, class Space>
neuron_shard<T, Space> shard_of(const sharded_tensors& layer, const tensor& t) {
  const expert_shape whole{layer.whole[0], layer.whole[1], layer.whole[2]};
  if (layer.is_rows != 0) return shard_of_rows(matrix_of<T, Space>(t), layer.first_neuron, whole);
  return shard_of_experts_and_neurons(experts_of<T, Space>(t), layer.first_expert, layer.first_neuron, whole);
}

inline tokens_of_rows tokens_of(int split) {
  return split != 0 ? tokens_of_rows::split_over_ranks : tokens_of_rows::same_on_all_ranks;
}
inline gradient_mode mode_of(int add) { return add != 0 ? gradient_mode::accumulate : gradient_mode::write; }

/// A process group, as the calls on hosts and on GPUs see it.
struct borrowed_carrier {
  const carrier* by;
  [[nodiscard]] index_t rank() const { return by->rank; }
  [[nodiscard]] index_t size() const { return by->size; }
  template <Accumulator S>
  void all_gather(vector_view<const S> mine, vector_view<S> all) const {
    carry(mine.size(), sizeof(S) == 8, mine.data(), all.data());
  }
  /// On PyTorch's current stream, which is that of the call.
  void all_gather(const vector_view<const float, device_space>& mine,
                  const vector_view<float, device_space>& all, cuda::stream_t) const {
    carry(mine.size(), false, mine.data(), all.data());
  }

 private:
  void carry(index_t count, bool doubles, const void* mine, void* all) const {
    if (by->gather(count, doubles ? 1 : 0, mine, all) != 0) {
      core::communication_failure(
          core::concatenate("torch_router: a message of ", count, " numbers failed on rank ", rank()));
    }
  }
};

}  // namespace torch_router
