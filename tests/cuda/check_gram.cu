// M of one expert as a host applies it on the GPU: images and energies against f64 on the host, in every
// layout and type; steps of Lanczos by what they must satisfy; what is refused.
#include <mpi_router/core/concepts.hpp>
#include <mpi_router/cuda/gram_operator.cuh>

#include "gpu_checks.hpp"
#include "gpu_support.hpp"
#include "told.hpp"

namespace gpu_check {
namespace {

static_assert(GramOperator<cuda::gram_operator<bf16>>);
static_assert(std::is_same_v<scalar_of<cuda::gram_operator<bf16>>, double>);

/// Memory of an operator, its device memory between guard zones.
struct operator_memory {
  std::size_t bytes;
  std::size_t staging_bytes;
  device_array<unsigned char> device;
  void* staging = nullptr;

  operator_memory(index_t f, index_t d, index_t vectors)
      : bytes(cuda::gram_operator<float>::workspace_bytes(f, d, vectors)),
        staging_bytes(cuda::gram_operator<float>::staging_bytes(d, vectors)),
        device(bytes) {
    must(cudaHostAlloc(&staging, staging_bytes, cudaHostAllocDefault), "cudaHostAlloc");
  }
  operator_memory(const operator_memory&) = delete;
  operator_memory& operator=(const operator_memory&) = delete;
  ~operator_memory() { cudaFreeHost(staging); }

  [[nodiscard]] cuda::workspace scratch() const { return {device.data(), bytes}; }
  [[nodiscard]] cuda::workspace host() const { return {staging, staging_bytes}; }
};

/// The matrix of an expert in device memory.
template <class P>
auto matrix_of(const P& p, index_t e) {
  using element = std::remove_pointer_t<decltype(p.view().data())>;
  const auto strides = p.place.strides;
  return matrix_view<element, device_space>(p.device.data() + p.place.starts[static_cast<std::size_t>(e)],
                                            p.place.shape.ffn_dim, p.place.shape.hidden_dim, strides.ffn,
                                            strides.hidden);
}

template <class T>
void check_images(const cuda::context& ctx, const typename problem<T, double>::spec& spec, generator& g) {
  const problem<T, double> p(spec, g);
  const auto [n, f, d] = spec.shape;
  const operator_memory memory(f, d, 0);
  for (index_t e = 0; e < n; ++e) {
    cuda::gram_operator<T> op(ctx, matrix_of(p, e), memory.scratch(), memory.host());
    const std::vector<double> x(p.r.begin() + e * d, p.r.begin() + (e + 1) * d);
    const reference_step expected(p, e, x.data());
    std::vector<double> u(x.size(), 7.0);
    std::vector<double> again(x.size(), 8.0);
    const double energy = op.apply(x, u);
    const double same = op.apply(x, again);
    const std::string name = "gram " + p.name + ", expert " + std::to_string(e);
    check(op.dimension() == d && op.ffn_dim() == f, name + ": extents");
    if (std::isfinite(expected.energy)) {
      const double most = f == 1 ? 1e-11 : 1e-13;  // the terms of a single dot may cancel
      check(difference(u.data(), expected.z.data(), d) <= most, name + ": the image");
      check(close(energy, expected.energy, most), name + ": the energy " + std::to_string(energy));
      check(std::memcmp(u.data(), again.data(), u.size() * sizeof(double)) == 0 && energy == same,
            name + ": not the same bits again");
    } else {
      check(!std::isfinite(energy), name + ": an energy that is finite, " + std::to_string(energy));
    }
  }
  check(memory.device.intact() && p.device.intact(), "gram " + p.name + ": wrote beside its memory");
}

template <class T>
void check_type(const cuda::context& ctx, generator& g, int effort) {
  for (int l = 0; l < layouts; ++l) {
    const auto order = static_cast<layout>(l);
    if (order == layout::fd_pointers || order == layout::df_pointers) {
      continue;  // a matrix has one pointer
    }
    const auto one = [&](index_t f, index_t d, int offset, bool specials) {
      check_images<T>(ctx, {{2, f, d}, order, 0.02, 1.0, offset, specials}, g);
    };
    one(64, 512, 0, false);
    one(768, 2048, 0, false);
    one(37, 301, 0, false);
    one(19, 264, 1, false);
    one(1, 1, 0, false);
    one(1, 700, 0, false);
    one(700, 1, 3, false);
    one(5, 257, 0, true);
    for (int i = 0; i < effort; ++i) {
      one(uniform(g, 1, 90), uniform(g, 1, 900), static_cast<int>(uniform(g, 0, 4)), uniform(g, 0, 2) == 0);
    }
  }
}

/// A basis in device memory whose vectors lie `stride` apart, NaN between and beyond them.
struct device_basis {
  index_t vectors, d, stride;
  device_array<double> memory;
  device_basis(index_t count, index_t dimension, index_t apart)
      : vectors(count), d(dimension), stride(apart), memory(static_cast<std::size_t>(count * apart)) {}
  [[nodiscard]] matrix_view<double, device_space> view() const {
    return {memory.data(), vectors, d, stride, 1};
  }
};

double dot(const double* x, const double* y, index_t n) {
  double sum = 0;
  for (index_t i = 0; i < n; ++i) {
    sum += x[i] * y[i];
  }
  return sum;
}

/// Unit vector k, and a random one that is orthogonal to it.
std::vector<double> random_beside(generator& g, index_t d, index_t k) {
  std::normal_distribution<double> normal;
  std::vector<double> x(static_cast<std::size_t>(d));
  for (auto& value : x) {
    value = normal(g);
  }
  x[static_cast<std::size_t>(k)] = 0;
  const double norm = std::sqrt(dot(x.data(), x.data(), d));
  for (auto& value : x) {
    value /= norm;
  }
  return x;
}

/// Steps in two calls from a start beside a deflated vector: the vectors are orthonormal, and M takes each to
/// what the numbers say, except for what is deflated.
template <class T>
void check_lanczos(const cuda::context& ctx, const expert_shape& shape, layout order, index_t apart,
                   generator& g) {
  constexpr index_t steps = 9;
  const problem<T, double> p({shape, order, 0.02}, g);
  const auto [n, f, d] = shape;
  const std::string name = "lanczos " + p.name + ", vectors " + std::to_string(apart) + " apart";
  const operator_memory memory(f, d, steps + 2);
  const device_basis basis(steps + 2, d, apart);
  cuda::gram_operator<T> op(ctx, matrix_of(p, 0), memory.scratch(), memory.host(), steps + 2);
  std::vector<double> deflated(static_cast<std::size_t>(d));
  deflated[static_cast<std::size_t>(d / 2)] = 1;
  op.store(deflated, basis.view(), 0);
  op.store(random_beside(g, d, d / 2), basis.view(), 1);
  const double scale = 0.3;
  std::vector<cuda::lanczos_step> found(steps);
  const index_t some = op.lanczos(basis.view(), {1, true, scale, 0}, std::span(found).first(4));
  check(some == 4, name + ": " + std::to_string(some) + " of 4 steps");
  const index_t rest =
      op.lanczos(basis.view(), {5, false, scale, found[3].left}, std::span(found).subspan(4));
  check(rest == steps - 4, name + ": " + std::to_string(rest) + " of 5 more steps");

  const auto all = basis.memory.host();
  const auto q = [&](index_t k) { return all.data() + k * apart; };
  double off = 0;
  for (index_t i = 0; i < steps + 2; ++i) {
    for (index_t k = 0; k <= i; ++k) {
      off = std::max(off, std::abs(dot(q(i), q(k), d) - (i == k ? 1 : 0)));
    }
  }
  check(off <= 1e-12, name + ": not orthonormal, by " + std::to_string(off));
  double wrong = 0;
  for (index_t k = 0; k < steps; ++k) {
    const reference_step image(p, 0, q(k + 1));
    const double kept = image.z[static_cast<std::size_t>(d / 2)];  // along what is deflated
    const auto& [along, left] = found[static_cast<std::size_t>(k)];
    for (index_t i = 0; i < d; ++i) {
      const double before = k > 0 ? found[static_cast<std::size_t>(k - 1)].left * q(k)[i] : 0;
      const double expected = along * q(k + 1)[i] + left * q(k + 2)[i] + before;
      const double got = image.z[static_cast<std::size_t>(i)] - (i == d / 2 ? kept : 0);
      wrong = std::max(wrong, std::abs(got / scale - expected));
    }
  }
  check(wrong <= 1e-12, name + ": the recurrence is off by " + std::to_string(wrong));

  const std::vector<double> y{0.5, -2.0, 3.0};
  std::vector<double> sum(static_cast<std::size_t>(d));
  op.combine(basis.view(), 2, y, sum);
  double apart_by = 0;
  for (index_t i = 0; i < d; ++i) {
    const double expected = 0.5 * q(2)[i] - 2.0 * q(3)[i] + 3.0 * q(4)[i];
    apart_by = std::max(apart_by, std::abs(sum[static_cast<std::size_t>(i)] - expected));
  }
  check(apart_by <= 1e-15 * 16, name + ": combined, off by " + std::to_string(apart_by));
  check(basis.memory.intact() && memory.device.intact(), name + ": wrote beside its memory");
}

/// Where nothing is left, and where an image is not finite.
void check_ends(const cuda::context& ctx, generator& g) {
  const auto run = [&](const problem<float, double>& p, std::size_t steps = 7) {
    const auto [n, f, d] = p.place.shape;
    const operator_memory memory(f, d, 8);
    const device_basis basis(8, d, d);
    cuda::gram_operator<float> op(ctx, matrix_of(p, 0), memory.scratch(), memory.host(), 8);
    op.store(random_beside(g, d, 0), basis.view(), 0);
    std::vector<cuda::lanczos_step> found(steps);
    found.resize(static_cast<std::size_t>(op.lanczos(basis.view(), {.scale = 100.0}, found)));
    return found;
  };
  const auto ends = [](const std::vector<cuda::lanczos_step>& found, double wanted) {
    const double last = found.back().left;
    return std::isnan(wanted) ? std::isnan(last) : last == wanted;
  };
  const auto two = run({{{1, 2, 40}}, g});  // x, and the two rows: three vectors
  check(two.size() == 3 && ends(two, 0), "lanczos of rank two: " + std::to_string(two.size()) + " steps");
  const auto whole = run({{{1, 50, 4}}, g}, 4);  // no more would fit the staging
  check(whole.size() <= 4 && ends(whole, 0), "lanczos of D = 4: " + std::to_string(whole.size()) + " steps");
  const auto zero = run({{{1, 6, 12}, layout::nfd, 0.0}, g}, 6);
  check(zero.size() == 1 && zero[0].along == 0 && ends(zero, 0), "lanczos of zeros");
  const auto huge = run({{{1, 6, 12}, layout::nfd, 1e37}, g}, 6);
  check(huge.size() == 6 && huge[0].along > 1e68, "lanczos of huge elements, summed in double");
  const auto bad = run({{{1, 6, 12}, layout::nfd, HUGE_VAL}, g}, 6);
  check(bad.size() == 1 && ends(bad, std::nan("")), "lanczos of what is not finite");
}

void check_empty(const cuda::context& ctx) {
  const device_array<float> weights(8);
  const operator_memory memory(4, 3, 0);
  cuda::gram_operator<float> none(ctx,
                                  row_major<device_space>(static_cast<const float*>(weights.data()), 0, 3),
                                  memory.scratch(), memory.host());
  const std::vector<double> x{1, 2, 3};
  std::vector<double> u(3, 7.0);
  check(none.apply(x, u) == 0 && u == std::vector<double>(3), "gram of F = 0: a zero image");
  cuda::gram_operator<float> flat(ctx,
                                  row_major<device_space>(static_cast<const float*>(weights.data()), 4, 0),
                                  memory.scratch(), memory.host());
  check(flat.apply(std::vector<double>{}, vector_view<double>()) == 0, "gram of D = 0: no energy");
}

void check_gram_refusals(const cuda::context& ctx) {
  const device_array<float> weights(12);
  const auto a = row_major<device_space>(static_cast<const float*>(weights.data()), 3, 4);
  const operator_memory memory(3, 4, 6);
  using gram = cuda::gram_operator<float>;
  const auto small = [](cuda::workspace w) {
    w.bytes -= 1;
    return w;
  };
  refused("a workspace of ", [&] { gram(ctx, a, small(memory.scratch()), memory.host(), 6); });
  refused("a workspace of ", [&] { gram(ctx, a, memory.scratch(), small(memory.host()), 6); });
  refused("null workspace", [&] { gram(ctx, a, {nullptr, 1 << 20}, memory.host(), 6); });
  gram op(ctx, a, memory.scratch(), memory.host(), 6);
  std::vector<double> x(4), u(4), y(7);
  refused("the vectors have 3 and 4", [&] { op.apply(std::span(x).first(3), u); });
  refused("input and output overlap", [&] { op.apply(x, x); });
  const device_basis basis(6, 4, 4);
  refused("a vector of 3 elements in a basis of 4",
          [&] { op.store(std::span(x).first(3), basis.view(), 0); });
  refused("vectors 6 to 7 of a basis [6, 4]", [&] { op.store(x, basis.view(), 6); });
  refused("vectors 0 to 7", [&] { op.combine(basis.view(), 0, y, u); });
  std::vector<cuda::lanczos_step> found(3);
  refused("vectors 0 to 7", [&] { op.lanczos(basis.view(), {3, true, 1, 0}, found); });
  const device_basis wide(6, 5, 5);
  refused("of a basis [6, 5]", [&] { op.store(x, wide.view(), 0); });
}

}  // namespace

void check_gram(const cuda::context& ctx, int effort) {
  generator g(31);
  check_gram_refusals(ctx);
  check_empty(ctx);
  check_type<bf16>(ctx, g, effort);
  check_type<f16>(ctx, g, effort);
  check_type<float>(ctx, g, effort);
  check_type<double>(ctx, g, effort);
  check_lanczos<bf16>(ctx, {1, 64, 512}, layout::nfd, 512, g);
  check_lanczos<bf16>(ctx, {1, 53, 301}, layout::ndf, 303, g);
  check_lanczos<f16>(ctx, {1, 64, 520}, layout::nd2f_interleaved, 522, g);
  check_lanczos<float>(ctx, {1, 40, 130}, layout::padded_fd, 130, g);
  check_lanczos<double>(ctx, {1, 33, 77}, layout::n2fd_interleaved, 78, g);
  check_ends(ctx, g);
}

}  // namespace gpu_check
