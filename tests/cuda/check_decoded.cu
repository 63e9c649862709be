// Experts that are decoded as they are read, packed or by a functor, against f64 on the host: every format,
// addresses of any kind, rows of any type, by-products, halves, factors.
#include <mpi_router/cuda/decoded_rows.cuh>

#include "gpu_checks.hpp"
#include "packed_problem.hpp"
#include "step_checks.hpp"

namespace gpu_check {
namespace {

template <class View>
constexpr index_t column_unit = std::is_same_v<View, fp8_view>    ? 1
                                : std::is_same_v<View, q4_k_view> ? 256
                                                                  : 32;

template <class View>
void check_one(const cuda::context& ctx, const packed_spec& spec, generator& g) {
  const auto check_type = [&]<class Row, class O>(Row, O) {
    const packed_problem<View, Row> p(spec, g);
    check_step_of<O>(ctx, p, 1e-5, g);
    const backward_of<packed_problem<View, Row>, float> of(ctx, p, 1.0, 1e-5, 5e-7, g);
    of.check_factored(ctx);
  };
  const index_t type = uniform(g, 0, 3);
  if constexpr (std::is_same_v<View, fp8_view>) {  // the types of rows do not depend on the format
    if (type == 0) return check_type(bf16{}, float{});
    if (type == 1) return check_type(f16{}, f16{});
  }
  return type % 2 == 0 ? check_type(float{}, bf16{}) : check_type(double{}, double{});
}

template <class View>
void check_format(const cuda::context& ctx, int effort, generator& g) {
  constexpr index_t unit = column_unit<View>;
  const auto one = [&](index_t n, index_t f, index_t d, packed_spec spec = {}) {
    spec.shape = {n, f, (d + unit - 1) / unit * unit};
    check_one<View>(ctx, spec, g);
  };
  one(1, 1, 1);
  one(3, 37, 512, {.offset = 1});
  one(5, 64, 1024, {.table = true});
  one(4, 130, 1025, {.offset = 2});
  one(2, 33, 8192, {.offset = 4});
  one(2, 9, 8193);
  one(1, 5, 32768, {.table = true});
  one(9, 40, 300, {.specials = true});
  one(300, 3, 64, {.specials = true});
  for (int i = 0; i < effort; ++i) {
    one(uniform(g, 1, 12), uniform(g, 1, 90), uniform(g, 1, 3000),
        {.offset = static_cast<int>(uniform(g, 0, 9)),
         .table = uniform(g, 0, 2) == 0,
         .specials = uniform(g, 0, 2) == 0});
  }
}

/// Weights of a formula: nothing is read.
struct counted_rows {
  int hidden;
  struct expert {
    int number;
    int hidden;
    __device__ void load(int row, int column, float (&out)[8]) const {
      for (int i = 0; i < 8; ++i) {
        out[i] =
            column + i < hidden ? static_cast<float>((number * 7 + row * 5 + (column + i) * 3) % 11 - 5) : 0;
      }
    }
  };
  __device__ expert of(int e) const { return {e, hidden}; }
};
struct counted_problem {
  using row_type = float;
  struct {
    expert_shape shape;
  } place;
  std::string name = "a functor";
  std::vector<double> r, a;
  device_array<float> device_rows;

  counted_problem(const expert_shape& s, generator& g)
      : place{s}, r(random_rows(s, g)), a(formula(s)), device_rows(std::vector<float>(r.begin(), r.end())) {}
  [[nodiscard]] auto view() const {
    return cuda::decoded_experts(counted_rows{static_cast<int>(place.shape.hidden_dim)}, place.shape);
  }
  [[nodiscard]] auto rows() const {
    return row_major<device_space>(const_cast<const float*>(device_rows.data()), place.shape.num_experts,
                                   place.shape.hidden_dim);
  }
  [[nodiscard]] double weight(index_t e, index_t f, index_t d) const {
    return a[static_cast<std::size_t>((e * place.shape.ffn_dim + f) * place.shape.hidden_dim + d)];
  }

 private:
  static std::vector<double> random_rows(const expert_shape& s, generator& g) {
    std::normal_distribution<float> normal;
    std::vector<double> out(static_cast<std::size_t>(s.num_experts * s.hidden_dim));
    for (auto& x : out) x = normal(g);
    return out;
  }
  static std::vector<double> formula(const expert_shape& s) {
    std::vector<double> out;
    for (index_t e = 0; e < s.num_experts; ++e) {
      for (index_t f = 0; f < s.ffn_dim; ++f) {
        for (index_t d = 0; d < s.hidden_dim; ++d) {
          out.push_back(static_cast<double>((e * 7 + f * 5 + d * 3) % 11 - 5));
        }
      }
    }
    return out;
  }
};

/// Three steps are a step of a step of a step; in place as well.
void check_steps(const cuda::context& ctx, generator& g) {
  const packed_problem<fp8_view, float> p({.shape = {4, 50, 600}}, g);
  const std::size_t size = p.r.size();
  const std::size_t bytes = cuda::router_rows_workspace(ctx, p.view(), 3);
  const device_array<unsigned char> scratch(bytes);
  const device_array<float> out(size), in_place(p.rows_stored);
  const auto as_rows = [&](const auto& m) { return row_major<device_space>(m.data(), 4, 600); };
  cuda::router_rows(ctx, p.view(), p.rows(), as_rows(out), {}, {}, {scratch.data(), bytes},
                    {.radius = 2.0, .steps = 3});
  for (int i = 0; i < 3; ++i) {
    cuda::router_rows(ctx, p.view(), as_rows(in_place), as_rows(in_place), {}, {}, {scratch.data(), bytes},
                      {.radius = i < 2 ? 1.0 : 2.0});
  }
  sync();
  check(out.host() == in_place.host(), "three steps of packed experts are not a step of a step of a step");
}

/// Sums carry a power of two of their own, and so do rows: scales that are 2^k times as large leave the bits.
void check_range(const cuda::context& ctx, generator& g) {
  packed_problem<mxfp4_view, float> p({.shape = {3, 41, 256}}, g);
  const auto step = [&](const packed_problem<mxfp4_view, float>& of, const told_on_device& by) {
    const device_array<float> out(of.r.size());
    const std::size_t bytes = cuda::router_rows_workspace(ctx, of.view());
    const device_array<unsigned char> scratch(bytes);
    cuda::router_rows(ctx, of.view(), of.rows(), row_major<device_space>(out.data(), 3, 256), by.told(), {},
                      {scratch.data(), bytes}, {.radius = 2.0});
    sync();
    return out.host();
  };
  const told_on_device by(3, 256), scaled(3, 256);
  const auto plain = step(p, by);
  for (const int power : {80, -90}) {
    byte_array scales = p.bytes.scales;
    for (auto& x : scales) x = static_cast<unsigned char>(x + power);
    must(cudaMemcpy(p.device_scales.data(), scales.data(), scales.size(), cudaMemcpyHostToDevice),
         "cudaMemcpy");
    check(step(p, scaled) == plain, "other powers of two give other bits");
    const auto one = by.energy.host(), other = scaled.energy.host();
    for (std::size_t e = 0; e < one.size(); ++e) {
      check(other[e] == std::ldexp(one[e], 2 * power), "the energy of weights times a power of two");
    }
  }
}

void check_refused(const cuda::context& ctx, generator& g) {
  const packed_problem<fp8_view, float> p({.shape = {2, 8, 64}}, g);
  const auto experts = p.view();
  const device_array<float> out(p.r.size());
  const std::size_t bytes = cuda::router_rows_workspace(ctx, experts);
  const device_array<unsigned char> scratch(bytes);
  const auto to = row_major<device_space>(out.data(), 2, 64);
  refused("a workspace of 1 bytes", [&] {
    cuda::router_rows(ctx, experts, p.rows(), to, {}, {}, {scratch.data(), 1}, {.radius = 1.0});
  });
  refused("the output of shape [1, 64] for experts [2, 8, 64]", [&] {
    cuda::router_rows(ctx, experts, p.rows(), row_major<device_space>(out.data(), 1, 64), {}, {},
                      {scratch.data(), bytes}, {.radius = 1.0});
  });
  refused("a gate matrix and the output overlap", [&] {
    auto* const inside = reinterpret_cast<float*>(p.device_codes.data());
    cuda::router_rows(ctx, experts, p.rows(), row_major<device_space>(inside, 2, 64), {}, {},
                      {scratch.data(), bytes}, {.radius = 1.0});
  });
  refused("direction and image_norm of the forward are needed", [&] {
    cuda::router_rows_vjp_factored(ctx, experts, p.rows(), {}, p.rows(), to, {}, {scratch.data(), 1 << 30},
                                   {.radius = 1.0});
  });
  refused("blocks of 12 columns", [&] {
    fp8_view odd = p.bytes.at(p.device_codes.data(), p.device_scales.data(), 0);
    odd.block_cols = 12;
    odd.scale_row_bytes = 100;
    static_cast<void>(cuda::packed_experts(odd, 1, 0));
  });
  fp8_view first = p.bytes.at(p.device_codes.data(), p.device_scales.data(), 0);
  refused("scales of 2 experts, 0 bytes apart",
          [&] { static_cast<void>(cuda::packed_experts(first, 2, p.bytes.expert_bytes)); });
  refused("codes of 2 experts, -1 bytes apart",
          [&] { static_cast<void>(cuda::packed_experts(first, 2, -1, p.bytes.scale_bytes)); });
  first.codes = first.scales = nullptr;
  const index_t none = 0;  // a literal would be a null table, too
  check(cuda::packed_experts(first, none, 0).num_experts() == 0, "no experts, and null");
  refused("null data", [&] { static_cast<void>(cuda::packed_experts(first, 1, 0)); });
  refused("a null table of 2 experts",
          [&] { static_cast<void>(cuda::packed_experts(p.bytes.view, nullptr, 2)); });
}

}  // namespace

void check_decoded(const cuda::context& ctx, int effort) {
  generator g(1789);
  check_format<fp8_view>(ctx, effort, g);
  check_format<mxfp4_view>(ctx, effort / 2, g);
  check_format<mxfp4_blocks_view>(ctx, effort / 2, g);
  check_format<q8_0_view>(ctx, effort / 2, g);
  check_format<q4_k_view>(ctx, effort / 2, g);
  for (const expert_shape shape : {expert_shape{3, 17, 77}, expert_shape{2, 5, 9000}, expert_shape{0, 3, 8},
                                   expert_shape{2, 0, 8}, expert_shape{2, 3, 0}}) {
    const counted_problem p(shape, g);
    check_step_of<float>(ctx, p, 1e-5, g);
    backward_of<counted_problem, float>(ctx, p, 1.0, 1e-5, 5e-7, g).check_factored(ctx);
  }
  check_steps(ctx, g);
  check_range(ctx, g);
  check_refused(ctx, g);
}

}  // namespace gpu_check
