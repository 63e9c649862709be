// Times the router of experts whose neurons are spread over the GPUs of this machine, beside one GPU with all
// of them. Launched from graphs; microseconds a layer, medians. Needs NCCL. Built and run by scripts/gpu.
#include <mpi_router/distributed/nccl.cuh>

#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

using namespace mpi_router;

namespace {

constexpr int rounds = 15;

void must(cudaError_t code) {
  if (code != cudaSuccess) {
    std::fprintf(stderr, "%s\n", cudaGetErrorString(code));
    std::exit(1);
  }
}
struct memory {
  void* data = nullptr;
  explicit memory(std::size_t bytes) { must(cudaMalloc(&data, bytes + 256)); }
  memory(const memory&) = delete;
  memory& operator=(const memory&) = delete;
  ~memory() { cudaFree(data); }
  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data);
  }
};

__global__ void fill(unsigned* data, std::size_t words, bool half) {
  for (std::size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += gridDim.x * blockDim.x) {
    const unsigned h = static_cast<unsigned>(i * 2654435761U) >> 4;
    data[i] = half ? ((h & 0x807f007fU) | 0x3d003d00U) : ((h & 0x007fffffU) | (h & 1U) << 31 | 0x3f000000U);
  }
}

struct layer {
  expert_shape shape;
  memory weights, to_weights, router, rows, upstream, to_router, direction, norms, statuses;
  explicit layer(const expert_shape& s)
      : shape(s),
        weights(bytes(2)),
        to_weights(bytes(2)),
        router(small(4)),
        rows(small(4)),
        upstream(small(4)),
        to_router(small(4)),
        direction(small(4)),
        norms(8 * static_cast<std::size_t>(s.num_experts)),
        statuses(8 * static_cast<std::size_t>(s.num_experts)) {
    fill<<<1024, 256>>>(weights.as<unsigned>(), bytes(2) / 4, true);
    fill<<<64, 256>>>(router.as<unsigned>(), small(4) / 4, false);
    fill<<<64, 256>>>(upstream.as<unsigned>(), small(4) / 4, false);
    must(cudaDeviceSynchronize());
  }
  [[nodiscard]] std::size_t small(std::size_t size) const {
    return size * static_cast<std::size_t>(shape.num_experts * shape.hidden_dim);
  }
  [[nodiscard]] std::size_t bytes(std::size_t size) const {
    return small(size) * static_cast<std::size_t>(shape.ffn_dim);
  }
  [[nodiscard]] auto experts() const {
    const auto [n, f, d] = shape;
    return expert_batch_view<const bf16, device_space>(weights.as<bf16>(), shape, {f * d, d, 1});
  }
  [[nodiscard]] auto to_experts() const {
    const auto [n, f, d] = shape;
    return expert_batch_view<bf16, device_space>(to_weights.as<bf16>(), shape, {f * d, d, 1});
  }
  [[nodiscard]] auto matrix(const memory& m) const {
    return matrix_view<float, device_space>(m.as<float>(), shape.num_experts, shape.hidden_dim,
                                            shape.hidden_dim, 1);
  }
  [[nodiscard]] cuda::saved_step saved() const {
    return {direction.as<float>(), norms.as<double>(), statuses.as<status>()};
  }
};

/// Median microseconds of a launch of the graph that `work` is captured into; all ranks launch together.
template <class Work>
double microseconds(cudaStream_t stream, std::barrier<>& together, const Work& work) {
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  work();
  must(cudaStreamEndCapture(stream, &graph));
  must(cudaGraphInstantiate(&replay, graph, 0));
  cudaEvent_t start, stop;
  must(cudaEventCreate(&start));
  must(cudaEventCreate(&stop));
  std::vector<double> times;
  constexpr int launches = 10;
  for (int i = 0; i < rounds + 3; ++i) {
    must(cudaStreamSynchronize(stream));
    together.arrive_and_wait();
    must(cudaGraphLaunch(replay, stream));
    must(cudaEventRecord(start, stream));
    for (int k = 0; k < launches; ++k) must(cudaGraphLaunch(replay, stream));
    must(cudaEventRecord(stop, stream));
    must(cudaStreamSynchronize(stream));
    float ms = 0;
    must(cudaEventElapsedTime(&ms, start, stop));
    if (i >= 3) times.push_back(1e3 * ms / launches);
  }
  std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
  must(cudaGraphExecDestroy(replay));
  must(cudaGraphDestroy(graph));
  return times[rounds / 2];
}

struct pair_of_times {
  double forward = 0, both = 0;
};

cuda::step_options usual() {
  cuda::step_options options;
  options.radius = router_radius::scale_free(4);
  return options;
}

pair_of_times on_one(const expert_shape& shape, int layers) {
  must(cudaSetDevice(0));
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto first = cuda::make_context(stream);
  auto next = first;
  next.inputs_at_rest = true;
  std::vector<std::unique_ptr<layer>> held;
  for (int l = 0; l < layers; ++l) held.push_back(std::make_unique<layer>(shape));
  const std::size_t bytes =
      std::max(cuda::router_rows_workspace(first, held[0]->experts()),
               cuda::router_rows_vjp_workspace(first, held[0]->experts(), held[0]->to_experts(),
                                               gradient_mode::write));
  const memory scratch(bytes);
  const auto forward = [&] {
    for (const auto& h : held) {
      cuda::router_rows(h == held[0] ? first : next, h->experts(), h->matrix(h->router), h->matrix(h->rows),
                        {}, h->saved(), {scratch.data, bytes}, usual());
    }
  };
  const auto backward = [&] {
    for (const auto& h : held) {
      cuda::router_rows_vjp(first, h->experts(), h->matrix(h->router), h->saved(), h->matrix(h->upstream),
                            h->matrix(h->to_router), h->to_experts(), gradient_mode::write,
                            {scratch.data, bytes}, usual());
    }
  };
  std::barrier<> alone(1);
  pair_of_times t;
  t.forward = microseconds(stream, alone, forward) / layers;
  t.both = microseconds(stream, alone, [&] { forward(), backward(); }) / layers;
  must(cudaStreamDestroy(stream));
  return t;
}

pair_of_times on_rank(ncclComm_t handle, std::barrier<>& together, const expert_shape& whole, int layers) {
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto ctx = cuda::make_context(stream);
  const cuda::nccl_communicator comm(handle);
  expert_shape shape = whole;
  shape.ffn_dim /= comm.size();
  std::vector<std::unique_ptr<layer>> held;
  std::vector<cuda::sharded_layer<const bf16, float, float>> f;
  std::vector<cuda::sharded_layer_vjp<const bf16, bf16, float, float, float>> b;
  for (int l = 0; l < layers; ++l) {
    held.push_back(std::make_unique<layer>(shape));
    const auto& h = *held.back();
    f.push_back({h.experts(), h.matrix(h.router), h.matrix(h.rows), {}, h.saved()});
    b.push_back({h.experts(), h.matrix(h.router), h.saved(), h.matrix(h.upstream), h.matrix(h.to_router),
                 h.to_experts()});
  }
  const std::span<const cuda::sharded_layer<const bf16, float, float>> forward(f);
  const std::span<const cuda::sharded_layer_vjp<const bf16, bf16, float, float, float>> backward(b);
  const std::size_t bytes =
      std::max(cuda::sharded_router_rows_workspace(ctx, forward, comm.size()),
               cuda::sharded_router_rows_vjp_workspace(ctx, backward, comm.size(), gradient_mode::write));
  const memory scratch(bytes);
  const auto go = [&] { cuda::sharded_router_rows(ctx, comm, forward, {scratch.data, bytes}, usual()); };
  together.arrive_and_wait();
  go();  // NCCL connects the ranks at their first message, which a capture cannot hold
  must(cudaStreamSynchronize(stream));
  together.arrive_and_wait();
  pair_of_times t;
  t.forward = microseconds(stream, together, go) / layers;
  t.both = microseconds(stream, together,
                        [&] {
                          go();
                          cuda::sharded_router_rows_vjp(ctx, comm, backward, gradient_mode::write,
                                                        {scratch.data, bytes}, usual());
                        }) /
           layers;
  must(cudaStreamDestroy(stream));
  return t;
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices < 2) return 77;
  std::vector<ncclComm_t> comms(static_cast<std::size_t>(devices));
  if (ncclCommInitAll(comms.data(), devices, nullptr) != ncclSuccess) return 1;
  struct row {
    expert_shape shape;
    int layers;
  };
  for (const auto& [shape, layers] : {row{{64, 1024, 2048}, 8}, row{{128, 768, 2048}, 8},
                                      row{{64, 2048, 7168}, 2}, row{{256, 2048, 7168}, 1}}) {
    const pair_of_times one = on_one(shape, layers);
    std::vector<pair_of_times> ranks(static_cast<std::size_t>(devices));
    std::barrier<> together(devices);
    std::vector<std::thread> threads;
    for (int r = 0; r < devices; ++r) {
      threads.emplace_back([&, r, layers = layers, shape = shape] {
        must(cudaSetDevice(r));
        ranks[static_cast<std::size_t>(r)] =
            on_rank(comms[static_cast<std::size_t>(r)], together, shape, layers);
      });
    }
    for (auto& t : threads) t.join();
    pair_of_times all;
    for (const auto& r : ranks) {
      all.forward = std::max(all.forward, r.forward);
      all.both = std::max(all.both, r.both);
    }
    const auto [n, f, d] = shape;
    std::printf(
        "%dx %ldx%ldx%ld bf16, us a layer: forward %.1f on one GPU, %.1f on %d, efficiency %.2f; forward + "
        "backward %.1f, %.1f, %.2f\n",
        layers, static_cast<long>(n), static_cast<long>(f), static_cast<long>(d), one.forward, all.forward,
        devices, one.forward / (devices * all.forward), one.both, all.both, one.both / (devices * all.both));
    std::fflush(stdout);
  }
  for (const auto c : comms) ncclCommDestroy(c);
}
