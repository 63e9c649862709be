// What one_read_backend gives to kernels and what to the reference, with kernels that are plain loops and
// count their calls.
#include <mpi_router/backend/dense.hpp>
#include <mpi_router/backend/one_read.hpp>

#include <doctest/doctest.h>
#include <support/apart.hpp>
#include <support/layouts.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <limits>
#include <vector>

#include "strided.hpp"

namespace test_one_read {
using namespace mpi_router;
using namespace test_support;

namespace {

enum class mode : unsigned char { write, accumulate };
constexpr index_t shortest = 5;
int kernel_calls = 0;
int gradients_from_kernels = 0;

/// Kernels by definition: A is [F, D], whatever way it lies.
template <class T>
struct loops {
  using S = accumulator_t<T>;
  static matrix_view<const T> view(const core::stored_matrix& a) {
    const auto stored = matrix_view<const T>(static_cast<const T*>(a.data), a.rows, a.cols, a.stride, 1);
    return a.by_neurons ? stored : stored.transposed();
  }
  static S apply(const core::stored_matrix& a, const S* x, S* u) {
    ++kernel_calls;
    const auto m = view(a);
    S energy{0};
    for (index_t d = 0; d < m.cols(); ++d) u[d] = S{0};
    for (index_t f = 0; f < m.rows(); ++f) {
      S y{0};
      for (index_t d = 0; d < m.cols(); ++d) y += widen<S>(m(f, d)) * x[d];
      for (index_t d = 0; d < m.cols(); ++d) u[d] += widen<S>(m(f, d)) * y;
      energy += y * y;
    }
    return energy;
  }
  static void dots(const core::stored_matrix& a, const S* x, S* y) {
    ++kernel_calls;
    const auto* data = static_cast<const T*>(a.data);
    for (index_t r = 0; r < a.rows; ++r) {
      y[r] = S{0};
      for (index_t c = 0; c < a.cols; ++c) y[r] += widen<S>(data[r * a.stride + c]) * x[c];
    }
  }
  static void axpys(const core::stored_matrix& a, const S* y, S* u) {
    ++kernel_calls;
    const auto* data = static_cast<const T*>(a.data);
    for (index_t c = 0; c < a.cols; ++c) u[c] = S{0};
    for (index_t r = 0; r < a.rows; ++r) {
      for (index_t c = 0; c < a.cols; ++c) u[c] += widen<S>(data[r * a.stride + c]) * y[r];
    }
  }
  template <class G>
  static void update(const core::stored_matrix& a, const core::pull_back_work<S>& w) {
    ++gradients_from_kernels;
    auto* to = static_cast<G*>(w.gradient);
    const auto m = view(a);
    for (index_t f = 0; f < m.rows(); ++f) {
      for (index_t d = 0; d < m.cols(); ++d) {
        G& g = to[a.by_neurons ? f * w.gradient_stride + d : d * w.gradient_stride + f];
        const S change = w.y[f] * w.q[d] + w.w[f] * w.p[d];
        g = narrow<G>(w.accumulate ? widen<S>(g) + change : change);
      }
    }
  }
  static void pull_back(const core::stored_matrix& a, const core::pull_back_work<S>& w) {
    const auto m = view(a);
    std::vector<S> u(static_cast<std::size_t>(m.cols()));
    apply(a, w.q, w.u);
    for (index_t f = 0; f < m.rows(); ++f) {
      w.y[f] = w.w[f] = S{0};
      for (index_t d = 0; d < m.cols(); ++d) {
        w.y[f] += widen<S>(m(f, d)) * w.p[d];
        w.w[f] += widen<S>(m(f, d)) * w.q[d];
      }
    }
    if (w.element == core::gradient_element::sum) update<S>(a, w);
    if (w.element == core::gradient_element::weight) update<T>(a, w);
  }
  static void apply_two(const core::stored_matrix& a, const S* const* x, S* const* u, S* energy) {
    for (int k = 0; k < 2; ++k) energy[k] = apply(a, x[k], u[k]);
    --kernel_calls;  // one read
  }
  static double apply_in_double(const core::stored_matrix& a, const double* x, double* u) {
    ++kernel_calls;
    const auto m = view(a);
    return reference{}.apply<T, double>(m, {x, m.cols()}, {u, m.cols()});
  }
  static void apply_two_in_double(const core::stored_matrix& a, const double* const* x, double* const* u,
                                  double* energy) {
    for (int k = 0; k < 2; ++k) energy[k] = apply_in_double(a, x[k], u[k]);
    --kernel_calls;  // one read
  }
  static constexpr core::kernel_table<S> table{.shortest_run = shortest,
                                               .apply = apply,
                                               .apply_two = apply_two,
                                               .pull_back = pull_back,
                                               .dots = dots,
                                               .axpys = axpys,
                                               .apply_in_double = apply_in_double,
                                               .apply_two_in_double = apply_two_in_double};
};

struct counted {
  template <storage_format Format>
  static constexpr bool has = true;
  template <storage_format Format>
  [[nodiscard]] static constexpr const auto& table() noexcept {
    static_assert(Format == storage_format::f64 || Format == storage_format::bf16);
    if constexpr (Format == storage_format::f64) {
      return loops<double>::table;
    } else {
      return loops<bf16>::table;
    }
  }
};
using backend = one_read_backend<counted>;

template <class T>
bool is_fast(const matrix_view<const T>& a) {
  return (a.col_stride() == 1 && a.cols() >= shortest) || (a.row_stride() == 1 && a.rows() >= shortest);
}
template <class S>
void equals(strided<S>& got, const std::vector<double>& want) {
  CHECK(got.gaps_untouched());
  for (index_t i = 0; i < got.size; ++i) {
    CHECK(close(static_cast<double>(got.view()[i]), want[static_cast<std::size_t>(i)], 1e-5, 5));
  }
}
template <class T, class Check>
void for_every_matrix(Check check) {
  random_source random(3);
  for (const auto& [F, D] : {std::pair<index_t, index_t>{4, 5}, {5, 4}, {5, 5}, {6, 5}, {4, 4}, {7, 9}}) {
    for (const layout l : all_layouts) {
      const stored_matrix<T> stored(random_matrix<double>(random, F, D), F, D, l, 1);
      CAPTURE(F);
      CAPTURE(D);
      CAPTURE(std::string(to_string(l)));
      check(random, stored.view(), l);
    }
  }
}

}  // namespace

TEST_CASE_TEMPLATE("two images, and images in double: kernels where neurons are contiguous", T, double,
                   bf16) {
  using S = accumulator_t<T>;
  for_every_matrix<T>([](random_source& random, const matrix_view<const T>& a, layout) {
    const bool by_neurons = a.col_stride() == 1 && a.cols() >= shortest;
    for (const index_t stride : {1, 2}) {
      strided<S> x(random, a.cols(), stride), other(random, a.cols(), 1), u(a.cols(), 1), v(a.cols(), 1);
      CHECK(backend{}.shares_reads<S>(a) == by_neurons);
      kernel_calls = 0;
      const auto energies = backend{}.apply_two<T, S>(a, {x.read(), other.read()}, {u.view(), v.view()});
      CHECK(kernel_calls == (by_neurons && stride == 1 ? 1 : is_fast(a) ? (stride == 1 ? 2 : 1) : 0));
      equals(u, lifted(a, product(a, x.read())));
      equals(v, lifted(a, product(a, other.read())));
      CHECK(energies[1] == backend{}.apply<T, S>(a, other.read(), v.view()));
      if constexpr (!std::is_same_v<T, double>) {
        strided<double> wide(random, a.cols(), stride), beside(random, a.cols(), 1), image(a.cols(), 1),
            second(a.cols(), 1);
        CHECK(backend{}.sums_in_double(a) == by_neurons);
        kernel_calls = 0;
        backend{}.apply<T, double>(a, wide.read(), image.view());
        CHECK(kernel_calls == (by_neurons && stride == 1 ? 1 : 0));
        equals(image, lifted(a, product(a, wide.read())));
        CHECK(backend{}.shares_reads<double>(a) == by_neurons);
        kernel_calls = 0;
        const auto of_both =
            backend{}.apply_two<T, double>(a, {wide.read(), beside.read()}, {image.view(), second.view()});
        CHECK(kernel_calls == (by_neurons ? 1 : 0));
        equals(image, lifted(a, product(a, wide.read())));
        equals(second, lifted(a, product(a, beside.read())));
        CHECK(of_both[1] == backend{}.apply<T, double>(a, beside.read(), second.view()));
      }
    }
  });
}

TEST_CASE("apply_two: what is written overlaps nothing else") {
  const std::vector<double> data(15, 1.0);
  const auto op = gram(row_major(data.data(), 3, 5));
  std::vector<double> all(20, 1.0);
  const auto at = [&](index_t i) { return vector_view<double>(all.data() + i, 5); };
  const auto refused = [&](index_t x0, index_t x1, index_t u0, index_t u1) {
    try {
      static_cast<void>(op.apply_two({at(x0), at(x1)}, {at(u0), at(u1)}));
    } catch (const usage_error& error) {
      return std::string(error.what()).find("overlap") != std::string::npos;
    }
    return false;
  };
  CHECK_FALSE(refused(0, 5, 10, 15));
  CHECK_FALSE(refused(0, 0, 10, 15));  // the same vector twice
  CHECK(refused(0, 5, 3, 15));
  CHECK(refused(0, 5, 5, 15));
  CHECK(refused(0, 5, 10, 4));
  CHECK(refused(0, 5, 10, 9));
  CHECK(refused(0, 5, 10, 14));
}

TEST_CASE_TEMPLATE("apply, project and lift: kernels where all is contiguous, the reference where not", T,
                   double, bf16) {
  using S = accumulator_t<T>;
  for_every_matrix<T>([](random_source& random, const matrix_view<const T>& a, layout) {
    for (const auto& [in, out] : {std::pair<index_t, index_t>{1, 1}, {2, 1}, {1, 2}, {3, 2}}) {
      const int expected = is_fast(a) && in == 1 && out == 1 ? 1 : 0;
      strided<S> x(random, a.cols(), in), y(a.rows(), out), u(a.cols(), out), v(random, a.rows(), in);
      const auto projected = product(a, x.read());
      kernel_calls = 0;
      const S energy = backend{}.apply<T, S>(a, x.read(), u.view());
      CHECK(kernel_calls == expected);
      equals(u, lifted(a, projected));
      double squares = 0;
      for (const double p : projected) squares += p * p;
      CHECK(close(static_cast<double>(energy), squares, 1e-5, 1));
      kernel_calls = 0;
      backend{}.project<T, S>(a, x.read(), y.view());
      CHECK(kernel_calls == expected);
      equals(y, projected);
      kernel_calls = 0;
      backend{}.lift<T, S>(a, v.read(), u.view());
      CHECK(kernel_calls == expected);
      equals(u, product(a.transposed(), v.read()));
    }
  });
}

namespace {

template <class T, class G>
void pulls_back() {
  using S = accumulator_t<T>;
  constexpr bool has_element = std::is_same_v<G, S> || std::is_same_v<G, T>;
  for_every_matrix<T>([](random_source& random, const matrix_view<const T>& a, layout) {
    const index_t F = a.rows(), D = a.cols();
    for (int gapped = 0; gapped < 6; ++gapped) {  // none, or one of p, q, y, w, u
      const auto stride = [&](int which) -> index_t { return gapped == which ? 2 : 1; };
      strided<S> p(random, D, stride(1)), q(random, D, stride(2)), y(F, stride(3)), w(F, stride(4)),
          u(D, stride(5));
      const auto want_y = product(a, p.read());
      const auto want_w = product(a, q.read());
      const auto check_vectors = [&] {
        equals(y, want_y);
        equals(w, want_w);
        equals(u, lifted(a, want_w));
      };
      kernel_calls = 0;
      backend{}.pull_back<T, S>(a, p.read(), q.read(), y.view(), w.view(), u.view());
      CHECK((kernel_calls > 0) == (is_fast(a) && gapped == 0));
      check_vectors();
      for (const layout l : {layout::padded_rows, layout::padded_columns, layout::both_strided}) {
        for (const mode m : {mode::write, mode::accumulate}) {
          const std::vector<double> before(static_cast<std::size_t>(F * D), 3);
          stored_matrix<G> gradient(before, F, D, l);
          const bool by_rows = a.col_stride() == 1 && D >= shortest;
          const bool unit = l == (by_rows ? layout::padded_rows : layout::padded_columns);
          kernel_calls = gradients_from_kernels = 0;
          backend{}.pull_back(a, p.read(), q.read(), y.view(), w.view(), u.view(), gradient.view(), m);
          // With no kernel for the gradient, the vectors still come from one.
          CHECK((kernel_calls > 0) == (is_fast(a) && gapped == 0));
          CHECK((gradients_from_kernels > 0) == (has_element && unit && is_fast(a) && gapped == 0));
          check_vectors();
          for (index_t f = 0; f < F; ++f) {
            for (index_t d = 0; d < D; ++d) {
              const auto i = static_cast<std::size_t>(f);
              const double change =
                  want_y[i] * static_cast<double>(q.view()[d]) + want_w[i] * static_cast<double>(p.view()[d]);
              const double want = (m == mode::accumulate ? 3 : 0) + change;
              CHECK(close(widen<double>(gradient.view()(f, d)), want, 1e-5 + tolerance<G>.storage, 5));
            }
          }
        }
      }
    }
  });
}

}  // namespace

TEST_CASE("the fused backward: gradients of the sums' type, of the weights' type, and of another") {
  pulls_back<double, double>();
  pulls_back<bf16, float>();
  pulls_back<bf16, bf16>();
  pulls_back<bf16, f16>();
}

#if MPIROUTER_HAS_EXCEPTIONS
TEST_CASE("shapes that do not fit are refused") {
  const std::vector<double> a(30, 1);
  const auto A = row_major(a.data(), 6, 5);
  std::vector<double> x(40, 1), u(40), y(40), w(40), g(90);
  using in = vector_view<const double>;
  using out = vector_view<double>;
  for (int wrong = -1; wrong < 7; ++wrong) {
    const auto size = [&](int which, index_t right) { return wrong == which ? right + 1 : right; };
    const auto vectors = [&] {
      backend{}.pull_back<double, double>(A, in(x.data(), size(0, 5)), in(x.data(), size(1, 5)),
                                          out(y.data(), size(2, 6)), out(w.data(), size(3, 6)),
                                          out(u.data(), size(4, 5)));
    };
    const auto with_gradient = [&] {
      backend{}.pull_back(A, in(x.data(), size(0, 5)), in(x.data(), size(1, 5)), out(y.data(), size(2, 6)),
                          out(w.data(), size(3, 6)), out(u.data(), size(4, 5)),
                          row_major(g.data(), size(5, 6), size(6, 5)), mode::write);
    };
    const std::string words =
        wrong < 5 ? "pull_back: A is [F = 6, D = 5], but p, q and u" : "but the gradient is [";
    if (wrong < 0) {
      CHECK(message_of(vectors) == "");
      CHECK(message_of(with_gradient) == "");
    } else {
      if (wrong < 5) CHECK(refused(vectors, words));
      CHECK(refused(with_gradient, words));
    }
  }
  CHECK(refused(
      [&] {
        backend{}.pull_back(A, in(x.data(), 5), in(x.data(), 5), out(y.data(), 6), out(w.data(), 6),
                            out(u.data(), 5), row_major(g.data(), 5, 6), mode::write);
      },
      "but the gradient is [5, 6]"));

  const auto op = gram(A, backend{});
  refuses_every_overlap<double>({{"input", 5, false}, {"output", 5, true}},
                                [&](const auto& at) { op.apply(in(at[0], 5), out(at[1], 5)); });
  refuses_every_overlap<double>({{"input", 5, false}, {"output", 5, true}},
                                [&](const auto& at) { op.apply_scaled(in(at[0], 5), out(at[1], 5)); });
  refuses_every_overlap<double>({{"input", 5, false}, {"output", 6, true}},
                                [&](const auto& at) { op.project(in(at[0], 5), out(at[1], 6)); });
  refuses_every_overlap<double>({{"input", 6, false}, {"output", 5, true}},
                                [&](const auto& at) { op.lift(in(at[0], 6), out(at[1], 5)); });
}
#endif

}  // namespace test_one_read
