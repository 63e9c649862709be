// Every kind of shard by name on GPUs, forward and backward, against one GPU with all experts. One source for
// each storage type.
#pragma once

#include "sharded_support.hpp"

#include <mpi_router/distributed/device_loopback.cuh>
#include <mpi_router/distributed/sharded_router_rows.cuh>
#include <mpi_router/distributed/sharded_router_rows_vjp.cuh>
#ifdef MPIROUTER_TEST_NCCL
#include <mpi_router/distributed/nccl.cuh>

#include <thread>
#endif

#include <limits>
#include <memory>
#include <random>

namespace sharded_checks {

enum class shard_kind { experts, neurons, both, fused, rows, columns };
inline const char* name_of(shard_kind kind) {
  const char* const names[] = {"experts", "neurons", "experts and neurons", "fused rows", "rows", "columns"};
  return names[static_cast<int>(kind)];
}

/// A layer on the host: weights [N, F, D], the router, what comes back for the rows.
template <class T>
struct whole_layer {
  expert_shape shape;
  std::vector<T> weights;
  std::vector<float> router, upstream;

  whole_layer(const expert_shape& s, unsigned seed, float scale = 0.125F) : shape(s) {
    std::mt19937 g(seed);
    std::normal_distribution<float> normal;
    const auto [n, f, d] = s;
    for (index_t i = 0; i < n * f * d; ++i) weights.push_back(narrow<T>(normal(g) * scale));
    for (index_t i = 0; i < n * d; ++i) router.push_back(normal(g)), upstream.push_back(normal(g));
    if (n > 1) std::fill_n(router.begin() + d, d, 0.0F);  // a row without a step
  }
};

template <class T>
std::vector<whole_layer<T>> model_of(float large) {
  std::vector<whole_layer<T>> model{
      {{0, 8, 64}, 1},   {{5, 33, 130}, 2},        {{7, 16, 256}, 3}, {{1, 40, 1024}, 4},
      {{3, 9, 9000}, 5}, {{3, 24, 128}, 6, large}, {{2, 19, 77}, 7},  {{4, 24, 128}, 8, 1 / large},
      {{9, 12, 64}, 9},  {{4, 24, 128}, 10}};
  model.back().weights[2 * 24 * 128 + 5] = narrow<T>(std::numeric_limits<float>::quiet_NaN());
  return model;
}

/// Layers that are alike, which go as one batch.
template <class T>
std::vector<whole_layer<T>> model_of_one_shape() {
  return {{{7, 19, 130}, 11}, {{7, 19, 130}, 12}, {{7, 19, 130}, 13}};
}

/// A rank's part [first, end) of an axis.
struct cut {
  index_t first, end;
  [[nodiscard]] index_t size() const { return end - first; }
};
inline cut cut_of(index_t extent, const std::vector<index_t>& cuts, std::size_t rank) {
  return {extent * cuts[rank] / cuts.back(), extent * cuts[rank + 1] / cuts.back()};
}

/// Where a rank's part lies, and which elements of [N, F, D] it has, in the order of its memory; −1: up rows.
struct rank_part {
  shard_kind kind;
  expert_shape whole;
  cut experts, neurons, rows, columns;
  std::vector<index_t> elements;

  rank_part(shard_kind k, const expert_shape& s, const std::vector<index_t>& cuts, std::size_t rank)
      : kind(k),
        whole(s),
        experts{0, s.num_experts},
        neurons{0, s.ffn_dim},
        rows{},
        columns{0, s.hidden_dim} {
    const std::size_t ranks = cuts.size() - 1;
    switch (kind) {
      case shard_kind::experts: experts = cut_of(s.num_experts, cuts, rank); break;
      case shard_kind::neurons: neurons = cut_of(s.ffn_dim, cuts, rank); break;
      case shard_kind::both: {  // two groups of experts where that goes, each cut by neurons
        const std::size_t groups = ranks % 2 == 0 ? 2 : 1, of_group = ranks / groups;
        std::vector<index_t> even;
        for (std::size_t i = 0; i <= groups; ++i) even.push_back(static_cast<index_t>(i));
        experts = cut_of(s.num_experts, even, rank / of_group);
        even.clear();
        for (std::size_t i = 0; i <= of_group; ++i) even.push_back(static_cast<index_t>(i));
        neurons = cut_of(s.ffn_dim, even, rank % of_group);
        break;
      }
      case shard_kind::fused:
        rows = cut_of(2 * s.ffn_dim, cuts, rank);
        add_fused();
        return;
      case shard_kind::rows: {  // of all neurons, from anywhere to anywhere
        rows = cut_of(s.num_experts * s.ffn_dim, cuts, rank);
        for (index_t i = rows.first * s.hidden_dim; i < rows.end * s.hidden_dim; ++i) elements.push_back(i);
        return;
      }
      case shard_kind::columns: columns = cut_of(s.hidden_dim, cuts, rank); break;
    }
    for (index_t e = experts.first; e < experts.end; ++e) {
      for (index_t f = neurons.first; f < neurons.end; ++f) {
        for (index_t d = columns.first; d < columns.end; ++d) {
          elements.push_back((e * s.ffn_dim + f) * s.hidden_dim + d);
        }
      }
    }
  }
  /// The experts, or columns, that something is here of.
  [[nodiscard]] index_t count() const {
    switch (kind) {
      case shard_kind::columns: return columns.size();
      case shard_kind::rows:
        return rows.size() == 0 ? 0 : (rows.end - 1) / whole.ffn_dim - rows.first / whole.ffn_dim + 1;
      default: return experts.size();
    }
  }

  template <class T>
  [[nodiscard]] neuron_shard<T, device_space> neurons_at(T* data) const {
    const auto [n, f, d] = whole;
    const expert_batch_view<T, device_space> local =
        experts_nfd<device_space>(data, {experts.size(), neurons.size(), d});
    switch (kind) {
      case shard_kind::experts: return shard_of_experts(local, experts.first, n);
      case shard_kind::neurons: return shard_of_neurons(local, neurons.first, f);
      case shard_kind::both: return shard_of_experts_and_neurons(local, experts.first, neurons.first, whole);
      case shard_kind::fused: return shard_of_fused_rows<device_space>(data, rows.first, rows.size(), whole);
      default:
        return shard_of_rows(matrix_view<T, device_space>(data, rows.size(), d, d, 1), rows.first, whole);
    }
  }
  template <class T>
  [[nodiscard]] column_shard<T, device_space> columns_at(T* data) const {
    return shard_of_columns(
        experts_nfd<device_space>(data, {whole.num_experts, whole.ffn_dim, columns.size()}), columns.first,
        whole.hidden_dim);
  }

 private:
  void add_fused() {
    for (index_t e = 0; e < whole.num_experts; ++e) {
      for (index_t row = rows.first; row < rows.end; ++row) {
        for (index_t d = 0; d < whole.hidden_dim; ++d) {
          elements.push_back(row < whole.ffn_dim ? (e * whole.ffn_dim + row) * whole.hidden_dim + d : -1);
        }
      }
    }
  }
};

/// What one rank, or one GPU, makes of a model.
template <class G, class O>
struct made {
  std::vector<std::vector<O>> rows;
  std::vector<std::vector<float>> to_router;
  std::vector<std::vector<G>> to_weights;
  std::vector<std::vector<double>> rayleigh, residual;
  std::vector<std::vector<status>> statuses;
};
template <class M>
bool same(const M& a, const M& b, bool weights) {
  bool good = a.rows.size() == b.rows.size();
  for (std::size_t l = 0; l < a.rows.size(); ++l) {
    good = good && same_bits(a.rows[l], b.rows[l]) && same_bits(a.to_router[l], b.to_router[l]) &&
           same_bits(a.rayleigh[l], b.rayleigh[l]) && same_bits(a.residual[l], b.residual[l]) &&
           same_bits(a.statuses[l], b.statuses[l]) &&
           (!weights || same_bits(a.to_weights[l], b.to_weights[l]));
  }
  return good;
}

/// A layer in device memory: the weights `elements` of it, everything else whole.
template <class T, class G, class R, class O>
struct layer_memory {
  expert_shape shape;
  buffer<T> weights;
  buffer<G> to_weights;
  buffer<R> router;
  buffer<O> rows;
  buffer<float> upstream, to_router, direction;
  buffer<double> norms, rayleigh, residual;
  buffer<status> statuses;

  layer_memory(const whole_layer<T>& l, const std::vector<index_t>& elements, float share)
      : shape(l.shape),
        weights(picked(l.weights, elements)),
        to_weights(std::vector<G>(elements.size(), narrow<G>(0.25F))),
        router(narrowed<R>(l.router, 1)),
        rows(l.router.size()),
        upstream(narrowed<float>(l.upstream, share)),
        to_router(l.router.size()),
        direction(l.router.size()),
        norms(experts()),
        rayleigh(experts()),
        residual(experts()),
        statuses(experts()) {}
  [[nodiscard]] std::size_t experts() const { return static_cast<std::size_t>(shape.num_experts); }
  static std::vector<T> picked(const std::vector<T>& all, const std::vector<index_t>& elements) {
    std::vector<T> out;
    for (const index_t i : elements)
      out.push_back(i < 0 ? narrow<T>(3.0F) : all[static_cast<std::size_t>(i)]);
    return out;
  }
  template <class U>
  static std::vector<U> narrowed(const std::vector<float>& all, float share) {
    std::vector<U> out;
    for (const float x : all) out.push_back(narrow<U>(x * share));
    return out;
  }
  template <class U>
  [[nodiscard]] matrix_view<U, device_space> matrix(const buffer<U>& b) const {
    return {b.data(), shape.num_experts, shape.hidden_dim, shape.hidden_dim, 1};
  }
  [[nodiscard]] cuda::saved_step saved() const { return {direction.data(), norms.data(), statuses.data()}; }
  [[nodiscard]] cuda::step_by_products told() const {
    cuda::step_by_products t;
    t.rayleigh = rayleigh.data();
    t.residual = residual.data();
    return t;
  }
  void read(made<G, O>& out) const {
    out.rows.push_back(rows.host());
    out.to_router.push_back(to_router.host());
    out.to_weights.push_back(to_weights.host());
    out.rayleigh.push_back(rayleigh.host());
    out.residual.push_back(residual.host());
    out.statuses.push_back(statuses.host());
  }
};

/// What is checked of a kind: how the experts are cut, what is given, and how near it has to be.
struct kind_case {
  shard_kind kind;
  std::vector<index_t> cuts;
  cuda::step_options options;
  gradient_mode mode;
  tokens_of_rows tokens;
  bool with_most;  // the message is as small as it can be
  [[nodiscard]] std::string name() const {
    return std::string(name_of(kind)) + " on " + std::to_string(cuts.size() - 1) +
           (mode == gradient_mode::accumulate ? ", added" : ", written") +
           (tokens == tokens_of_rows::split_over_ranks ? ", split tokens" : "") + (with_most ? ", most" : "");
  }
};
struct tolerance {
  double rows, column_rows, to_router, to_weights;
};

template <class T, class G, class R, class O>
struct kinds {
  using memory = layer_memory<T, G, R, O>;
  using outcome = made<G, O>;

  static outcome on_one(const std::vector<whole_layer<T>>& model, const kind_case& c) {
    outcome out;
    const auto ctx = cuda::make_context();
    for (const auto& l : model) {
      const rank_part all(shard_kind::experts, l.shape, {0, 1}, 0);
      const memory h(l, all.elements, 1);
      const auto weights = experts_nfd<device_space>(static_cast<const T*>(h.weights.data()), l.shape);
      const auto to_weights = experts_nfd<device_space>(h.to_weights.data(), l.shape);
      const std::size_t bytes = std::max(cuda::router_rows_workspace(ctx, weights),
                                         cuda::router_rows_vjp_workspace(ctx, weights, to_weights, c.mode));
      const buffer<unsigned char> scratch(bytes);
      cuda::router_rows(ctx, weights, h.matrix(h.router), h.matrix(h.rows), h.told(), h.saved(),
                        {scratch.data(), bytes}, c.options);
      cuda::router_rows_vjp(ctx, weights, h.matrix(h.router), h.saved(), h.matrix(h.upstream),
                            h.matrix(h.to_router), to_weights, c.mode, {scratch.data(), bytes}, c.options);
      must(cudaDeviceSynchronize());
      h.read(out);
    }
    return out;
  }

  template <bool columns, class Comm>
  static outcome on_rank(const Comm& comm, const std::vector<whole_layer<T>>& model, const kind_case& c,
                         bool captured, void* work) {
    using shard =
        std::conditional_t<columns, column_shard<const T, device_space>, neuron_shard<const T, device_space>>;
    using to_shard =
        std::conditional_t<columns, column_shard<G, device_space>, neuron_shard<G, device_space>>;
    cudaStream_t stream;
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const auto ctx = cuda::make_context(stream);
    const auto at = [](const rank_part& part, auto* data) {
      if constexpr (columns) {
        return part.columns_at(data);
      } else {
        return part.neurons_at(data);
      }
    };
    std::vector<std::unique_ptr<memory>> held;
    std::vector<cuda::sharded_layer<shard, R, O>> forward;
    std::vector<cuda::sharded_layer_vjp<shard, to_shard, R, float, float>> backward;
    const bool split = c.tokens == tokens_of_rows::split_over_ranks;
    const auto ranks = static_cast<float>(comm.size());
    const auto rank = static_cast<std::size_t>(comm.rank());
    const float share = split ? 2 * static_cast<float>(rank + 1) / (ranks * (ranks + 1)) : 1.0F;
    for (const auto& l : model) {
      const rank_part part(c.kind, l.shape, c.cuts, rank);
      index_t most = 0;
      for (std::size_t r = 0; c.with_most && r + 1 < c.cuts.size(); ++r) {
        most = std::max(most, rank_part(c.kind, l.shape, c.cuts, r).count());
      }
      held.push_back(std::make_unique<memory>(l, part.elements, share));
      const memory& h = *held.back();
      const shard experts = at(part, static_cast<const T*>(h.weights.data()));
      forward.push_back({experts, h.matrix(h.router), h.matrix(h.rows), h.told(), h.saved(), most});
      backward.push_back({experts, h.matrix(h.router), h.saved(), h.matrix(h.upstream), h.matrix(h.to_router),
                          at(part, h.to_weights.data()), most});
    }
    const std::span<const cuda::sharded_layer<shard, R, O>> f(forward);
    const std::span<const cuda::sharded_layer_vjp<shard, to_shard, R, float, float>> b(backward);
    const std::size_t forward_bytes = cuda::sharded_router_rows_workspace(ctx, f, comm);
    const std::size_t backward_bytes =
        cuda::sharded_router_rows_vjp_workspace(ctx, b, comm, c.mode, c.tokens);
    const buffer<unsigned char> scratch(std::max(forward_bytes, backward_bytes));
    if (work == nullptr) work = scratch.data();
    run_on(stream, captured, [&] {
      cuda::sharded_router_rows(ctx, comm, f, {work, forward_bytes}, c.options);
      cuda::sharded_router_rows_vjp(ctx, comm, b, c.mode, {work, backward_bytes}, c.options, c.tokens);
    });
    outcome out;
    for (const auto& h : held) h->read(out);
    must(cudaStreamDestroy(stream));
    return out;
  }
  template <class Comm>
  static outcome on_rank(const Comm& comm, const std::vector<whole_layer<T>>& model, const kind_case& c,
                         bool captured, void* work = nullptr) {
    return c.kind == shard_kind::columns ? on_rank<true>(comm, model, c, captured, work)
                                         : on_rank<false>(comm, model, c, captured, work);
  }

  /// A rank that writes to the others.
  static outcome on_peer(const cuda::device_loopback_communicator& comm,
                         const std::vector<whole_layer<T>>& model, const kind_case& c) {
    const buffer<unsigned char> work(std::size_t{64} << 20);
    return on_rank(cuda::device_loopback_peer(comm, work.data()), model, c, false, work.data());
  }

  static void compare(const std::string& what, const std::vector<outcome>& ranks, const outcome& expected,
                      const std::vector<whole_layer<T>>& model, const kind_case& c, const tolerance& near) {
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      check(same(ranks[0], ranks[r], false), what + ": other bits on rank " + std::to_string(r));
      for (std::size_t l = 0; l < model.size(); ++l) {
        const outcome& is = ranks[r];
        const auto within = [&](double off, double bound, const char* which) {
          char text[64];
          std::snprintf(text, sizeof(text), " off by %.1e", off);
          check(off <= bound,
                what + ", layer " + std::to_string(l) + ", rank " + std::to_string(r) + ": " + which + text);
        };
        within(difference(is.rows[l], expected.rows[l]),
               c.kind == shard_kind::columns ? near.column_rows : near.rows, "rows");
        within(difference(is.rayleigh[l], expected.rayleigh[l]), c.kind == shard_kind::columns ? 5e-6 : 1e-6,
               "rayleigh");
        within(difference(is.residual[l], expected.residual[l]), 1e-4, "residual");
        check(same_bits(is.statuses[l], expected.statuses[l]),
              what + ", layer " + std::to_string(l) + ", rank " + std::to_string(r) + ": statuses");
        within(difference(is.to_router[l], expected.to_router[l]), near.to_router, "gradient to the router");
        std::vector<G> mine, untouched;
        const rank_part part(c.kind, model[l].shape, c.cuts, r);
        for (std::size_t i = 0; i < part.elements.size(); ++i) {
          const index_t element = part.elements[i];
          if (element < 0) untouched.push_back(is.to_weights[l][i]);
          mine.push_back(element < 0 ? is.to_weights[l][i]
                                     : expected.to_weights[l][static_cast<std::size_t>(element)]);
        }
        within(difference(is.to_weights[l], mine), near.to_weights, "gradient to the weights");
        check(std::all_of(untouched.begin(), untouched.end(),
                          [](const G& g) { return widen<double>(g) == 0.25; }),
              what + ": wrote into the up rows");
      }
    }
  }

  static std::vector<kind_case> cases(const std::vector<index_t>& cuts) {
    std::vector<kind_case> all;
    int turn = 0;
    for (const auto kind : {shard_kind::experts, shard_kind::neurons, shard_kind::both, shard_kind::fused,
                            shard_kind::rows, shard_kind::columns}) {
      for (const auto tokens : {tokens_of_rows::same_on_all_ranks, tokens_of_rows::split_over_ranks}) {
        kind_case c{kind, cuts, {}, gradient_mode::write, tokens, false};
        c.options.radius = router_radius::scale_free(4);
        c.options.degenerate = turn % 2 == 0 ? degenerate_row::zero : degenerate_row::keep;
        c.mode = turn % 4 < 2 ? gradient_mode::write : gradient_mode::accumulate;
        c.with_most = turn % 3 != 0;
        all.push_back(c);
        ++turn;
      }
    }
    return all;
  }

  /// Ranks that are threads of this program, all on the GPU at hand.
  static void on_one_gpu(const std::string& type, float large, const tolerance& near) {
    on_one_gpu(type, model_of<T>(large), near);
    on_one_gpu(type + ", layers alike", model_of_one_shape<T>(), near);
  }
  static void on_one_gpu(const std::string& type, const std::vector<whole_layer<T>>& model,
                         const tolerance& near) {
    // Even and uneven cuts, and ranks that have nothing.
    std::vector<std::vector<index_t>> ways{{0, 1, 2}, {0, 0, 1, 4}};
    if (!quick) ways.insert(ways.end(), {{0, 1}, {0, 1, 3}, {0, 3, 4, 5, 7}, {0, 1, 2, 3, 4, 5, 6, 7}});
    for (const auto& cuts : ways) {
      const auto size = static_cast<index_t>(cuts.size()) - 1;
      for (const kind_case& c : cases(cuts)) {
        const outcome expected = on_one(model, c);
        std::vector<outcome> first(static_cast<std::size_t>(size)), second(first), peers(first), sums(first);
        for (auto* const results : {&first, &second, &peers, &sums}) {
          cuda::run_device_ranks(size, [&](const cuda::device_loopback_communicator& comm) {
            (*results)[static_cast<std::size_t>(comm.rank())] =
                results == &peers  ? on_peer(comm, model, c)
                : results == &sums ? on_rank(cuda::backend_sum(comm), model, c, false)
                                   : on_rank(comm, model, c, false);
          });
        }
        const std::string what = type + ", " + c.name();
        compare(what, first, expected, model, c, near);
        compare(what + ", sums by the communicator", sums, expected, model, c, near);
        for (std::size_t r = 0; r < first.size(); ++r) {
          check(same(first[r], second[r], true), what + ": other bits in a second run");
          check(same(first[r], peers[r], true), what + ": other bits where ranks write to each other");
        }
      }
    }
  }

#ifdef MPIROUTER_TEST_NCCL
  /// A rank a GPU, eager and from a graph.
  static void over_nccl(const std::string& type, const std::vector<ncclComm_t>& comms, float large,
                        const tolerance& near) {
    const auto model = model_of<T>(large);
    std::vector<index_t> cuts;
    for (std::size_t r = 0; r <= comms.size(); ++r) cuts.push_back(static_cast<index_t>(r));
    for (const kind_case& c : cases(cuts)) {
      must(cudaSetDevice(0));
      const outcome expected = on_one(model, c);
      std::vector<outcome> eager(comms.size()), captured(comms.size()), sums(comms.size());
      for (auto* const results : {&eager, &captured, &sums}) {
        if (results == &captured && c.mode == gradient_mode::accumulate)
          continue;  // three launches add thrice
        std::vector<std::thread> threads;
        for (std::size_t r = 0; r < comms.size(); ++r) {
          threads.emplace_back([&, r] {
            must(cudaSetDevice(static_cast<int>(r)));
            const cuda::nccl_communicator comm(comms[r]);
            (*results)[r] = results == &sums ? on_rank(cuda::backend_sum(comm), model, c, false)
                                             : on_rank(comm, model, c, results == &captured);
          });
        }
        for (auto& t : threads) t.join();
      }
      const std::string what = type + ", NCCL, " + c.name();
      compare(what, eager, expected, model, c, near);
      compare(what + ", sums by NCCL", sums, expected, model, c, near);
      for (std::size_t r = 0; r < comms.size() && c.mode == gradient_mode::write; ++r) {
        check(same(eager[r], captured[r], true), what + ": other bits from a graph");
      }
    }
  }
#endif
};

}  // namespace sharded_checks
