// The backward on a GPU against f64 loops on the host, in its three forms.
#include "gpu_checks.hpp"
#include "gpu_support.hpp"
#include "order.hpp"
#include "step_checks.hpp"
#include "told.hpp"

#include <algorithm>

namespace gpu_check {
namespace {

template <class G>
constexpr double rounding = std::is_same_v<G, double>  ? 1e-15
                            : std::is_same_v<G, float> ? 1e-7
                            : std::is_same_v<G, f16>   ? 6e-4
                                                       : 4e-3;

template <class T, class R, class G>
void check_gradient(const cuda::context& ctx, const typename problem<T, R>::spec& spec,
                    layout gradient_layout, generator& g) {
  const problem<T, R> p(spec, g);
  const auto [n, f, d] = spec.shape;
  std::normal_distribution<double> normal;
  const double upstream_scale =
      spec.scale == 1.0 ? 1.0 : std::pow(10.0, static_cast<double>(uniform(g, -6, 6)));
  constexpr bool in_double = std::is_same_v<T, double>;
  using S = std::conditional_t<in_double, double, float>;
  const backward_of<problem<T, R>, S> of(ctx, p, upstream_scale, in_double ? 1e-12 : 1e-5,
                                         in_double ? 1e-14 : 5e-7, g);
  const experts_in_memory<G> place(spec.shape, gradient_layout, g, spec.offset != 0);
  for (const auto mode : {cuda::gradient_mode::write, cuda::gradient_mode::accumulate}) {
    const bool add = mode == cuda::gradient_mode::accumulate;
    std::vector<G> before(static_cast<std::size_t>(place.size), make<G>(7.0));
    if (add) {
      for (auto& x : before) {
        x = make<G>(normal(g) * spec.scale);
      }
    }
    const device_array<G> memory(before, static_cast<std::size_t>(spec.offset));
    std::vector<G*> table;
    for (const index_t start : place.starts) {
      table.push_back(memory.data() + start);
    }
    const device_array<G*> device_table(table);
    const auto gradient =
        place.pointers
            ? expert_batch_view<G, device_space>(static_cast<G* const*>(device_table.data()), spec.shape,
                                                 place.strides)
            : expert_batch_view<G, device_space>(memory.data() + place.first, spec.shape, place.strides);
    const std::size_t bytes = cuda::router_rows_vjp_workspace(ctx, p.view(), gradient, mode);
    const device_array<unsigned char> scratch(bytes);
    of.grad_rows.poison();
    cuda::router_rows_vjp(ctx, p.view(), p.rows(), of.saved(), of.upstream_view(), of.rows_view(), gradient,
                          mode, {scratch.data(), bytes}, of.options);
    sync();
    of.check_rows(add ? "accumulate" : "write");
    const auto after = memory.host();
    const std::string what = p.name + " " + type_name<G> + " gradient " + name_of(gradient_layout) +
                             (add ? " accumulated" : " written");
    check(memory.intact() && scratch.intact(), what + ": out of bounds");
    std::vector<bool> touched(after.size(), false);
    for (index_t e = 0; e < n; ++e) {
      const auto& w = of.want[static_cast<std::size_t>(e)];
      distance off;
      double old = 0;
      for (index_t j = 0; j < f; ++j) {
        for (index_t k = 0; k < d; ++k) {
          const auto at = static_cast<std::size_t>(place.at(e, j, k));
          touched[at] = true;
          double x = 0;
          if (of.steps[static_cast<std::size_t>(e)].state == status::ok) {
            x = w.y[static_cast<std::size_t>(j)] * w.dual[static_cast<std::size_t>(k)] +
                w.w[static_cast<std::size_t>(j)] * p.r[static_cast<std::size_t>(e * d + k)];
          }
          if (add) {
            x += value(before[at]);
            old += value(before[at]) * value(before[at]);
          }
          off.add(value(after[at]), x);
        }
      }
      check(off.within(of.tolerance + rounding<G>, of.noise * w.bound_weights + rounding<G> * std::sqrt(old)),
            what + ": expert " + std::to_string(e) + " off by " +
                std::to_string(std::sqrt(off.top / off.bottom)));
    }
    bool gaps = true;
    for (std::size_t i = 0; i < after.size(); ++i) {
      gaps = gaps && (touched[i] || std::memcmp(&after[i], &before[i], sizeof(G)) == 0);
    }
    check(gaps, what + ": wrote between the rows");
    if (!add) {  // the same bits again
      scratch.poison();
      cuda::router_rows_vjp(ctx, p.view(), p.rows(), of.saved(), of.upstream_view(), of.rows_view(), gradient,
                            mode, {scratch.data(), bytes}, of.options);
      sync();
      check(std::memcmp(memory.host().data(), after.data(), after.size() * sizeof(G)) == 0,
            what + ": two runs differ");
    }
  }

  of.check_factored(ctx);
}

template <class T, class G>
void check_order(const cuda::context& ctx, const expert_shape& shape, layout order, generator& g) {
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
  const experts_in_memory<G> place(shape, order, g, false);
  const std::vector<G> before(static_cast<std::size_t>(place.size), make<G>(0.25));
  const device_array<G> gradient(before);
  const expert_batch_view<G, device_space> to(gradient.data() + place.first, shape, place.strides);
  const std::size_t scratch_bytes =
      std::max({cuda::router_rows_workspace(ctx, p.view(), 1),
                cuda::router_rows_vjp_workspace(ctx, p.view(), to, cuda::gradient_mode::write),
                cuda::router_rows_vjp_workspace(ctx, p.view(), to, cuda::gradient_mode::accumulate),
                cuda::router_rows_vjp_factored_workspace(ctx, p.view())});
  const device_array<unsigned char> scratch(scratch_bytes);
  const cuda::workspace work{scratch.data(), scratch_bytes};
  cuda::router_rows(ctx, p.view(), p.rows(), row_major<device_space>(out.data(), n, d), {}, saved, work,
                    options);
  sync();
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
  const auto inputs = [&] {
    return std::vector<late_write>{weights.restore(), rows.restore(),   grad_out.restore(), unit.restore(),
                                   scale.restore(),   states.restore(), old.restore()};
  };
  const device_array<unsigned char> garbage(std::max(before.size() * sizeof(G), scratch_bytes));
  const auto late = [&](const auto& memory, std::size_t count) {
    return late_write{memory.data(), garbage.data(), count * sizeof(*memory.data())};
  };
  for (const auto mode : {cuda::gradient_mode::write, cuda::gradient_mode::accumulate}) {
    after({old.restore()}, [] {});
    written(mode);
    sync();
    const auto expected = gradient.host();
    const auto expected_rows = grad_rows.host();
    const auto check_result = [&](const char* what) {
      check(same(gradient, expected) && same(grad_rows, expected_rows),
            p.name + " " + type_name<G> + ": a gradient not in order, " + what);
    };
    after(inputs(), [&] { written(mode); });
    check_result("inputs that are written late");
    after({old.restore(), late(grad_rows, size), late(scratch, scratch_bytes)}, [&] { written(mode); });
    check_result("outputs that are written late");
  }
  factored();
  sync();
  const auto ys = y.host(), ws = w.host(), duals = dual.host(), expected_rows = grad_rows.host();
  const auto check_result = [&](const char* what) {
    check(same(y, ys) && same(w, ws) && same(dual, duals) && same(grad_rows, expected_rows),
          p.name + ": factors not in order, " + what);
  };
  after(inputs(), factored);
  check_result("inputs that are written late");
  after({late(y, ys.size()), late(w, ws.size()), late(dual, size), late(grad_rows, size),
         late(scratch, scratch_bytes)},
        factored);
  check_result("outputs that are written late");
}

template <class T, class R, class G>
void sweep(const cuda::context& ctx, generator& g, int count) {
  for (int i = 0; i < count; ++i) {
    typename problem<T, R>::spec s;
    s.order = static_cast<layout>(uniform(g, 0, layouts - 1));
    s.shape = {uniform(g, 1, 6), any_extent(g, 120), any_extent(g, 500)};
    if (i % 8 == 0) {
      s.shape = {uniform(g, 1, 2), uniform(g, 1, 30), uniform(g, 300, 4700)};
    }
    if (i % 16 == 7) {
      s.shape = {uniform(g, 100, 300), uniform(g, 1, 12), uniform(g, 1, 40)};
    }
    s.offset = uniform(g, 0, 2) == 0 ? static_cast<int>(uniform(g, 1, 7)) : 0;
    s.specials = uniform(g, 0, 3) == 0;
    constexpr bool wide = !std::is_same_v<T, f16> && !std::is_same_v<R, f16> && !std::is_same_v<G, f16>;
    if (wide && uniform(g, 0, 2) == 0) {
      s.scale = std::pow(10.0, static_cast<double>(uniform(g, -15, 15)));
      s.row_scale = std::pow(10.0, static_cast<double>(uniform(g, -6, 6)));
    }
    const layout gradient = uniform(g, 0, 2) == 0 ? static_cast<layout>(uniform(g, 0, layouts - 1)) : s.order;
    check_gradient<T, R, G>(ctx, s, gradient, g);
  }
}

}  // namespace

void check_backward(const cuda::context& ctx, int effort) {
  generator g(777);
  if (effort >= 4) {  // sanitizers take kernels one after the other
    check_order<bf16, bf16>(ctx, {2, 40, 2048}, layout::nfd, g);
    check_order<bf16, float>(ctx, {100, 24, 512}, layout::nfd, g);  // blocks with rows of several experts
    check_order<float, float>(ctx, {3, 30, 1000}, layout::nfd, g);
    check_order<bf16, bf16>(ctx, {3, 40, 100}, layout::ndf, g);  // panels, or two reads
    check_order<bf16, float>(ctx, {100, 24, 512}, layout::ndf, g);
    check_order<bf16, bf16>(ctx, {3, 40, 2100}, layout::nd2f_interleaved, g);
    check_order<bf16, bf16>(ctx, {3, 30, 100}, layout::both_strided, g);  // the generic path
  }
  sweep<bf16, float, bf16>(ctx, g, effort);
  sweep<bf16, bf16, float>(ctx, g, effort);
  sweep<f16, f16, f16>(ctx, g, effort / 2);
  sweep<float, float, float>(ctx, g, effort);
  sweep<double, double, double>(ctx, g, effort / 2);
  const std::vector<index_t> seams =
      effort < 4 ? std::vector<index_t>{256, 2056}
                 : std::vector<index_t>{1, 8, 256, 2048, 2056, 4096, 5120, 7168, 8192, 8200, 16392, 32768};
  for (const index_t d : seams) {
    check_gradient<bf16, float, bf16>(ctx, {.shape = {2, 72, d}}, layout::nfd, g);
    check_gradient<bf16, float, float>(ctx, {.shape = {3, 33, d}}, layout::n2fd_interleaved, g);
    check_gradient<float, float, float>(ctx, {.shape = {2, 41, d}}, layout::nfd, g);
    check_gradient<bf16, float, bf16>(ctx, {.shape = {2, 72, d}, .order = layout::ndf}, layout::ndf, g);
    check_gradient<float, float, float>(ctx, {.shape = {2, 41, d}, .order = layout::padded_df}, layout::ndf,
                                        g);
    const layout pairs = layout::nd2f_interleaved;
    check_gradient<bf16, float, bf16>(ctx, {.shape = {2, 72, d}, .order = pairs}, pairs, g);
    check_gradient<bf16, bf16, float>(ctx, {.shape = {2, 44, d}, .order = pairs}, pairs, g);
    check_gradient<float, float, float>(ctx, {.shape = {2, 42, d}, .order = pairs}, pairs, g);
  }
  const index_t few = effort < 4 ? 8 : 24;
  for (const layout order :
       {layout::ndf, layout::nd2f_interleaved}) {  // two experts to a cluster, and to a block
    check_gradient<bf16, float, bf16>(ctx, {.shape = {128, few, 2048}, .order = order, .specials = true},
                                      order, g);
    check_gradient<bf16, float, bf16>(ctx, {.shape = {37, 3 * few, 2056}, .order = order}, order, g);
  }
  check_gradient<float, float, float>(
      ctx, {.shape = {128, few, 2048}, .order = layout::ndf, .specials = true}, layout::ndf, g);
  if (effort >= 4) {  // segments of several experts in a block: the least of stages that a ring can have
    check_gradient<bf16, float, bf16>(ctx, {.shape = {50, 72, 4096}}, layout::nfd, g);
    check_gradient<bf16, float, float>(ctx, {.shape = {50, 72, 4096}}, layout::nfd, g);
    check_gradient<float, float, float>(ctx, {.shape = {50, 72, 2048}}, layout::nfd, g);
    for (const layout order : {layout::ndf, layout::nd2f_interleaved}) {  // and panels of several
      check_gradient<bf16, float, bf16>(ctx, {.shape = {50, 200, 1024}, .order = order}, order, g);
      check_gradient<bf16, float, bf16>(ctx, {.shape = {37, 200, 2880}, .order = order}, order, g);
      check_gradient<bf16, bf16, float>(ctx, {.shape = {200, 24, 1000}, .order = order}, order, g);
      check_gradient<float, float, float>(ctx, {.shape = {2, 1000, 520}, .order = order}, order, g);
      check_gradient<bf16, float, bf16>(ctx, {.shape = {50, 72, 300}, .order = order, .specials = true},
                                        order, g);
    }
  }
  // Pairs that share no vector with half as many bytes of gradient; weights and gradient of other layouts.
  check_gradient<float, float, bf16>(ctx, {.shape = {2, 40, 300}, .order = layout::nd2f_interleaved},
                                     layout::nd2f_interleaved, g);
  check_gradient<bf16, float, bf16>(ctx, {.shape = {2, 40, 300}, .order = layout::nd2f_interleaved},
                                    layout::ndf, g);
  // Half vectors of a 16-bit gradient, odd ones and even; rows that no float holds, and none that is aligned.
  check_gradient<float, float, bf16>(ctx, {.shape = {2, 41, 1028}}, layout::nfd, g);
  check_gradient<float, float, bf16>(ctx, {.shape = {2, 41, 1032}}, layout::nfd, g);
  check_gradient<bf16, double, bf16>(ctx, {.shape = {3, 24, 2050}}, layout::nfd, g);
  check_gradient<bf16, float, bf16>(ctx, {.shape = {5, 19, 4098}}, layout::nfd, g);
  check_gradient<bf16, float, bf16>(ctx, {.shape = {2, 0, 40}}, layout::nfd, g);
  std::printf("backward: %d checks so far, %d failures\n", checks, failures);
}

}  // namespace gpu_check
