// Times the step and its factored gradient over packed experts on the current device, beside a read of the
// same bytes and the step over bf16. One JSON object a line on stdout, as bench.cu.
#include <mpi_router/cuda/decoded_rows.cuh>
#include <mpi_router/cuda/router.cuh>

#include "floors.cuh"
#include "timing.hpp"

namespace gpu_bench {
namespace {

using namespace mpi_router;

constexpr int rounds = 20;

/// How experts of a shape lie as `View`, one after the other, and the bytes of one.
template <class View>
struct lies {
  View view;
  std::size_t code_bytes, scale_bytes;  // of an expert

  explicit lies(const expert_shape& s) {
    view.rows = s.ffn_dim;
    view.cols = s.hidden_dim;
    if constexpr (std::is_same_v<View, fp8_view>) {
      view.row_bytes = s.hidden_dim;
      view.scale_row_bytes = packed::parts_of(s.hidden_dim, view.block_cols) * 4;
      scale_bytes = size(packed::parts_of(s.ffn_dim, view.block_rows) * view.scale_row_bytes);
    } else if constexpr (std::is_same_v<View, mxfp4_view>) {
      view.row_bytes = s.hidden_dim / 2;
      view.scale_row_bytes = s.hidden_dim / 32;
      scale_bytes = size(s.ffn_dim * view.scale_row_bytes);
    } else {
      using format = mpi_router::detail::kernels::packed_format<View>;
      view.row_bytes = s.hidden_dim / format::block_cols * format::block_bytes;
      scale_bytes = 0;
    }
    code_bytes = size(s.ffn_dim * view.row_bytes);
  }
  [[nodiscard]] auto at(const unsigned char* codes, const unsigned char* scales, index_t n) const {
    View a = view;
    if constexpr (requires { a.scales; }) {
      a.codes = codes;
      a.scales = scales;
    } else {
      a.blocks = codes;
    }
    return cuda::packed_experts(a, n, static_cast<index_t>(code_bytes), static_cast<index_t>(scale_bytes));
  }
  [[nodiscard]] static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }
};

class timed {
 public:
  timed(const expert_shape& s, cudaStream_t stream)
      : s_(s),
        stream_(stream),
        ctx_(cuda::make_context(stream)),
        name_(std::to_string(s.num_experts) + "x" + std::to_string(s.ffn_dim) + "x" +
              std::to_string(s.hidden_dim)),
        router_(rows()),
        upstream_(rows()),
        out_(rows()),
        direction_(rows()),
        dual_(rows()),
        to_router_(rows()),
        y_(lies<fp8_view>::size(s.num_experts * s.ffn_dim)),
        w_(y_.size()),
        norms_(lies<fp8_view>::size(s.num_experts)),
        statuses_(norms_.size()),
        scratch_(std::size_t{64} << 20) {
    for (const auto* b : {&router_, &upstream_}) {
      fill_kernel<><<<64, 256>>>(reinterpret_cast<unsigned*>(b->data()), rows() / 2, 17U, true);
    }
  }
  /// Memory whose bits are finite numbers in every format: no code is 0x7f, no scale 255.
  [[nodiscard]] static device_buffer<unsigned char> filled(std::size_t bytes) {
    device_buffer<unsigned char> b(bytes + 16);
    must(cudaMemset(b.data(), 0x36, bytes + 16), "cudaMemset");
    return b;
  }
  template <class View>
  void time_packed(const char* type) const {
    const lies<View> how(s_);
    const std::size_t codes = how.code_bytes * lies<View>::size(s_.num_experts);
    const std::size_t scales = how.scale_bytes * lies<View>::size(s_.num_experts);
    const int copies = std::max(3, static_cast<int>(300e6 / static_cast<double>(codes)) + 1);
    std::vector<device_buffer<unsigned char>> all;  // codes, then scales
    for (int i = 0; i < copies; ++i) all.push_back(filled(codes + scales));
    const double bytes = static_cast<double>(codes + scales);
    const std::size_t vectors = (codes + scales) / 16;
    const device_buffer<unsigned> sink(1);
    line("read floor", type, copies, bytes, [&](int i) {
      read_kernel<><<<floor_blocks(vectors), floor_threads, 0, stream_>>>(
          reinterpret_cast<const uint4*>(all[static_cast<std::size_t>(i)].data()), vectors, sink.data());
    });
    time_step(type, copies, bytes, [&](int i) {
      const unsigned char* const at = all[static_cast<std::size_t>(i)].data();
      return how.at(at, at + codes, s_.num_experts);
    });
  }
  void time_bf16() const {
    const std::size_t bytes = rows() * lies<fp8_view>::size(s_.ffn_dim) * 2;
    const int copies = std::max(3, static_cast<int>(300e6 / static_cast<double>(bytes)) + 1);
    std::vector<device_buffer<unsigned char>> all;
    for (int i = 0; i < copies; ++i) {
      all.emplace_back(bytes);
      fill_kernel<><<<1024, 256>>>(reinterpret_cast<unsigned*>(all.back().data()), bytes / 4, 7919U, true);
    }
    time_step("bf16", copies, static_cast<double>(bytes), [&](int i) {
      return experts_nfd<device_space>(reinterpret_cast<const bf16*>(all[static_cast<std::size_t>(i)].data()),
                                       s_);
    });
  }

 private:
  [[nodiscard]] std::size_t rows() const { return lies<fp8_view>::size(s_.num_experts * s_.hidden_dim); }
  template <class Experts>
  void time_step(const char* type, int copies, double bytes, const Experts& experts) const {
    const auto matrix = [&](auto* data) {
      return row_major<device_space>(data, s_.num_experts, s_.hidden_dim);
    };
    const auto r = matrix(static_cast<const bf16*>(router_.data()));
    const auto g = matrix(static_cast<const bf16*>(upstream_.data()));
    const cuda::saved_step saved{direction_.data(), norms_.data(), statuses_.data()};
    const cuda::workspace work{scratch_.data(), scratch_.size()};
    const cuda::step_options options{.radius = 4.0};
    line("forward", type, copies, bytes, [&](int i) {
      cuda::router_rows(ctx_, experts(i), r, matrix(out_.data()), {}, saved, work, options);
    });
    line("backward, factored", type, copies, bytes, [&](int i) {
      cuda::router_rows_vjp_factored(ctx_, experts(i), r, saved, g, matrix(to_router_.data()),
                                     {y_.data(), w_.data(), dual_.data()}, work, options);
    });
  }
  template <class Call>
  void line(const char* work, const char* type, int copies, double bytes, const Call& call) const {
    print({work, name_, type, microseconds(stream_, copies, rounds, call), bytes});
  }

  expert_shape s_;
  cudaStream_t stream_;
  cuda::context ctx_;
  std::string name_;
  device_buffer<bf16> router_, upstream_;
  device_buffer<float> out_, direction_, dual_, to_router_, y_, w_;
  device_buffer<double> norms_;
  device_buffer<status> statuses_;
  device_buffer<unsigned char> scratch_;
};

}  // namespace
}  // namespace gpu_bench

int main() {
  using namespace gpu_bench;
  cudaStream_t stream = nullptr;
  must(cudaStreamCreate(&stream), "cudaStreamCreate");
  for (const expert_shape& s : {expert_shape{128, 768, 2048}, {64, 1024, 2048}, {64, 2048, 7168}}) {
    const timed t(s, stream);
    t.time_bf16();
    t.time_packed<fp8_view>("fp8, blocks");
    t.time_packed<mxfp4_view>("mxfp4");
    t.time_packed<mxfp4_blocks_view>("mxfp4 of ggml");
    t.time_packed<q8_0_view>("q8_0");
    t.time_packed<q4_k_view>("q4_k");
  }
  return 0;
}
