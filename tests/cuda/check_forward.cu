// The forward on a GPU against f64 loops on the host.
#include "gpu_checks.hpp"
#include "gpu_support.hpp"
#include "order.hpp"
#include "step_checks.hpp"
#include "told.hpp"

#include <tuple>

namespace gpu_check {
namespace {

template <class T, class R, class O>
void check_step(const cuda::context& ctx, const typename problem<T, R>::spec& spec, generator& g) {
  const problem<T, R> p(spec, g);
  check_step_of<O>(ctx, p, std::is_same_v<T, double> ? 1e-12 : 1e-5, g);
}

/// Rows of f64, and weights of f64, times powers of two whose squares no double holds: the same bits except
/// for these powers.
template <class T>
void check_range(const cuda::context& ctx, layout order, double scale, double row_scale) {
  const expert_shape shape{3, 37, 130};
  const auto [n, f, d] = shape;
  generator same(41), seed(41);
  const problem<T, double> plain({.shape = shape, .order = order}, same);
  const problem<T, double> scaled({.shape = shape, .order = order, .scale = scale, .row_scale = row_scale},
                                  seed);
  const auto step = [&, n = n, d = d](const problem<T, double>& p, const told_on_device& by) {
    const device_array<double> out(static_cast<std::size_t>(n * d));
    const std::size_t bytes = cuda::router_rows_workspace(ctx, p.view());
    const device_array<unsigned char> scratch(bytes);
    cuda::router_rows(ctx, p.view(), p.rows(), row_major<device_space>(out.data(), n, d), by.told(),
                      by.saved(), {scratch.data(), bytes}, {.radius = 2.0});
    sync();
    return out.host();
  };
  const told_on_device a(n, d), b(n, d);
  check(step(plain, a) == step(scaled, b), scaled.name + ": rows of another scale");
  check(a.statuses.host() == b.statuses.host(), scaled.name + ": statuses");
  const auto times = [&](const auto& x, const auto& y, double factor, const char* what) {
    const auto one = x.host(), other = y.host();
    for (std::size_t e = 0; e < one.size(); ++e) {
      check(one[e] > 0 && one[e] * factor == other[e], scaled.name + ": " + what);
    }
  };
  times(a.rayleigh, b.rayleigh, scale * scale, "rayleigh");
  times(a.residual, b.residual, scale * scale, "residual");
  times(a.cosine, b.cosine, 1.0, "cosine");
  times(a.row_norm, b.row_norm, row_scale, "row norm");
  times(a.image_norm, b.image_norm, row_scale * scale * scale, "image norm");
}

template <class T>
void check_several_steps(const cuda::context& ctx, generator& g) {
  const expert_shape shape{uniform(g, 1, 5), uniform(g, 1, 60), uniform(g, 1, 300)};
  const problem<T, float> p(
      {.shape = shape, .order = uniform(g, 0, 1) ? layout::nfd : layout::ndf, .specials = true}, g);
  const auto [n, f, d] = shape;
  const auto size = static_cast<std::size_t>(n * d);
  const int steps = static_cast<int>(uniform(g, 2, 4));
  const cuda::step_options several{2.0, steps, degenerate_row::zero};
  const cuda::step_options once{1.0, 1, degenerate_row::zero};
  const cuda::step_options last{2.0, 1, degenerate_row::zero};
  const std::size_t bytes = cuda::router_rows_workspace(ctx, p.view(), steps);
  const device_array<unsigned char> scratch(bytes);
  const device_array<float> out(size), chained(size);
  const device_array<status> states(static_cast<std::size_t>(n)), first(static_cast<std::size_t>(n));
  cuda::step_by_products told, first_told;
  told.statuses = states.data();
  first_told.statuses = first.data();
  const auto to = row_major<device_space>(out.data(), n, d);
  const auto chain = row_major<device_space>(chained.data(), n, d);
  cuda::router_rows(ctx, p.view(), p.rows(), to, told, {}, {scratch.data(), bytes}, several);
  cuda::router_rows(ctx, p.view(), p.rows(), chain, first_told, {}, {scratch.data(), bytes}, once);
  cuda::context at_rest = ctx;
  at_rest.inputs_at_rest = true;     // which the calls see is not so
  for (int i = 1; i < steps; ++i) {  // in place: the stateful form
    cuda::router_rows(at_rest, p.view(), chain, chain, {}, {}, {scratch.data(), bytes},
                      i + 1 == steps ? last : once);
  }
  sync();
  const auto a = out.host(), b = chained.host();
  check(std::memcmp(a.data(), b.data(), size * sizeof(float)) == 0,
        p.name + ": several steps differ from single ones");
  check(states.host() == first.host(),
        p.name + ": the status of several steps is not that of the first failure");
}

template <class T>
void check_order(const cuda::context& ctx, const expert_shape& shape, layout order, generator& g) {
  const problem<T, float> p({.shape = shape, .order = order}, g);
  const auto [n, f, d] = shape;
  const auto size = static_cast<std::size_t>(n * d);
  const device_array<float> out(size), direction(size);
  const device_array<double> rayleigh(static_cast<std::size_t>(n)), norms(static_cast<std::size_t>(n)),
      energies(static_cast<std::size_t>(n));
  const device_array<status> statuses(static_cast<std::size_t>(n));
  cuda::step_by_products told;
  told.rayleigh = rayleigh.data();
  const std::size_t bytes = cuda::router_rows_workspace(ctx, p.view(), 3);
  const device_array<unsigned char> scratch(bytes), garbage(bytes + size * sizeof(double));
  const cuda::workspace work{scratch.data(), bytes};
  const cuda::saved_step saved{direction.data(), norms.data(), statuses.data()};
  const auto to = row_major<device_space>(out.data(), n, d);
  const auto in = [&](bool at_rest) {
    cuda::context c = ctx;
    c.inputs_at_rest = at_rest;
    return c;
  };
  const auto step = [&](bool at_rest, double radius = 2.0, int steps = 1) {
    cuda::router_rows(in(at_rest), p.view(), p.rows(), to, told, saved, work,
                      {.radius = radius, .steps = steps});
  };
  const auto halves = [&](bool at_rest) {
    cuda::images_of_rows(in(at_rest), p.view(), p.rows(), to, energies.data(), work);
  };

  const std::vector<late_write> outputs = {
      {out.data(), garbage.data(), size * sizeof(float)},
      {direction.data(), garbage.data(), size * sizeof(float)},
      {rayleigh.data(), garbage.data(), static_cast<std::size_t>(n) * sizeof(double)},
      {norms.data(), garbage.data(), static_cast<std::size_t>(n) * sizeof(double)},
      {statuses.data(), garbage.data(), static_cast<std::size_t>(n)},
      {energies.data(), garbage.data(), static_cast<std::size_t>(n) * sizeof(double)},
      {scratch.data(), garbage.data(), bytes}};
  const late_array weights(p.device), rows(p.device_rows), table(p.device_table);
  const device_array<T> nothing(p.stored.size(), p.offset);  // NaNs
  std::vector<T*> decoys;
  for (const index_t start : p.place.starts) {
    decoys.push_back(nothing.data() + start);
  }
  const auto inputs = [&] {
    return std::vector<late_write>{weights.restore(), rows.restore(), table.restore(decoys)};
  };
  const auto everything = [&] {
    return std::tuple(out.host(), direction.host(), rayleigh.host(), norms.host(), statuses.host(),
                      energies.host());
  };
  const auto equal = [](const auto& a, const auto& b) {
    return std::apply(
        [&](const auto&... x) {
          return std::apply(
              [&](const auto&... y) {
                return (... && (std::memcmp(x.data(), y.data(), x.size() * sizeof(x[0])) == 0));
              },
              b);
        },
        a);
  };
  const auto check_call = [&](const char* what, bool reads_at_once, const auto& call) {
    after(outputs, [] {});
    call(false);
    sync();
    const auto expected = everything();
    after(outputs, [] {});
    after(inputs(), [&] { call(false); });
    check(equal(everything(), expected), p.name + ": not in order, inputs that are written late, " + what);
    for (const bool at_rest : {false, true}) {
      after(outputs, [&] { call(at_rest); });
      check(equal(everything(), expected), p.name + ": not in order, outputs that are written late, " + what +
                                               (at_rest ? ", inputs at rest" : ""));
    }
    if (reads_at_once && ctx.capability >= 90 && !std::is_same_v<T, double>) {
      // A promise that is broken shows that kernels do start early, or all this would show nothing.
      after(inputs(), [&] { call(true); });
      check(!equal(everything(), expected), p.name + ": did not start early, " + what);
    }
  };
  check_call("a step", true, [&](bool at_rest) { step(at_rest); });
  check_call("three steps", true, [&](bool at_rest) { step(at_rest, 2.0, 3); });
  check_call("an image", true, halves);
  check_call("a row of steps", false, [&](bool at_rest) {  // each writes where the last one did
    for (const double radius : {5.0, 4.0, 3.0, 2.0}) {
      step(at_rest, radius);
    }
  });
}

template <class T, class R, class O>
void sweep(const cuda::context& ctx, generator& g, int count) {
  for (int i = 0; i < count; ++i) {
    typename problem<T, R>::spec s;
    s.order = static_cast<layout>(uniform(g, 0, layouts - 1));
    s.shape = {uniform(g, 1, 9), any_extent(g, 200), any_extent(g, 700)};
    if (i % 8 == 0) {
      s.shape = {uniform(g, 1, 3), uniform(g, 1, 40), uniform(g, 1, 2) * uniform(g, 300, 4700)};
    }
    if (i % 16 == 7) {
      s.shape = {uniform(g, 100, 400), uniform(g, 1, 12), uniform(g, 1, 40)};
    }
    s.offset = uniform(g, 0, 2) == 0 ? static_cast<int>(uniform(g, 1, 7)) : 0;
    s.specials = uniform(g, 0, 3) == 0;
    constexpr bool wide = !std::is_same_v<T, f16> && !std::is_same_v<R, f16> && !std::is_same_v<O, f16>;
    if (wide && uniform(g, 0, 2) == 0) {
      s.scale = std::pow(10.0, static_cast<double>(uniform(g, -18, 18)));
      s.row_scale = std::pow(10.0, static_cast<double>(uniform(g, -18, 18)));
    }
    check_step<T, R, O>(ctx, s, g);
  }
}

}  // namespace

void check_forward(const cuda::context& ctx, int effort) {
  generator g(12345);
  for (const layout order : {layout::nfd, layout::ndf, layout::fd_pointers, layout::df_pointers}) {
    if (effort < 4) {
      break;  // sanitizers take kernels one after the other
    }
    check_order<bf16>(ctx, {2, 40, 2048}, order, g);
    check_order<float>(ctx, {3, 300, 1000}, order, g);
    check_order<bf16>(ctx, {100, 24, 512}, order, g);  // blocks with rows of several experts
    check_order<bf16>(ctx, {256, 9, 2048}, order, g);  // which finish them
    check_order<double>(ctx, {2, 20, 60}, order, g);
  }
  sweep<bf16, bf16, float>(ctx, g, effort);
  sweep<bf16, float, bf16>(ctx, g, effort);
  sweep<f16, f16, f16>(ctx, g, effort / 2);
  sweep<float, float, float>(ctx, g, effort);
  sweep<double, double, double>(ctx, g, effort / 2);
  for (int i = 0; i < effort / 2; ++i) {
    check_several_steps<bf16>(ctx, g);
    check_several_steps<float>(ctx, g);
  }
  for (const expert_shape shape :
       {expert_shape{8, 132, 520}, {192, 20, 2048}, {2, 40, 8200}, {2, 16, 16384}}) {
    check_step<bf16, bf16, float>(ctx, {.shape = shape, .order = layout::nd2f_interleaved}, g);
  }
  if (effort < 4) {  // under a sanitizer
    check_step<bf16, float, float>(ctx, {.shape = {2, 40, 2056}}, g);
    check_step<bf16, float, float>(ctx, {.shape = {256, 9, 2048}}, g);  // a block finishes two experts
    check_step<float, float, float>(ctx, {.shape = {2, 40, 2056}, .order = layout::ndf}, g);
    check_step<bf16, bf16, float>(ctx, {.shape = {8, 130, 520}, .order = layout::ndf}, g);
    check_step<bf16, bf16, float>(ctx, {.shape = {2, 130, 2048}, .order = layout::ndf}, g);
    check_step<bf16, bf16, float>(ctx, {.shape = {192, 20, 2048}, .order = layout::ndf}, g);  // 3 a cluster
    check_step<float, float, float>(ctx, {.shape = {2, 40, 2056}, .order = layout::nd2f_interleaved}, g);
    check_step<f16, f16, f16>(ctx, {.shape = {3, 132, 2880}, .order = layout::nd2f_interleaved}, g);
    check_step<bf16, float, float>(ctx, {.shape = {2, 36, 16400}}, g);  // two reads
    check_step<float, float, float>(ctx, {.shape = {2, 36, 4100}, .order = layout::ndf, .offset = 1}, g);
    std::printf("forward: %d checks so far, %d failures\n", checks, failures);
    return;
  }
  // Sizes at the seams of the launch shapes, and the largest.
  for (const index_t d :
       {1, 2, 7, 8, 255, 256, 2048, 2056, 4096, 4104, 7168, 8192, 8200, 12288, 16384, 16392, 32768}) {
    for (const layout l : {layout::nfd, layout::ndf}) {
      check_step<bf16, float, float>(ctx, {.shape = {2, 72, d}, .order = l}, g);
      check_step<float, float, float>(ctx, {.shape = {3, 33, d}, .order = l}, g);
    }
  }
  // Numbers of experts at the seams: whole ones for each cluster, one for two or four members, teams.
  for (const expert_shape shape : {expert_shape{128, 72, 2048},
                                   {192, 20, 2048},
                                   {64, 96, 1024},
                                   {32, 64, 2048},
                                   {30, 70, 4096},
                                   {15, 130, 8192},
                                   {33, 130, 2048},
                                   {132, 9, 40},
                                   {264, 20, 500},
                                   {256, 12, 7168},  // a block finishes two experts
                                   {384, 50, 2048},
                                   {1280, 12, 100}}) {
    for (const layout l : {layout::nfd, layout::ndf}) {
      check_step<bf16, float, float>(ctx, {.shape = shape, .order = l}, g);
      check_step<float, bf16, float>(ctx, {.shape = shape, .order = l, .specials = true}, g);
    }
  }
  // Clusters that send their parts to the first block: of 2, 4 and 8 members, or with rows shared as well,
  // the last member with fewer panels. What cannot be copied 16 bytes at a time takes another way: odd F, a
  // base off alignment. Rows of f64 take another as well.
  for (const expert_shape shape : {expert_shape{64, 77, 1000},
                                   {32, 200, 1024},
                                   {14, 560, 1024},
                                   {14, 560, 512},
                                   {28, 200, 512},
                                   {10, 128, 2048},
                                   {7, 100, 4096},
                                   {40, 90, 1544}}) {
    for (const layout l : {layout::nfd, layout::ndf, layout::nd2f_interleaved, layout::padded_df}) {
      check_step<bf16, float, float>(ctx, {.shape = shape, .order = l, .offset = 3}, g);
      check_step<bf16, double, bf16>(ctx, {.shape = shape, .order = l, .row_scale = 1e100}, g);
      check_step<float, double, float>(ctx, {.shape = shape, .order = l, .row_scale = 1e-100}, g);
      check_step<float, f16, float>(ctx, {.shape = shape, .order = l, .offset = 1, .specials = true}, g);
    }
  }
  for (const layout l : {layout::nfd, layout::ndf, layout::both_strided}) {
    for (const double row_scale : {0x1p-900, 0x1p-540, 0x1p540, 0x1p900}) {
      check_range<bf16>(ctx, l, 1.0, row_scale);
      check_range<float>(ctx, l, 0x1p20, row_scale);
      check_range<double>(ctx, l, 1.0, row_scale);
    }
    for (const double scale : {0x1p-440, 0x1p-300, 0x1p300, 0x1p440}) {
      check_range<double>(ctx, l, scale, 1.0);
      check_range<double>(ctx, l, scale, 1 / scale);
    }
  }
  {
    const device_array<double> from(std::vector<double>{1.0, -0x1p-30, 0.1, 1e300, 3.0, -1e-300});
    const device_array<float> to(6);
    cuda::narrow_rows(ctx, row_major<device_space>(static_cast<const double*>(from.data()), 2, 3),
                      row_major<device_space>(to.data(), 2, 3));
    sync();
    check(to.intact() && to.host() == std::vector<float>{1.0F, -0x1p-30F, 0.1F, HUGE_VALF, 3.0F, -0.0F},
          "rows narrowed to f32");
  }
  for (const double scale : {1e-40, 1e-38, 1e-30, 1e30, 1e38}) {  // denormals, and the ends of the range
    for (const layout l : {layout::nfd, layout::ndf}) {
      check_step<float, float, float>(ctx, {.shape = {3, 40, 512}, .order = l, .scale = scale * 0.1}, g);
      check_step<float, float, float>(ctx, {.shape = {3, 40, 512}, .order = l, .row_scale = scale * 0.1}, g);
    }
  }
  // Two reads: what cannot be loaded 16 bytes at a time, and sums that leave the range of f32.
  for (const layout l : {layout::nfd, layout::ndf, layout::padded_fd, layout::padded_df, layout::fd_pointers,
                         layout::df_pointers}) {
    for (const int offset : {0, 3}) {
      const expert_shape shape{2, 45, l == layout::ndf ? 32765 : 16401};
      check_step<bf16, float, float>(ctx, {.shape = shape, .order = l, .offset = offset, .specials = true},
                                     g);
      check_step<f16, f16, float>(ctx, {.shape = {2, 77, 16392}, .order = l, .offset = offset}, g);
    }
    for (const double scale : {1e-40, 1e-30, 1e-18, 1e18, 1e30, 1e37}) {
      check_step<float, float, float>(ctx, {.shape = {2, 40, 16388}, .order = l, .scale = scale}, g);
      check_step<bf16, float, float>(ctx, {.shape = {2, 40, 16388}, .order = l, .row_scale = scale}, g);
    }
  }
  check_step<bf16, float, float>(ctx, {.shape = {1, 100000, 64}, .order = layout::nfd}, g);
  check_step<bf16, float, float>(ctx, {.shape = {1, 1, 1}, .order = layout::nfd}, g);
  check_step<bf16, float, float>(ctx, {.shape = {1, 20000, 64}, .order = layout::ndf}, g);
  std::printf("forward: %d checks so far, %d failures\n", checks, failures);
}

}  // namespace gpu_check
