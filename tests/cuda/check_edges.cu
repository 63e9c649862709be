// The edges of the calls on a GPU: nothing to read, two threads, tiny gradients, the radius of a part.
#include "gpu_checks.hpp"
#include "gpu_support.hpp"
#include "order.hpp"
#include "told.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <thread>

namespace gpu_check {
namespace {

template <class T>
bool all_are(const device_array<T>& memory, T wanted) {
  const auto x = memory.host();
  return memory.intact() && std::all_of(x.begin(), x.end(), [&](T v) { return v == wanted; });
}
std::size_t to_size(index_t count) { return static_cast<std::size_t>(count); }

/// All that a forward tells, and whether it is nothing.
struct everything_told : told_on_device {
  using told_on_device::told_on_device;
  [[nodiscard]] bool nothing(status wanted) const {
    return all_are(rayleigh, 0.0) && all_are(cosine, 0.0) && all_are(residual, 0.0) && all_are(energy, 0.0) &&
           all_are(row_norm, 0.0) && all_are(image_norm, 0.0) && all_are(statuses, wanted);
  }
  [[nodiscard]] bool nothing_saved(status wanted) const {
    return all_are(saved_norm, 0.0) && all_are(direction, 0.0F) && all_are(saved_statuses, wanted);
  }
};

/// A batch in which F or D is 0: as the host, every row is one without a step.
struct nothing_to_read {
  expert_shape shape;
  degenerate_row policy;
  device_array<float> memory{64};
  device_array<float> router, upstream;
  std::string name;

  nothing_to_read(const expert_shape& s, degenerate_row p, generator& g)
      : shape(s),
        policy(p),
        router(values_of(g, to_size(s.num_experts * s.hidden_dim))),
        upstream(values_of(g, to_size(s.num_experts * s.hidden_dim))),
        name("experts [" + std::to_string(s.num_experts) + ", " + std::to_string(s.ffn_dim) + ", " +
             std::to_string(s.hidden_dim) + "] " + (p == degenerate_row::keep ? "keep" : "zero")) {}

  [[nodiscard]] auto experts() const {
    return experts_nfd<device_space>(static_cast<const float*>(memory.data()), shape);
  }
  [[nodiscard]] auto gradient() const { return experts_nfd<device_space>(memory.data() + 32, shape); }
  [[nodiscard]] auto in(const device_array<float>& m) const {
    return row_major<device_space>(static_cast<const float*>(m.data()), shape.num_experts, shape.hidden_dim);
  }
  [[nodiscard]] auto out(const device_array<float>& m) const {
    return row_major<device_space>(m.data(), shape.num_experts, shape.hidden_dim);
  }
  /// What passes through if rows without a step are kept, else zeros.
  [[nodiscard]] bool passed(const device_array<float>& m, const device_array<float>& from) const {
    return policy == degenerate_row::zero ? all_are(m, 0.0F) : m.intact() && m.host() == from.host();
  }
  [[nodiscard]] status expected() const {
    return shape.hidden_dim == 0 ? status::zero_row : status::zero_image;
  }

  void check_forward(const cuda::context& ctx) const {
    const auto [n, f, d] = shape;
    for (const int steps : {1, 3}) {
      const everything_told told(n, d);
      const device_array<float> rows(to_size(n * d));
      const std::size_t bytes = cuda::router_rows_workspace(ctx, experts(), steps);
      const device_array<unsigned char> scratch(bytes);
      cuda::router_rows(ctx, experts(), in(router), out(rows), told.told(), told.saved(),
                        {scratch.data(), bytes}, {.steps = steps, .degenerate = policy});
      sync();
      const std::string what = name + ", " + std::to_string(steps) + " steps: ";
      check(told.nothing(expected()), what + "by-products");
      check(told.nothing_saved(expected()), what + "what is saved");
      check(passed(rows, router), what + "rows");
    }
  }

  void check_halves(const cuda::context& ctx) const {
    const auto [n, f, d] = shape;
    const everything_told told(n, d);
    const device_array<float> images(to_size(n * d)), rows(to_size(n * d));
    const device_array<double> energies(to_size(n));
    cuda::images_of_rows(ctx, experts(), in(router), out(images), energies.data(), {});
    cuda::retract_images(ctx, in(images), energies.data(), in(router), out(rows), told.told(), told.saved(),
                         {.degenerate = policy});
    sync();
    check(all_are(images, 0.0F) && all_are(energies, 0.0), name + ": the image");
    check(told.nothing(expected()) && told.nothing_saved(expected()), name + ": the image retracted");
    check(passed(rows, router), name + ": rows of the image");
  }

  void check_backward(const cuda::context& ctx) const {
    const auto [n, f, d] = shape;
    const device_array<float> direction(std::vector<float>(to_size(n * d), 0.0F));
    const device_array<double> norms(std::vector<double>(to_size(n), 0.0));
    const device_array<status> statuses(std::vector<status>(to_size(n), expected()));
    const cuda::saved_step saved{direction.data(), norms.data(), statuses.data()};
    const device_array<float> grad_router(to_size(n * d));
    for (const auto mode : {gradient_mode::write, gradient_mode::accumulate}) {
      grad_router.poison();
      cuda::router_rows_vjp(ctx, experts(), in(router), saved, in(upstream), out(grad_router), gradient(),
                            mode, {}, {.degenerate = policy});
      sync();
      check(passed(grad_router, upstream), name + ": gradient to the router");
    }
    const device_array<float> y(to_size(n * f)), w(to_size(n * f)), dual(to_size(n * d));
    grad_router.poison();
    cuda::router_rows_vjp_factored(ctx, experts(), in(router), saved, in(upstream), out(grad_router),
                                   {y.data(), w.data(), dual.data()}, {}, {.degenerate = policy});
    sync();
    check(all_are(y, 0.0F) && all_are(w, 0.0F) && all_are(dual, 0.0F), name + ": factors");
    check(passed(grad_router, upstream), name + ": gradient to the router, factored");
  }
};

void check_nothing_to_read(const cuda::context& ctx) {
  generator g(31);
  for (const expert_shape shape : {expert_shape{4, 8, 0}, {4, 0, 0}, {3, 0, 40}, {0, 5, 4}, {300, 8, 0}}) {
    for (const auto policy : {degenerate_row::keep, degenerate_row::zero}) {
      const nothing_to_read p(shape, policy, g);
      p.check_forward(ctx);
      p.check_halves(ctx);
      p.check_backward(ctx);
    }
  }
}

/// Steps of one expert size on a stream of its own.
class small_steps {
 public:
  explicit small_steps(index_t d)
      : d_(d), weights_(to_size(n * f * d)), router_(to_size(n * d)), rows_(to_size(n * d)) {
    must(cudaMemset(weights_.data(), 0x3c, to_size(n * f * d) * sizeof(bf16)), "cudaMemset");
    must(cudaMemset(router_.data(), 0x3c, to_size(n * d) * sizeof(float)), "cudaMemset");
    sync();  // the stream does not wait for the default one
    must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  small_steps(const small_steps&) = delete;
  small_steps& operator=(const small_steps&) = delete;
  ~small_steps() { cudaStreamDestroy(stream_); }

  [[nodiscard]] cudaStream_t stream() const { return stream_; }
  void step(cuda::context ctx) const {
    ctx.stream = stream_;
    const auto experts = experts_nfd<device_space>(static_cast<const bf16*>(weights_.data()), {n, f, d_});
    cuda::router_rows(ctx, experts, row_major<device_space>(static_cast<const float*>(router_.data()), n, d_),
                      row_major<device_space>(rows_.data(), n, d_), {}, {}, {scratch_.data(), 1 << 20}, {});
  }
  [[nodiscard]] std::vector<float> rows() const { return rows_.host(); }
  void forget() const { rows_.poison(); }

 private:
  static constexpr index_t n = 2, f = 16;
  index_t d_;
  device_array<bf16> weights_;
  device_array<float> router_, rows_;
  device_array<unsigned char> scratch_{1 << 20};
  cudaStream_t stream_ = nullptr;
};

/// Two sizes of one kernel, launched by two threads at a time: neither takes memory from the other.
void check_two_threads(const cuda::context& ctx) {
  const small_steps few(768), many(2048);
  std::atomic<long> failed{0};
  const auto work = [&](const small_steps& mine) {
    cudaSetDevice(ctx.device);
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(700);
    while (std::chrono::steady_clock::now() < end) {
      for (int i = 0; i < 64; ++i) {
        try {
          mine.step(ctx);
        } catch (const cuda::cuda_error&) {
          ++failed;
          cudaGetLastError();
        }
      }
      cudaStreamSynchronize(mine.stream());
    }
  };
  std::thread first(work, std::cref(few)), second(work, std::cref(many));
  first.join();
  second.join();
  check(failed == 0, "two threads: " + std::to_string(failed.load()) + " launches failed");
}

/// A graph of a large launch, captured, then a smaller one by itself, then the graph.
void check_graph_after_smaller_launch(const cuda::context& ctx) {
  const small_steps few(768), many(2048);
  many.step(ctx);
  sync();
  const auto expected = many.rows();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  must(cudaStreamBeginCapture(many.stream(), cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  many.step(ctx);
  must(cudaStreamEndCapture(many.stream(), &graph), "cudaStreamEndCapture");
  few.step(ctx);
  sync();
  must(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  few.step(ctx);
  many.forget();
  must(cudaGraphLaunch(exec, many.stream()), "cudaGraphLaunch");
  sync();
  check(many.rows() == expected, "a graph after a smaller launch");
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

/// The gradient where some stored rows, alone in their tiles, are far smaller than the others, or all of them
/// far from 1, against f64: each stored row's gradient has its own size.
template <class T, class G>
void check_row_sizes(const cuda::context& ctx, double small, double rest, double upstream_size, index_t d,
                     layout order, gradient_mode mode) {
  generator g(77);
  std::normal_distribution<double> normal;
  const expert_shape shape{2, 96, d};
  problem<T, float> p({.shape = shape, .order = order}, g);
  const auto [n, f, dd] = shape;
  std::vector<T> stored(p.stored.size(), make<T>(0.0));
  for (index_t e = 0; e < n; ++e) {
    for (index_t j = 0; j < f; ++j) {
      for (index_t k = 0; k < dd; ++k) {
        const T x = make<T>(normal(g) * (j < 32 ? small : rest));
        p.a[to_size((e * f + j) * dd + k)] = value(x);
        stored[to_size(p.place.at(e, j, k))] = x;
      }
    }
  }
  must(cudaMemcpy(p.device.data(), stored.data(), stored.size() * sizeof(T), cudaMemcpyHostToDevice),
       "cudaMemcpy");
  std::vector<float> upstream(to_size(n * dd));
  for (auto& x : upstream) x = static_cast<float>(normal(g) * upstream_size);
  const device_array<float> grad_rows(upstream), rows(upstream.size()), grad_router(upstream.size());
  const everything_told told(n, dd);
  const device_array<unsigned char> scratch(std::size_t{1} << 22);
  const cuda::workspace work{scratch.data(), std::size_t{1} << 22};
  const cuda::step_options options{.radius = 1.5};
  const experts_in_memory<G> place(shape, order, g, false);
  const device_array<G> gradient(std::vector<G>(to_size(place.size), make<G>(0.0)));
  const auto view = [&](const device_array<float>& m) { return row_major<device_space>(m.data(), n, dd); };
  cuda::router_rows(ctx, p.view(), p.rows(), view(rows), {}, told.saved(), work, options);
  cuda::router_rows_vjp(
      ctx, p.view(), p.rows(), told.saved(), view(grad_rows), view(grad_router),
      expert_batch_view<G, device_space>(gradient.data() + place.first, shape, place.strides), mode, work,
      options);
  sync();
  const auto got = gradient.host();
  const std::string what = std::string("gradient ") + type_name<G> + " of " + type_name<T> + " rows of 1e" +
                           std::to_string(std::lround(std::log10(small))) + " and 1e" +
                           std::to_string(std::lround(std::log10(rest))) + " by 1e" +
                           std::to_string(std::lround(std::log10(upstream_size))) + " " + name_of(order) +
                           " D = " + std::to_string(dd);
  for (index_t e = 0; e < n; ++e) {
    const double* const r = p.r.data() + e * dd;
    const reference_step step(p, e, r);
    double along = 0;
    for (index_t k = 0; k < dd; ++k)
      along += step.z[to_size(k)] / step.image_norm * upstream[to_size(e * dd + k)];
    std::vector<double> dual(to_size(dd));
    for (index_t k = 0; k < dd; ++k) {
      dual[to_size(k)] = 1.5 / step.image_norm *
                         (upstream[to_size(e * dd + k)] - step.z[to_size(k)] / step.image_norm * along);
    }
    for (index_t j = 0; j < f; ++j) {
      double w = 0, off = 0, size = 0, bound = 0;
      for (index_t k = 0; k < dd; ++k) {
        w += p.weight(e, j, k) * dual[to_size(k)];
        bound += std::abs(p.weight(e, j, k) * dual[to_size(k)]);
      }
      for (index_t k = 0; k < dd; ++k) {
        const double x = step.y[to_size(j)] * dual[to_size(k)] + w * r[k];
        off = std::max(off, std::abs(value(got[to_size(place.at(e, j, k))]) - x));
        size = std::max(size, std::abs(x) + 1e-2 * bound * std::abs(r[k]));
      }
      constexpr double tolerance = sizeof(G) == 2 ? 1e-2 : 1e-4;
      check(off <= tolerance * size + std::numeric_limits<float>::denorm_min() * 16,
            what + ": row " + std::to_string(j) + " off by " + std::to_string(off / size) + " of its size");
    }
  }
}

void check_small_gradients(const cuda::context& ctx) {
  constexpr auto write = gradient_mode::write, add = gradient_mode::accumulate;
  for (const index_t d : {64, 300, 2048}) {
    for (const double small : {1e-6, 1e-14, 1e-20, 1e-26, 1e-31, 1e-34}) {
      check_row_sizes<float, float>(ctx, small, 1.0, 1.0, d, layout::nfd, write);
      check_row_sizes<float, float>(ctx, small, 1.0, 1.0, d, layout::nfd, add);
      check_row_sizes<bf16, bf16>(ctx, small, 1.0, 1.0, d, layout::nfd, write);
      check_row_sizes<bf16, float>(ctx, small, 1.0, 1.0, d, layout::nfd, add);
    }
  }
  check_row_sizes<float, bf16>(ctx, 1e-20, 1.0, 1.0, 64, layout::nfd, write);
  for (const layout order : {layout::ndf, layout::nd2f_interleaved}) {
    for (const double small : {1e-6, 1e-20, 1e-31}) {  // of neurons in panels by themselves, and among others
      check_row_sizes<float, float>(ctx, small, 1.0, 1.0, 64, order, write);
      check_row_sizes<float, float>(ctx, small, 1.0, 1.0, 2048, order, add);
      check_row_sizes<bf16, bf16>(ctx, small, 1.0, 1.0, 300, order, add);
    }
    check_row_sizes<float, float>(ctx, 1e25, 1.0, 1e10, 64, order, write);
    check_row_sizes<float, float>(ctx, 1e-12, 1e-10, 1e22, 64, order, write);
    check_row_sizes<float, float>(ctx, 1e-22, 1e-20, 1e10, 64, order, add);
  }
  check_row_sizes<float, float>(ctx, 1e25, 1.0, 1e10, 64, layout::nfd, write);     // projections above 2^60
  check_row_sizes<float, float>(ctx, 1e-12, 1e-10, 1e22, 64, layout::nfd, write);  // large factors
  check_row_sizes<float, float>(ctx, 1e-22, 1e-20, 1e10, 64, layout::nfd, write);  // all of them small
}

/// The radius by default, of a part, and where images are retracted.
void check_radius(const cuda::context& ctx) {
  generator g(5);
  const problem<float, float> p({.shape = {8, 20, 64}}, g);
  const auto rows_of = [&](const auto& experts, index_t first, const cuda::step_options& options) {
    const index_t n = experts.num_experts();
    const device_array<float> rows(to_size(n * 64));
    const device_array<unsigned char> scratch(1 << 20);
    cuda::router_rows(ctx, experts, p.rows().middle_rows(first, n),
                      row_major<device_space>(rows.data(), n, 64), {}, {}, {scratch.data(), 1 << 20},
                      options);
    sync();
    return rows.host();
  };
  const auto norm = [](const std::vector<float>& rows) {
    double square = 0;
    for (std::size_t i = 0; i < 64; ++i) square += static_cast<double>(rows[i]) * rows[i];
    return std::sqrt(square);
  };
  const std::vector<float> whole = rows_of(p.view(), 0, {});
  check(close(norm(whole), 4 / std::sqrt(8.0), 1e-5), "the radius is 4 / sqrt(N) by default");
  check(close(norm(rows_of(p.view(), 0, {.radius = 2.5})), 2.5, 1e-5), "a number is the radius itself");
  const std::vector<float> part = rows_of(p.view().middle_experts(3, 2), 3, {});
  check(close(norm(part), 4 / std::sqrt(8.0), 1e-5), "a part of the experts takes the radius of the whole");

  const device_array<float> images(values_of(g, 2 * 64)), rows(2 * 64);
  const auto retract = [&](const cuda::step_options& options) {
    cuda::retract_images(ctx, row_major<device_space>(static_cast<const float*>(images.data()), 2, 64),
                         nullptr, p.rows().middle_rows(0, 2), row_major<device_space>(rows.data(), 2, 64), {},
                         {}, options);
    sync();
    return norm(rows.host());
  };
  check(close(retract({}), 4 / std::sqrt(2.0), 1e-5), "images are all there are, unless the total is given");
  check(close(retract({.radius = router_radius::scale_free(4, 8)}), 4 / std::sqrt(8.0), 1e-5),
        "images of a part with its total");
}

}  // namespace

void check_edges(const cuda::context& ctx, int effort) {
  check_nothing_to_read(ctx);
  if (effort >= 4) {  // synccheck has no memory for so many launches at a time
    check_two_threads(ctx);
  }
  check_graph_after_smaller_launch(ctx);
  check_small_gradients(ctx);
  check_radius(ctx);
  std::printf("edges: %d checks so far, %d failures\n", checks, failures);
}

}  // namespace gpu_check
