// Times the router on the current device made less, by a context with less capability and shared memory, so
// that calls go the ways of older and smaller ones. One JSON object a line on stdout, as bench.cu.
#include <mpi_router/cuda/router.cuh>

#include "floors.cuh"
#include "timing.hpp"

namespace gpu_bench {
namespace {

using namespace mpi_router;

constexpr int rounds = 20;

template <class T>
constexpr const char* type_name = std::is_same_v<T, bf16> ? "bf16" : "f32";

struct device {
  const char* like;
  int capability;
  std::size_t shared_kib;
};
/// All multiprocessors of the device: it is its memory that the times are held against.
constexpr device devices[] = {{"sm_80", 80, 163}, {"sm_86", 80, 99}, {"sm_120", 120, 99}};

template <class T>
std::vector<device_buffer<T>> filled(int copies, std::size_t size) {
  std::vector<device_buffer<T>> out;
  for (int i = 0; i < copies; ++i) {
    out.emplace_back(size);
    fill_kernel<><<<1024, 256>>>(reinterpret_cast<unsigned*>(out.back().data()), size * sizeof(T) / 4,
                                 static_cast<unsigned>(i) * 7919U + 1U, sizeof(T) == 2);
  }
  must(cudaGetLastError(), "fill_kernel");
  return out;
}

/// One shape: weights in rotation, and all that forward and backward take besides.
template <class T>
class problem {
 public:
  problem(const expert_shape& s, cudaStream_t stream)
      : s_(s),
        stream_(stream),
        name_(std::to_string(s.num_experts) + "x" + std::to_string(s.ffn_dim) + "x" +
              std::to_string(s.hidden_dim)),
        copies_(std::max(3, static_cast<int>(300e6 / bytes()) + 1)),
        weights_(filled<T>(copies_, elements())),
        gradients_(filled<T>(copies_, elements())),
        router_(filled<T>(1, rows())),
        upstream_(filled<T>(1, rows())),
        out_(rows()),
        direction_(rows()),
        dual_(rows()),
        grad_rows_(rows()),
        y_(projections()),
        w_(projections()),
        norms_(static_cast<std::size_t>(s.num_experts)),
        statuses_(static_cast<std::size_t>(s.num_experts)),
        scratch_(std::size_t{64} << 20) {}

  void time_floors() const {
    const std::size_t vectors = elements() * sizeof(T) / 16;
    const device_buffer<unsigned> sink(1);
    line("read floor", 1, [&](int i) {
      read_kernel<><<<floor_blocks(vectors), floor_threads, 0, stream_>>>(
          reinterpret_cast<const uint4*>(weights_[at(i)].data()), vectors, sink.data());
    });
    line("copy floor", 2, [&](int i) {
      copy_kernel<><<<floor_blocks(vectors), floor_threads, 0, stream_>>>(
          reinterpret_cast<const uint4*>(weights_[at(i)].data()),
          reinterpret_cast<uint4*>(gradients_[at(i)].data()), vectors);
    });
  }
  /// `layout` makes a view of what is in memory.
  template <class Layout>
  void time_layout(const cuda::context& ctx, const std::string& where, const Layout& layout) const {
    const auto experts = [&](int i) { return layout(static_cast<const T*>(weights_[at(i)].data()), s_); };
    const auto gradient = [&](int i) { return layout(gradients_[at(i)].data(), s_); };
    const auto matrix = [&](auto* data) {
      return row_major<device_space>(data, s_.num_experts, s_.hidden_dim);
    };
    const auto r = matrix(static_cast<const T*>(router_[0].data()));
    const auto g = matrix(static_cast<const T*>(upstream_[0].data()));
    const auto to_rows = matrix(grad_rows_.data());
    const cuda::saved_step saved{direction_.data(), norms_.data(), statuses_.data()};
    const cuda::workspace work{scratch_.data(), scratch_.size()};
    const cuda::step_options options{.radius = 4.0};
    line("forward" + where, 1, [&](int i) {
      cuda::router_rows(ctx, experts(i), r, matrix(out_.data()), {}, saved, work, options);
    });
    line("backward, factored" + where, 1, [&](int i) {
      cuda::router_rows_vjp_factored(ctx, experts(i), r, saved, g, to_rows,
                                     {y_.data(), w_.data(), dual_.data()}, work, options);
    });
    for (const auto mode : {cuda::gradient_mode::write, cuda::gradient_mode::accumulate}) {
      const bool write = mode == cuda::gradient_mode::write;
      line((write ? "backward, written" : "backward, accumulated") + where, write ? 2 : 3, [&](int i) {
        cuda::router_rows_vjp(ctx, experts(i), r, saved, g, to_rows, gradient(i), mode, work, options);
      });
    }
  }

 private:
  [[nodiscard]] static std::size_t at(int i) { return static_cast<std::size_t>(i); }
  [[nodiscard]] std::size_t elements() const { return rows() * static_cast<std::size_t>(s_.ffn_dim); }
  [[nodiscard]] std::size_t rows() const { return static_cast<std::size_t>(s_.num_experts * s_.hidden_dim); }
  [[nodiscard]] std::size_t projections() const {
    return static_cast<std::size_t>(s_.num_experts * s_.ffn_dim);
  }
  [[nodiscard]] double bytes() const { return static_cast<double>(elements() * sizeof(T)); }
  template <class Call>
  void line(const std::string& work, int times, const Call& call) const {
    print({work, name_, type_name<T>, microseconds(stream_, copies_, rounds, call), times * bytes()});
  }

  expert_shape s_;
  cudaStream_t stream_;
  std::string name_;
  int copies_;
  std::vector<device_buffer<T>> weights_, gradients_, router_, upstream_;
  device_buffer<T> out_;
  device_buffer<float> direction_, dual_, grad_rows_, y_, w_;
  device_buffer<double> norms_;
  device_buffer<status> statuses_;
  device_buffer<unsigned char> scratch_;
};

template <class T>
void time_shape(const cuda::context& ctx, const expert_shape& s) {
  const problem<T> p(s, ctx.stream);
  p.time_floors();
  for (const device& d : devices) {
    cuda::context less = ctx;
    less.capability = std::min(ctx.capability, d.capability);
    less.shared_memory = std::min(ctx.shared_memory, d.shared_kib * 1024);
    const std::string as = std::string(", as on ") + d.like;
    p.time_layout(less, as,
                  [](auto* data, const expert_shape& of) { return experts_nfd<device_space>(data, of); });
    p.time_layout(less, " [N,D,F]" + as,
                  [](auto* data, const expert_shape& of) { return experts_ndf<device_space>(data, of); });
  }
}

}  // namespace
}  // namespace gpu_bench

int main() {
  using namespace gpu_bench;
  cudaStream_t stream = nullptr;
  must(cudaStreamCreate(&stream), "cudaStreamCreate");
  const auto ctx = mpi_router::cuda::make_context(stream);
  for (const mpi_router::expert_shape s : {mpi_router::expert_shape{64, 512, 1024},
                                           {64, 1024, 2048},
                                           {128, 768, 2048},
                                           {32, 1024, 4096},
                                           {64, 2048, 7168},
                                           {16, 2048, 16384},
                                           {8, 2048, 32768}}) {
    time_shape<mpi_router::bf16>(ctx, s);
  }
#ifndef GPU_BENCH_BF16_ONLY
  for (const mpi_router::expert_shape s :
       {mpi_router::expert_shape{64, 1024, 2048}, {32, 1024, 4096}, {16, 2048, 8192}, {8, 2048, 16384}}) {
    time_shape<float>(ctx, s);
  }
#endif
}
