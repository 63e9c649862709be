// What the checks of all kinds of experts share: a step and its gradient against f64 on the host. A problem
// has place.shape, a [N, F, D] and r [N, D] in f64, view() and rows() on the device, and a name.
#pragma once

#include "gpu_support.hpp"
#include "told.hpp"

namespace gpu_check {

template <class O>
constexpr double output_tolerance = std::is_same_v<O, bf16>  ? 4e-3
                                    : std::is_same_v<O, f16> ? 6e-4
                                                             : 0.0;

/// The step of a problem into rows of O: against f64 on the host, its bits from a graph, and in two halves.
template <class O, class P>
void check_step_of(const cuda::context& ctx, const P& p, double tolerance, generator& g) {
  const auto [n, f, d] = p.place.shape;
  const auto size = static_cast<std::size_t>(n * d);
  const double radius = uniform(g, 1, 100) * 0.03;
  const cuda::step_options options{radius, 1, uniform(g, 0, 1) ? degenerate_row::keep : degenerate_row::zero};
  const device_array<O> out(size);
  const told_on_device by(n, d);
  const std::size_t bytes = cuda::router_rows_workspace(ctx, p.view());
  const device_array<unsigned char> scratch(bytes);
  const auto to = row_major<device_space>(out.data(), n, d);
  cuda::router_rows(ctx, p.view(), p.rows(), to, by.told(), by.saved(), {scratch.data(), bytes}, options);
  sync();
  check(out.intact() && scratch.intact() && by.direction.intact() && by.energy.intact(),
        p.name + ": writes out of bounds");

  const auto got = values(out.host());
  const auto direction = values(by.direction.host());
  const auto states = by.statuses.host();
  const auto rayleigh = by.rayleigh.host(), cosine = by.cosine.host(), residual = by.residual.host(),
             energy = by.energy.host(), row_norm = by.row_norm.host(), image_norm = by.image_norm.host();
  for (index_t e = 0; e < n; ++e) {
    const double* const r = p.r.data() + e * d;
    const reference_step ref(p, e, r);
    const std::string what = p.name + " expert " + std::to_string(e);
    const auto i = static_cast<std::size_t>(e);
    check(states[i] == ref.state, what + ": status " + std::string(to_string(states[i])) + ", expected " +
                                      std::string(to_string(ref.state)));
    std::vector<double> want(static_cast<std::size_t>(d));
    for (index_t k = 0; k < d; ++k) {
      const auto j = static_cast<std::size_t>(k);
      want[j] = ref.state == status::ok                      ? radius * ref.z[j] / ref.image_norm
                : options.degenerate == degenerate_row::keep ? value(make<O>(r[k]))
                                                             : 0.0;
    }
    if (ref.state != status::ok) {
      for (index_t k = 0; k < d; ++k) {
        const double x = got[static_cast<std::size_t>(e * d + k)], w = want[static_cast<std::size_t>(k)];
        check(x == w || (std::isnan(x) && std::isnan(w)), what + ": a degenerate row changed");
        check(direction[static_cast<std::size_t>(e * d + k)] == 0,
              what + ": a degenerate row has a direction");
      }
      check(rayleigh[i] == 0 && cosine[i] == 0 && energy[i] == 0, what + ": by-products of a degenerate row");
      continue;
    }
    const double off = difference(got.data() + e * d, want.data(), d);
    check(off <= tolerance + output_tolerance<O>, what + ": row off by " + std::to_string(off));
    check(difference(direction.data() + e * d, ref.z.data(), d) < HUGE_VAL, what + ": direction");
    std::vector<double> unit(ref.z);
    for (auto& x : unit) {
      x /= ref.image_norm;
    }
    check(difference(direction.data() + e * d, unit.data(), d) <= tolerance + 1e-7, what + ": direction");
    // The projection of a single neuron may be small beside what it is the sum of.
    const double near = tolerance * (f == 1 ? 1 + 0.01 * ref.image_norm / ref.energy * ref.row_norm : 1.0);
    check(close(rayleigh[i], ref.rayleigh, near), what + ": rayleigh");
    check(close(energy[i], ref.energy, near), what + ": energy");
    check(close(cosine[i], ref.rayleigh * ref.row_norm / ref.image_norm, near), what + ": cosine");
    check(close(row_norm[i], ref.row_norm, 1e-12), what + ": row norm");
    check(close(image_norm[i], ref.image_norm, near), what + ": image norm");
    check(std::abs(residual[i] - ref.residual) <= near * 4 * (ref.residual + ref.rayleigh),
          what + ": residual");
  }

  // The same again, bit for bit, into the same poisoned memory; captured in a graph; and in two halves.
  const auto bits = out.host();
  out.poison();
  scratch.poison();
  cudaStream_t stream = nullptr;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  cuda::context captured = ctx;
  captured.stream = stream;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  for (const bool at_rest : {false, true}) {
    captured.inputs_at_rest = at_rest;
    cuda::router_rows(captured, p.view(), p.rows(), to, by.told(), by.saved(), {scratch.data(), bytes},
                      options);
  }
  cudaGraph_t graph = nullptr;
  must(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  cudaGraphExec_t exec = nullptr;
  must(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  for (int i = 0; i < 2; ++i) {
    must(cudaGraphLaunch(exec, stream), "cudaGraphLaunch");
  }
  sync();
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  check(std::memcmp(out.host().data(), bits.data(), size * sizeof(O)) == 0,
        p.name + ": a graph's replay differs");

  const device_array<double> images(size), energies(static_cast<std::size_t>(n));
  out.poison();
  scratch.poison();
  cuda::images_of_rows(ctx, p.view(), p.rows(), row_major<device_space>(images.data(), n, d), energies.data(),
                       {scratch.data(), bytes});
  cuda::retract_images(ctx, row_major<device_space>(images.data(), n, d), energies.data(), p.rows(), to,
                       by.told(), {}, options);
  sync();
  const auto halves = values(out.host());
  const auto again = by.rayleigh.host();
  check(by.statuses.host() == states, p.name + ": statuses of the two halves differ");
  for (index_t e = 0; e < n; ++e) {
    const auto i = static_cast<std::size_t>(e);
    check(states[i] != status::ok ||
              difference(halves.data() + e * d, got.data() + e * d, d) <= 1e-6 + output_tolerance<O>,
          p.name + ": the two halves differ");
    check(close(again[i], rayleigh[i], 1e-6), p.name + ": by-products of the two halves differ");
  }
}

/// The gradient of one expert in f64.
struct reference_gradient {
  std::vector<double> dual, y, w, rows;
  double bound_rows = 0, bound_weights = 0;  // what rounding is relative to

  template <class P>
  reference_gradient(const P& p, index_t e, const reference_step& step, const double* r, const double* g,
                     double radius, degenerate_row policy) {
    const auto [n, f, d] = p.place.shape;
    (void)n;
    const auto fs = static_cast<std::size_t>(f), ds = static_cast<std::size_t>(d);
    dual.assign(ds, 0.0);
    y.assign(fs, 0.0);
    w.assign(fs, 0.0);
    rows.assign(ds, 0.0);
    if (step.state != status::ok) {
      if (policy == degenerate_row::keep) {  // the row went through, so does its gradient
        rows.assign(g, g + d);
      }
      return;
    }
    double along = 0, gg = 0, frobenius = 0, yy = 0;
    for (std::size_t k = 0; k < ds; ++k) {
      along += step.z[k] / step.image_norm * g[k];
      gg += g[k] * g[k];
    }
    const double gain = radius / step.image_norm;
    for (std::size_t k = 0; k < ds; ++k) {
      dual[k] = gain * (g[k] - step.z[k] / step.image_norm * along);
    }
    y = step.y;
    for (index_t j = 0; j < f; ++j) {
      double s = 0;
      for (index_t k = 0; k < d; ++k) {
        const double x = p.weight(e, j, k);
        s += x * dual[static_cast<std::size_t>(k)];
        frobenius += x * x;
      }
      w[static_cast<std::size_t>(j)] = s;
      yy += y[static_cast<std::size_t>(j)] * y[static_cast<std::size_t>(j)];
      for (index_t k = 0; k < d; ++k) {
        rows[static_cast<std::size_t>(k)] += s * p.weight(e, j, k);
      }
    }
    (void)r;
    bound_rows = gain * std::sqrt(gg) * frobenius;
    bound_weights = gain * std::sqrt(gg) * (std::sqrt(yy) + std::sqrt(frobenius) * step.row_norm);
  }
};

struct distance {
  double top = 0, bottom = 0;
  void add(double x, double reference) {
    top += (x - reference) * (x - reference);
    bottom += reference * reference;
  }
  [[nodiscard]] bool within(double relative, double absolute) const {
    return std::sqrt(top) <= relative * std::sqrt(bottom) + absolute;  // false for NaN
  }
};

/// A problem's forward, what its backward should give, and the backward in factors.
template <class P, class S>
struct backward_of {
  using R = typename P::row_type;
  const P& p;
  double tolerance, noise, radius;
  cuda::step_options options;
  std::vector<R> upstream;
  std::vector<double> gs;
  device_array<R> grad_out;
  device_array<float> direction, dual;
  device_array<double> norms;
  device_array<status> statuses;
  device_array<S> grad_rows;
  std::vector<reference_step> steps;
  std::vector<reference_gradient> want;

  backward_of(const cuda::context& ctx, const P& problem, double upstream_scale, double relative,
              double absolute, generator& g)
      : p(problem),
        tolerance(relative),
        noise(absolute),
        radius(uniform(g, 1, 100) * 0.03),
        options{radius, 1, uniform(g, 0, 1) ? degenerate_row::keep : degenerate_row::zero},
        upstream(random_rows(size(), upstream_scale, g)),
        gs(values(upstream)),
        grad_out(upstream),
        direction(size()),
        dual(size()),
        norms(static_cast<std::size_t>(p.place.shape.num_experts)),
        statuses(norms.host().size()),
        grad_rows(size()) {
    const auto [n, f, d] = p.place.shape;
    const device_array<R> out(size());
    const std::size_t bytes = cuda::router_rows_workspace(ctx, p.view());
    const device_array<unsigned char> scratch(bytes);
    cuda::router_rows(ctx, p.view(), p.rows(), row_major<device_space>(out.data(), n, d), {}, saved(),
                      {scratch.data(), bytes}, options);
    sync();
    for (index_t e = 0; e < n; ++e) {
      steps.emplace_back(p, e, p.r.data() + e * d);
      want.emplace_back(p, e, steps.back(), p.r.data() + e * d, gs.data() + e * d, radius,
                        options.degenerate);
    }
  }
  [[nodiscard]] std::size_t size() const {
    return static_cast<std::size_t>(p.place.shape.num_experts * p.place.shape.hidden_dim);
  }
  [[nodiscard]] cuda::saved_step saved() const { return {direction.data(), norms.data(), statuses.data()}; }
  [[nodiscard]] auto upstream_view() const {
    return row_major<device_space>(const_cast<const R*>(grad_out.data()), p.place.shape.num_experts,
                                   p.place.shape.hidden_dim);
  }
  [[nodiscard]] auto rows_view() const {
    return row_major<device_space>(grad_rows.data(), p.place.shape.num_experts, p.place.shape.hidden_dim);
  }

  void check_rows(const char* mode) const {
    const auto [n, f, d] = p.place.shape;
    const auto got = values(grad_rows.host());
    check(grad_rows.intact(), p.name + ": grad_rows out of bounds");
    for (index_t e = 0; e < n; ++e) {
      const auto& w = want[static_cast<std::size_t>(e)];
      distance off;
      for (index_t k = 0; k < d; ++k) {
        off.add(got[static_cast<std::size_t>(e * d + k)], w.rows[static_cast<std::size_t>(k)]);
      }
      check(off.within(tolerance, noise * w.bound_rows), p.name + ": gradient to row " + std::to_string(e) +
                                                             " (" + mode + ") off by " +
                                                             std::to_string(std::sqrt(off.top / off.bottom)));
    }
  }

  void check_factored(const cuda::context& ctx) const {
    const auto [n, f, d] = p.place.shape;
    const auto count = static_cast<std::size_t>(n * f);
    const device_array<float> y(count), w(count);
    const std::size_t bytes = cuda::router_rows_vjp_factored_workspace(ctx, p.view());
    const device_array<unsigned char> scratch(bytes);
    grad_rows.poison();
    cuda::router_rows_vjp_factored(ctx, p.view(), p.rows(), saved(), upstream_view(), rows_view(),
                                   {y.data(), w.data(), dual.data()}, {scratch.data(), bytes}, options);
    sync();
    check_rows("factored");
    check(y.intact() && w.intact() && dual.intact() && scratch.intact(), p.name + ": factors out of bounds");
    const auto ys = y.host(), ws = w.host(), duals = dual.host();
    for (index_t e = 0; e < n; ++e) {
      const auto& ref = want[static_cast<std::size_t>(e)];
      distance offs[3];
      double gain = 0;
      for (index_t j = 0; j < f; ++j) {
        offs[0].add(ys[static_cast<std::size_t>(e * f + j)], ref.y[static_cast<std::size_t>(j)]);
        offs[1].add(ws[static_cast<std::size_t>(e * f + j)], ref.w[static_cast<std::size_t>(j)]);
      }
      for (index_t k = 0; k < d; ++k) {
        const auto at = static_cast<std::size_t>(e * d + k);
        offs[2].add(duals[at], ref.dual[static_cast<std::size_t>(k)]);
        gain += gs[at] * gs[at];
      }
      const auto& step = steps[static_cast<std::size_t>(e)];
      const bool ok = step.state == status::ok;
      gain = ok ? std::sqrt(gain) * radius / step.image_norm : 0.0;
      const double frobenius = ok && gain > 0 ? std::sqrt(ref.bound_rows / gain) : 0.0;
      check(offs[0].within(1e-5, 1e-6 * frobenius * (ok ? step.row_norm : 0.0)), p.name + ": y");
      check(offs[1].within(1e-5, 1e-6 * frobenius * gain), p.name + ": w");
      check(offs[2].within(1e-5, 1e-6 * gain), p.name + ": the dual row");
    }
  }

 private:
  [[nodiscard]] static std::vector<R> random_rows(std::size_t count, double scale, generator& g) {
    std::normal_distribution<double> normal;
    std::vector<R> out(count);
    for (auto& x : out) x = make<R>(normal(g) * scale);
    return out;
  }
};

}  // namespace gpu_check
