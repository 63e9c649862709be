// Times the router of experts whose neurons are spread over the GPUs of this machine, beside one GPU with all
// of them. Launched from graphs; microseconds a layer, medians. Needs NCCL. Built and run by scripts/gpu.
#include <mpi_router/distributed/nccl_window.cuh>

#include "nccl_memory.hpp"

#include <algorithm>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using namespace mpi_router;

namespace {

namespace cuda = mpi_router::cuda;  // nccl_device.h brings another

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

/// How the experts of a layer are split over ranks.
enum class split { neurons, experts, rows };

/// Of a run of rows, which begins and ends within experts.
index_t first_row(const expert_shape& whole, index_t rank, index_t ranks) {
  const index_t all = whole.num_experts * whole.ffn_dim;
  return all * rank / ranks + (rank > 0 && rank < ranks ? whole.ffn_dim / 3 : 0);
}
index_t rows_of(split kind, const expert_shape& whole, index_t rank, index_t ranks) {
  const auto [n, f, d] = whole;
  return kind == split::neurons   ? n * (f / ranks)
         : kind == split::experts ? (n * (rank + 1) / ranks - n * rank / ranks) * f
                                  : first_row(whole, rank + 1, ranks) - first_row(whole, rank, ranks);
}

/// A layer on a GPU: `held` rows of weights, and what all ranks have whole.
struct layer {
  expert_shape shape;
  memory weights, to_weights, router, rows, upstream, to_router, direction, norms, statuses;
  layer(const expert_shape& s, index_t held)
      : shape(s),
        weights(2 * static_cast<std::size_t>(held * s.hidden_dim)),
        to_weights(2 * static_cast<std::size_t>(held * s.hidden_dim)),
        router(small()),
        rows(small()),
        upstream(small()),
        to_router(small()),
        direction(small()),
        norms(8 * static_cast<std::size_t>(s.num_experts)),
        statuses(8 * static_cast<std::size_t>(s.num_experts)) {
    fill<<<1024, 256>>>(weights.as<unsigned>(), static_cast<std::size_t>(held * s.hidden_dim) / 2, true);
    fill<<<64, 256>>>(router.as<unsigned>(), small() / 4, false);
    fill<<<64, 256>>>(upstream.as<unsigned>(), small() / 4, false);
    must(cudaDeviceSynchronize());
  }
  [[nodiscard]] std::size_t small() const {
    return 4 * static_cast<std::size_t>(shape.num_experts * shape.hidden_dim);
  }
  [[nodiscard]] auto matrix(const memory& m) const {
    return matrix_view<float, device_space>(m.as<float>(), shape.num_experts, shape.hidden_dim,
                                            shape.hidden_dim, 1);
  }
  [[nodiscard]] cuda::saved_step saved() const {
    return {direction.as<float>(), norms.as<double>(), statuses.as<status>()};
  }
};

/// A rank's part of [N, F, D], at `data`.
template <split kind, class T>
auto part(T* data, const expert_shape& whole, index_t rank, index_t ranks) {
  const auto [n, f, d] = whole;
  if constexpr (kind == split::neurons) {
    return experts_nfd<device_space>(data, {n, f / ranks, d});
  } else if constexpr (kind == split::experts) {
    const index_t first = n * rank / ranks;
    return shard_of_experts(experts_nfd<device_space>(data, {n * (rank + 1) / ranks - first, f, d}), first,
                            n);
  } else {
    const index_t first = first_row(whole, rank, ranks);
    const index_t count = first_row(whole, rank + 1, ranks) - first;
    return shard_of_rows(matrix_view<T, device_space>(data, count, d, d, 1), first, whole);
  }
}

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
  for (int l = 0; l < layers; ++l) {
    held.push_back(std::make_unique<layer>(shape, shape.num_experts * shape.ffn_dim));
  }
  const auto experts = [&](const auto& h) {
    return experts_nfd<device_space>(static_cast<const bf16*>(h->weights.template as<bf16>()), shape);
  };
  const auto gradients = [&](const auto& h) {
    return experts_nfd<device_space>(h->to_weights.template as<bf16>(), shape);
  };
  const std::size_t bytes = std::max(
      cuda::router_rows_workspace(first, experts(held[0])),
      cuda::router_rows_vjp_workspace(first, experts(held[0]), gradients(held[0]), gradient_mode::write));
  const memory scratch(bytes);
  const auto forward = [&] {
    for (const auto& h : held) {
      cuda::router_rows(h == held[0] ? first : next, experts(h), h->matrix(h->router), h->matrix(h->rows), {},
                        h->saved(), {scratch.data, bytes}, usual());
    }
  };
  const auto backward = [&] {
    for (const auto& h : held) {
      cuda::router_rows_vjp(first, experts(h), h->matrix(h->router), h->saved(), h->matrix(h->upstream),
                            h->matrix(h->to_router), gradients(h), gradient_mode::write,
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

/// Sends nothing: what a call costs without its message.
struct silent {
  index_t my_rank, ranks;
  [[nodiscard]] index_t rank() const { return my_rank; }
  [[nodiscard]] index_t size() const { return ranks; }
  void all_gather(vector_view<const float, device_space>, vector_view<float, device_space>,
                  cuda::stream_t) const {}
};

/// How the parts of the ranks come together.
enum class way { silent, message, beside, peers };
const char* name_of(way how) {
  switch (how) {
    case way::silent: return "no message";
    case way::message: return "message";
    case way::beside: return "message beside";
    case way::peers: return "peers";
  }
  return "";
}

/// `work`: a window of NCCL for the forward, or null. `messages`: who sends those of the backward.
template <split kind, class Comm, class Messages>
pair_of_times times_of(const Comm& comm, const Messages& messages, const nccl_memory* work,
                       std::barrier<>& together, const expert_shape& whole, int layers, cudaStream_t stream) {
  const auto ctx = cuda::make_context(stream);
  std::vector<std::unique_ptr<layer>> held;
  const auto experts = [&](const layer& h) {
    return part<kind>(static_cast<const bf16*>(h.weights.as<bf16>()), whole, comm.rank(), comm.size());
  };
  const auto gradients = [&](const layer& h) {
    return part<kind>(h.to_weights.as<bf16>(), whole, comm.rank(), comm.size());
  };
  const index_t rows = rows_of(kind, whole, comm.rank(), comm.size());
  const index_t most = kind == split::neurons   ? 0
                       : kind == split::experts ? (whole.num_experts + comm.size() - 1) / comm.size()
                                                : whole.num_experts / comm.size() + 2;
  using part_t = decltype(part<kind>(static_cast<const bf16*>(nullptr), whole, 0, 1));
  using to_part_t = decltype(part<kind>(static_cast<bf16*>(nullptr), whole, 0, 1));
  using held_t = std::conditional_t<kind == split::neurons, const bf16, part_t>;
  using to_held_t = std::conditional_t<kind == split::neurons, bf16, to_part_t>;
  std::vector<cuda::sharded_layer<held_t, float, float>> f;
  std::vector<cuda::sharded_layer_vjp<held_t, to_held_t, float, float, float>> b;
  for (int l = 0; l < layers; ++l) {
    held.push_back(std::make_unique<layer>(whole, rows));
    const auto& h = *held.back();
    f.push_back({experts(h), h.matrix(h.router), h.matrix(h.rows), {}, h.saved(), most});
    b.push_back({experts(h), h.matrix(h.router), h.saved(), h.matrix(h.upstream), h.matrix(h.to_router),
                 gradients(h), most});
  }
  const std::span<const cuda::sharded_layer<held_t, float, float>> forward(f);
  const std::span<const cuda::sharded_layer_vjp<held_t, to_held_t, float, float, float>> backward(b);
  const std::size_t bytes =
      std::max(cuda::sharded_router_rows_workspace(ctx, forward, comm.size()),
               cuda::sharded_router_rows_vjp_workspace(ctx, backward, comm.size(), gradient_mode::write));
  const memory own(bytes);
  const cuda::workspace scratch{work == nullptr ? own.data : work->data(), bytes};
  if (work != nullptr && bytes > work->size()) std::exit(1);
  const auto go = [&] { cuda::sharded_router_rows(ctx, comm, forward, scratch, usual()); };
  together.arrive_and_wait();
  go();  // NCCL connects the ranks at their first message, which a capture cannot hold
  must(cudaStreamSynchronize(stream));
  together.arrive_and_wait();
  pair_of_times t;
  t.forward = microseconds(stream, together, go) / layers;
  t.both = microseconds(stream, together,
                        [&] {
                          go();
                          cuda::sharded_router_rows_vjp(ctx, messages, backward, gradient_mode::write,
                                                        {own.data, bytes}, usual());
                        }) /
           layers;
  together.arrive_and_wait();
  return t;
}

constexpr std::size_t window_bytes = 768 << 20;

template <split kind>
pair_of_times on_rank(ncclComm_t handle, const nccl_memory& window, std::barrier<>& together,
                      const expert_shape& whole, int layers, way how) {
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const cuda::message_stream beside;
  const cuda::nccl_communicator comm(handle);
  const auto with = [&](const auto& c, const auto& messages, const nccl_memory* work) {
    return times_of<kind>(c, messages, work, together, whole, layers, stream);
  };
  pair_of_times t;
  switch (how) {
    case way::silent: {
      const silent none{comm.rank(), comm.size()};
      t = with(none, none, nullptr);
      break;
    }
    case way::message: t = with(comm, comm, nullptr); break;
    case way::beside: {
      const auto overlapped = cuda::overlap_layers(comm, beside);
      t = with(overlapped, overlapped, nullptr);
      break;
    }
    case way::peers:
      t = with(cuda::nccl_window_communicator(handle, window.device(), window.window(), window.data(),
                                              window.size()),
               comm, &window);
      break;
  }
  must(cudaStreamDestroy(stream));
  return t;
}

/// Ranks that are threads, one a GPU, each with a window.
struct group_of_ranks {
  std::vector<ncclComm_t> comms;
  std::vector<std::unique_ptr<nccl_memory>> windows;
  explicit group_of_ranks(int devices)
      : comms(static_cast<std::size_t>(devices)), windows(static_cast<std::size_t>(devices)) {
    if (ncclCommInitAll(comms.data(), devices, nullptr) != ncclSuccess) std::exit(1);
    on_all([&](std::size_t r) { windows[r] = std::make_unique<nccl_memory>(comms[r], window_bytes); });
  }
  ~group_of_ranks() {
    on_all([&](std::size_t r) { windows[r].reset(); });
    for (const auto c : comms) ncclCommDestroy(c);
  }
  template <class Work>
  void on_all(const Work& work) const {
    std::vector<std::thread> threads;
    for (std::size_t r = 0; r < comms.size(); ++r) {
      threads.emplace_back([&, r] {
        must(cudaSetDevice(static_cast<int>(r)));
        work(r);
      });
    }
    for (auto& t : threads) t.join();
  }
};

template <split kind>
void compare(const char* what, const group_of_ranks& group, const pair_of_times& one,
             const expert_shape& shape, int layers, way how) {
  const auto devices = static_cast<int>(group.comms.size());
  std::vector<pair_of_times> ranks(group.comms.size());
  std::barrier<> together(devices);
  group.on_all([&](std::size_t r) {
    ranks[r] = on_rank<kind>(group.comms[r], *group.windows[r], together, shape, layers, how);
  });
  pair_of_times all;
  for (const auto& r : ranks) {
    all.forward = std::max(all.forward, r.forward);
    all.both = std::max(all.both, r.both);
  }
  const auto [n, f, d] = shape;
  std::printf(
      "%2dx %3ldx%4ldx%4ld %-7s %-15s on %d: forward %7.1f (%7.1f on one) %.2f; both %7.1f (%7.1f) %.2f\n",
      layers, static_cast<long>(n), static_cast<long>(f), static_cast<long>(d), what, name_of(how), devices,
      all.forward, one.forward, one.forward / (devices * all.forward), all.both, one.both,
      one.both / (devices * all.both));
  std::fflush(stdout);
}

}  // namespace

/// bench_sharded: all ways on all GPUs, and on fewer. bench_sharded RANKS KINDS
/// [ROW]: on one GPU, what a rank does without its messages; kinds by their first letters.
int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) return 77;
  struct row {
    expert_shape shape;
    int layers;
  };
  const std::vector<row> rows{row{{64, 1024, 2048}, 8}, row{{128, 768, 2048}, 8}, row{{64, 2048, 7168}, 2},
                              row{{256, 2048, 7168}, 1}, row{{128, 768, 2048}, 48}};
  if (argc > 2) {
    const int ranks = std::atoi(argv[1]);
    int i = 0;
    for (const auto& [shape, layers] : rows) {
      if (argc > 3 && std::atoi(argv[3]) != i++) continue;
      const pair_of_times one = argc > 3 ? pair_of_times{} : on_one(shape, layers);
      const auto show = [&, layers = layers, shape = shape]<split kind>(std::integral_constant<split, kind>,
                                                                        const char* what) {
        if (std::string(argv[2]).find(what[0]) == std::string::npos) return;
        std::barrier<> alone(1);
        cudaStream_t stream;
        must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        const auto t =
            times_of<kind>(silent{0, ranks}, silent{0, ranks}, nullptr, alone, shape, layers, stream);
        const auto [n, f, d] = shape;
        std::printf(
            "%2dx %3ldx%4ldx%4ld %-7s alone of %d: forward %7.1f (%7.1f on one) %.2f; both %7.1f (%7.1f) "
            "%.2f\n",
            layers, static_cast<long>(n), static_cast<long>(f), static_cast<long>(d), what, ranks, t.forward,
            one.forward, one.forward / (ranks * t.forward), t.both, one.both, one.both / (ranks * t.both));
        std::fflush(stdout);
      };
      show(std::integral_constant<split, split::neurons>{}, "neurons");
      show(std::integral_constant<split, split::experts>{}, "experts");
      show(std::integral_constant<split, split::rows>{}, "rows");
    }
    return 0;
  }
  if (devices < 2) return 77;
  std::vector<pair_of_times> ones;
  for (const auto& [shape, layers] : rows) ones.push_back(on_one(shape, layers));
  for (int size = devices; size >= 2; size /= 2) {
    const group_of_ranks group(size);
    std::size_t i = 0;
    for (const auto& [shape, layers] : rows) {
      const pair_of_times& one = ones[i++];
      for (const way how : {way::silent, way::message, way::beside, way::peers}) {
        compare<split::neurons>("neurons", group, one, shape, layers, how);
      }
      for (const way how : {way::message, way::peers}) {
        compare<split::experts>("experts", group, one, shape, layers, how);
        compare<split::rows>("rows", group, one, shape, layers, how);
      }
    }
  }
}
