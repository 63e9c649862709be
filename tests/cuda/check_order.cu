// A call keeps its place in the stream though its kernels start early: a kernel that lets them start at once,
// and writes late, writes what they read, or what they write.
#include "gpu_checks.hpp"
#include "gpu_support.hpp"

namespace gpu_check {
namespace {

struct late_write {
  void* to;
  const void* from;
  std::size_t bytes;
};
struct late_writes {
  late_write list[8];
  int count;
};

/// Lets the next kernel start, and writes some 0.2 ms later.
template <class = void>
__global__ void late_kernel(late_writes writes) {
  cuda::detail::let_next_kernel_start();
  for (const long long begin = clock64(); clock64() - begin < 400000;) {
  }
  for (int i = 0; i < writes.count; ++i) {
    const late_write& w = writes.list[i];
    for (std::size_t at = threadIdx.x; at < w.bytes; at += blockDim.x) {
      static_cast<unsigned char*>(w.to)[at] = static_cast<const unsigned char*>(w.from)[at];
    }
  }
}

/// Device memory whose content of now can be taken away and come back late.
class late_array {
 public:
  template <class T>
  explicit late_array(const device_array<T>& memory)
      : at_(memory.data()), bytes_(memory.host().size() * sizeof(T)), content_(bytes_) {
    must(cudaMemcpy(content_.data(), at_, bytes_, cudaMemcpyDeviceToDevice), "cudaMemcpy");
  }
  /// Writes late what the memory held, which is NaNs until then.
  [[nodiscard]] late_write restore() const {
    must(cudaMemset(at_, 0xff, bytes_), "cudaMemset");
    return {at_, content_.data(), bytes_};
  }

 private:
  void* at_;
  std::size_t bytes_;
  device_array<unsigned char> content_;
};

template <class Call>
void after(const std::vector<late_write>& writes, const Call& call) {
  late_writes list{};
  for (const late_write& w : writes) {
    list.list[list.count++] = w;
  }
  sync();
  late_kernel<><<<1, 256>>>(list);
  must(cudaGetLastError(), "late_kernel");
  call();
  sync();
}

std::vector<float> values_of(generator& g, std::size_t size) {
  std::normal_distribution<float> normal;
  std::vector<float> out(size);
  for (auto& x : out) {
    x = normal(g);
  }
  return out;
}

template <class T>
bool same(const device_array<T>& memory, const std::vector<T>& expected) {
  return std::memcmp(memory.host().data(), expected.data(), expected.size() * sizeof(T)) == 0;
}

template <class T>
void check_step(const cuda::context& ctx, const expert_shape& shape, layout order, generator& g) {
  const problem<T, float> p({.shape = shape, .order = order}, g);
  const auto [n, f, d] = shape;
  const auto size = static_cast<std::size_t>(n * d);
  const device_array<float> out(size), direction(size);
  const device_array<double> rayleigh(static_cast<std::size_t>(n)), norms(static_cast<std::size_t>(n));
  const device_array<status> statuses(static_cast<std::size_t>(n));
  cuda::step_by_products report;
  report.rayleigh = rayleigh.data();
  const std::size_t bytes = cuda::router_rows_workspace(ctx, p.view());
  const device_array<unsigned char> scratch(bytes), garbage(bytes + size * sizeof(float));
  const cuda::saved_step saved{direction.data(), norms.data(), statuses.data()};
  const auto step = [&](bool at_rest) {
    cuda::context c = ctx;
    c.inputs_at_rest = at_rest;
    cuda::router_rows(c, p.view(), p.rows(), row_major<device_space>(out.data(), n, d), report, saved,
                      {scratch.data(), bytes}, {.radius = 2.0});
  };
  step(false);
  sync();
  const auto rows = out.host();
  const auto quotients = rayleigh.host();
  const auto check_result = [&](const char* what) {
    check(same(out, rows) && same(rayleigh, quotients), p.name + ": not in order, " + what);
  };

  const late_array weights(p.device), inputs(p.device_rows), table(p.device_table);
  out.poison();
  after({weights.restore(), inputs.restore(), table.restore()}, [&] { step(false); });
  check_result("inputs that are written late");
  const std::vector<late_write> outputs = {
      {out.data(), garbage.data(), size * sizeof(float)},
      {rayleigh.data(), garbage.data(), quotients.size() * sizeof(double)},
      {scratch.data(), garbage.data(), bytes}};
  for (const bool at_rest : {false, true}) {
    after(outputs, [&] { step(at_rest); });
    check_result(at_rest ? "outputs that are written late, inputs at rest" : "outputs that are written late");
  }
  after(outputs, [&] {  // in a row, each to write where the last one did
    for (int i = 0; i < 4; ++i) {
      step(true);
    }
  });
  check_result("several with inputs at rest");
}

template <class T, class G>
void check_gradient(const cuda::context& ctx, const expert_shape& shape, layout order, generator& g) {
  const problem<T, float> p({.shape = shape, .order = order}, g);
  const auto [n, f, d] = shape;
  const auto size = static_cast<std::size_t>(n * d);
  const device_array<float> out(size), direction(size), grad_rows(size), dual(size);
  const device_array<float> y(static_cast<std::size_t>(n * f)), w(static_cast<std::size_t>(n * f));
  const device_array<double> norms(static_cast<std::size_t>(n));
  const device_array<status> statuses(static_cast<std::size_t>(n));
  const device_array<float> upstream(values_of(g, size));
  const cuda::saved_step saved{direction.data(), norms.data(), statuses.data()};
  const cuda::step_options options{.radius = 2.0};
  const device_array<unsigned char> scratch(std::size_t{8} << 20);
  const cuda::workspace work{scratch.data(), std::size_t{8} << 20};
  cuda::router_rows(ctx, p.view(), p.rows(), row_major<device_space>(out.data(), n, d), {}, saved, work,
                    options);
  sync();
  const experts_in_memory<G> place(shape, order, g, false);
  const std::vector<G> before(static_cast<std::size_t>(place.size), make<G>(0.25));
  const device_array<G> gradient(before);
  const expert_batch_view<G, device_space> to(gradient.data() + place.first, shape, place.strides);
  const auto upstream_view = row_major<device_space>(upstream.data(), n, d);
  const auto rows_view = row_major<device_space>(grad_rows.data(), n, d);
  const auto written = [&](cuda::gradient_mode mode) {
    cuda::router_rows_vjp(ctx, p.view(), p.rows(), saved, upstream_view, rows_view, to, mode, work, options);
  };
  const auto factored = [&] {
    cuda::router_rows_vjp_factored(ctx, p.view(), p.rows(), saved, upstream_view, rows_view,
                                   {y.data(), w.data(), dual.data()}, work, options);
  };
  const late_array weights(p.device), rows(p.device_rows), grad_out(upstream), unit(direction), scale(norms),
      states(statuses), old(gradient);
  const auto late = [&] {
    return std::vector<late_write>{weights.restore(), rows.restore(),   grad_out.restore(), unit.restore(),
                                   scale.restore(),   states.restore(), old.restore()};
  };
  for (const auto mode : {cuda::gradient_mode::write, cuda::gradient_mode::accumulate}) {
    after({old.restore()}, [] {});
    written(mode);
    sync();
    const auto expected = gradient.host();
    const auto expected_rows = grad_rows.host();
    after(late(), [&] { written(mode); });
    check(same(gradient, expected) && same(grad_rows, expected_rows),
          p.name + " " + type_name<G> + ": a gradient not in order, inputs that are written late");
  }
  factored();
  sync();
  const auto ys = y.host(), ws = w.host(), duals = dual.host();
  after(late(), factored);
  check(same(y, ys) && same(w, ws) && same(dual, duals), p.name + ": factors not in order");
}

void check_gate(const cuda::context& ctx, index_t n, generator& g) {
  constexpr index_t tokens = 300, top_k = 4;
  const device_array<float> logits(values_of(g, static_cast<std::size_t>(tokens * n)));
  const device_array<float> weights(static_cast<std::size_t>(tokens * top_k));
  const device_array<expert_id> experts(static_cast<std::size_t>(tokens * top_k));
  const auto select = [&] {
    cuda::gate(ctx, row_major<device_space>(static_cast<const float*>(logits.data()), tokens, n),
               {.top_k = top_k}, nullptr, {weights.data(), experts.data()});
  };
  select();
  sync();
  const auto chosen = experts.host();
  const auto weighed = weights.host();
  const late_array late(logits);
  after({late.restore()}, select);
  check(same(experts, chosen) && same(weights, weighed),
        "gate of " + std::to_string(n) + " experts: not in order");
}

}  // namespace

void check_order(const cuda::context& ctx) {
  generator g(99);
  for (const layout order : {layout::nfd, layout::ndf, layout::fd_pointers, layout::df_pointers}) {
    check_step<bf16>(ctx, {2, 40, 2048}, order, g);
    check_step<float>(ctx, {3, 300, 1000}, order, g);
    check_step<bf16>(ctx, {33, 100, 512}, order, g);  // experts cut among blocks: two kernels
    check_step<double>(ctx, {2, 20, 60}, order, g);
  }
  check_gradient<bf16, bf16>(ctx, {2, 40, 2048}, layout::nfd, g);
  check_gradient<bf16, float>(ctx, {33, 100, 512}, layout::nfd, g);
  check_gradient<float, float>(ctx, {3, 30, 1000}, layout::nfd, g);
  check_gradient<bf16, bf16>(ctx, {3, 30, 100}, layout::ndf, g);  // the plain path
  for (const index_t n : {16, 128, 300}) {
    check_gate(ctx, n, g);
  }
  std::printf("order: %d checks so far, %d failures\n", checks, failures);
}

}  // namespace gpu_check
