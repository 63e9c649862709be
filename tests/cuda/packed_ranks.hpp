// What ranks make of layers whose experts are decoded as they are read, and how it compares with one rank.
#pragma once

#include <exception>

#include "packed_shards.hpp"

namespace sharded_checks {

/// What is made of a layer.
struct made_of_packed {
  std::vector<float> rows, to_router, y, w, dual;
  std::vector<double> rayleigh;
  std::vector<status> statuses;
};

struct packed_memory {
  buffer<float> rows, to_router, direction, y, w, dual;
  buffer<double> norms, rayleigh;
  buffer<status> statuses;
  packed_memory(const expert_shape& s, const packed_part& part)
      : rows(size(s.num_experts * s.hidden_dim)),
        to_router(rows.host().size()),
        direction(rows.host().size()),
        y(size(part.projections())),
        w(y.host().size()),
        dual(size(part.experts() * part.columns())),
        norms(size(s.num_experts)),
        rayleigh(size(s.num_experts)),
        statuses(size(s.num_experts)) {}
  static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }
  [[nodiscard]] made_of_packed read() const {
    return {rows.host(), to_router.host(), y.host(), w.host(), dual.host(), rayleigh.host(), statuses.host()};
  }
  [[nodiscard]] cuda::saved_step saved() const { return {direction.data(), norms.data(), statuses.data()}; }
  [[nodiscard]] cuda::gradient_factors factors() const { return {y.data(), w.data(), dual.data()}; }
};

inline matrix_view<float, device_space> matrix(const expert_shape& s, const buffer<float>& b) {
  return {b.data(), s.num_experts, s.hidden_dim, s.hidden_dim, 1};
}

inline const std::vector<expert_shape> packed_shapes{
    {5, 33, 160}, {0, 8, 64}, {7, 16, 256}, {2, 12, 8224}, {4, 40, 1024}};

/// How the layers are cut.
struct packed_case {
  packed_kind kind;
  std::vector<index_t> cuts;
  tokens_of_rows tokens = tokens_of_rows::same_on_all_ranks;
  bool with_most = false;  // the message is as small as it can be

  [[nodiscard]] index_t ranks() const { return static_cast<index_t>(cuts.size()) - 1; }
};

template <class Layer>
std::vector<std::unique_ptr<Layer>> packed_model() {
  std::vector<std::unique_ptr<Layer>> out;
  unsigned seed = 5;
  for (expert_shape s : packed_shapes) {
    gpu_check::generator same(seed++);
    s.hidden_dim = (s.hidden_dim + Layer::unit - 1) / Layer::unit * Layer::unit;
    out.push_back(std::make_unique<Layer>(s, same));
    if (s.num_experts > 3) {  // a row without a step
      must(cudaMemset(out.back()->device_rows.data() + 2 * s.hidden_dim, 0,
                      static_cast<std::size_t>(s.hidden_dim) * sizeof(float)));
      must(cudaDeviceSynchronize());
    }
  }
  return out;
}

/// The most experts, or columns, that any rank has a part of.
inline index_t most_of(const expert_shape& s, const packed_case& c, const packed_units& units) {
  index_t most = 0;
  for (index_t r = 0; r < c.ranks(); ++r) {
    const packed_part p = part_of(s, c.kind, c.cuts, r, units);
    most = std::max(most, c.kind == packed_kind::columns ? p.columns() : p.experts());
  }
  return most;
}

/// Forward and backward of a rank. Every rank is given the rows as what comes for them.
template <packed_kind kind, class Layer, class Comm>
std::vector<made_of_packed> on_rank(const Comm& comm, const packed_case& c, void* work = nullptr) {
  using shard = decltype(shard_of<kind>(std::declval<const Layer&>(), packed_part{}));
  using backward_layer =
      cuda::sharded_layer_vjp<shard, cuda::gradient_factors, const float, const float, float>;
  const auto ctx = cuda::make_context();
  cuda::step_options options;
  options.radius = router_radius::scale_free(4);
  options.degenerate = degenerate_row::keep;
  const auto model = packed_model<Layer>();
  std::vector<std::unique_ptr<packed_memory>> held;
  std::vector<cuda::sharded_layer<shard, const float, float>> forward;
  std::vector<backward_layer> backward;
  for (const auto& layer : model) {
    const expert_shape& s = layer->place.shape;
    const packed_part part = part_of(s, c.kind, c.cuts, comm.rank(), layer->units());
    held.push_back(std::make_unique<packed_memory>(s, part));
    const packed_memory& h = *held.back();
    const shard mine = shard_of<kind>(*layer, part);
    const index_t most = c.with_most ? most_of(s, c, layer->units()) : 0;
    cuda::step_by_products told;
    told.rayleigh = h.rayleigh.data();
    forward.push_back({mine, layer->rows(), matrix(s, h.rows), told, h.saved(), most});
    backward.push_back(
        {mine, layer->rows(), h.saved(), layer->rows(), matrix(s, h.to_router), h.factors(), most});
  }
  const std::span<const cuda::sharded_layer<shard, const float, float>> f(forward);
  const std::span<const backward_layer> b(backward);
  const std::size_t forward_bytes = cuda::sharded_router_rows_workspace(ctx, f, comm);
  const std::size_t backward_bytes =
      cuda::sharded_router_rows_vjp_workspace(ctx, b, comm, gradient_mode::write, c.tokens);
  const buffer<unsigned char> scratch(std::max(forward_bytes, backward_bytes));
  if (work == nullptr) work = scratch.data();
  cuda::sharded_router_rows(ctx, comm, f, {work, forward_bytes}, options);
  cuda::sharded_router_rows_vjp(ctx, comm, b, gradient_mode::write, {work, backward_bytes}, options,
                                c.tokens);
  must(cudaStreamSynchronize(ctx.stream));
  std::vector<made_of_packed> out;
  for (const auto& h : held) out.push_back(h->read());
  return out;
}
/// One rank that has all.
template <class Layer>
std::vector<made_of_packed> on_one_rank() {
  return on_rank<packed_kind::experts, Layer>(alone{}, {packed_kind::experts, {0, 1}});
}

/// A part of what one rank makes of all, times `factor`.
inline made_of_packed part_of_made(const made_of_packed& all, const expert_shape& s, const packed_part& part,
                                   float factor) {
  made_of_packed out;
  const auto add = [](std::vector<float>& to, const std::vector<float>& from, index_t first, index_t end,
                      float by) {
    for (index_t i = first; i < end; ++i) to.push_back(from[static_cast<std::size_t>(i)] * by);
  };
  if (part.is_run()) {
    add(out.y, all.y, part.first_row, part.end_row, 1);
    add(out.w, all.w, part.first_row, part.end_row, factor);
  }
  for (index_t e = part.first; e < part.end; ++e) {
    const index_t neuron = e * s.ffn_dim, column = e * s.hidden_dim;
    if (!part.is_run()) {
      add(out.y, all.y, neuron + part.first_neuron, neuron + part.end_neuron, 1);
      add(out.w, all.w, neuron + part.first_neuron, neuron + part.end_neuron, factor);
    }
    add(out.dual, all.dual, column + part.first_column, column + part.end_column, factor);
  }
  add(out.to_router, all.to_router, 0, s.num_experts * s.hidden_dim, factor);
  return out;
}

template <class Layer>
void compare(const std::string& what, const std::vector<std::vector<made_of_packed>>& ranks,
             const std::vector<made_of_packed>& one, const packed_case& c) {
  const auto model = packed_model<Layer>();
  const bool split = c.tokens == tokens_of_rows::split_over_ranks;
  const double near_rows = c.kind == packed_kind::columns ? 1e-5 : 2e-6;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    for (std::size_t l = 0; l < model.size(); ++l) {
      const made_of_packed& is = ranks[r][l];
      const made_of_packed& first = ranks[0][l];
      const expert_shape& s = model[l]->place.shape;
      const packed_part part = part_of(s, c.kind, c.cuts, static_cast<index_t>(r), model[l]->units());
      const made_of_packed mine =
          part_of_made(one[l], s, part, split ? static_cast<float>(ranks.size()) : 1.0F);
      const std::string at = what + ", layer " + std::to_string(l) + ", rank " + std::to_string(r);
      const auto within = [&](double off, double bound, const char* which) {
        char text[64];
        std::snprintf(text, sizeof(text), " off by %.1e", off);
        check(off <= bound, at + ": " + which + text);
      };
      check(same_bits(is.rows, first.rows) && same_bits(is.to_router, first.to_router) &&
                same_bits(is.rayleigh, first.rayleigh),
            at + ": other bits");
      check(same_bits(is.statuses, one[l].statuses), at + ": statuses");
      within(difference(is.rows, one[l].rows), near_rows, "rows");
      within(difference(is.rayleigh, one[l].rayleigh), near_rows, "rayleigh");
      within(difference(is.to_router, mine.to_router), 1e-5, "gradient to the router");
      within(difference(is.y, mine.y), 1e-5, "y");
      within(difference(is.w, mine.w), 1e-5, "w");
      within(difference(is.dual, mine.dual), 1e-5, "the dual rows");
    }
  }
}

/// By messages, twice; to peers; by the communicator's sum: ranks that are threads.
template <packed_kind kind, class Layer>
void on_threads_as_said(const std::string& what, const packed_case& c,
                        const std::vector<made_of_packed>& one) {
  std::vector<std::vector<made_of_packed>> messages(static_cast<std::size_t>(c.ranks())), again(messages),
      peers(messages), sums(messages);
  for (auto* const results : {&messages, &again, &peers, &sums}) {
    cuda::run_device_ranks(c.ranks(), [&](const cuda::device_loopback_communicator& comm) {
      auto& mine = (*results)[static_cast<std::size_t>(comm.rank())];
      if (results == &peers) {
        const buffer<unsigned char> work(std::size_t{64} << 20);
        mine = on_rank<kind, Layer>(cuda::device_loopback_peer(comm, work.data()), c, work.data());
      } else if (results == &sums) {
        mine = on_rank<kind, Layer>(cuda::backend_sum(comm), c);
      } else {
        mine = on_rank<kind, Layer>(comm, c);
      }
    });
  }
  compare<Layer>(what, messages, one, c);
  compare<Layer>(what + ", to peers", peers, one, c);
  compare<Layer>(what + ", sums by the communicator", sums, one, c);
  for (std::size_t r = 0; r < messages.size(); ++r) {
    for (std::size_t l = 0; l < packed_shapes.size(); ++l) {
      check(same_bits(messages[r][l].rows, again[r][l].rows) &&
                same_bits(messages[r][l].rows, peers[r][l].rows) &&
                same_bits(messages[r][l].to_router, again[r][l].to_router),
            what + ": other bits in a second run, or to peers");
    }
  }
}

/// The same; what is thrown fails, and the next case comes.
template <packed_kind kind, class Layer>
void on_threads(const std::string& what, const packed_case& c, const std::vector<made_of_packed>& one) {
  try {
    on_threads_as_said<kind, Layer>(what, c, one);
  } catch (const std::exception& e) {
    check(false, what + ": threw " + e.what());
  }
}

/// Runs of rows, and slices of D: whole, even, uneven, none on some ranks; tokens the same or split.
template <class Layer>
void rows_and_columns(const std::string& format) {
  const std::vector<made_of_packed> one = on_one_rank<Layer>();
  std::vector<std::vector<index_t>> ways{{0, 0, 1, 4}};
  if (!quick) ways.insert(ways.end(), {{0, 1}, {0, 1, 2}, {0, 3, 5, 5, 7}});
  const long before = checks;
  int turn = 0;
  for (const auto& cuts : ways) {
    const bool split = turn++ % 2 == 0;
    const auto tokens = split ? tokens_of_rows::split_over_ranks : tokens_of_rows::same_on_all_ranks;
    const auto name = [&](packed_kind kind) {
      return format + " " + name_of(kind) + " on " + std::to_string(cuts.size() - 1);
    };
    on_threads<packed_kind::rows, Layer>(name(packed_kind::rows), {packed_kind::rows, cuts, tokens, split},
                                         one);
    on_threads<packed_kind::columns, Layer>(name(packed_kind::columns),
                                            {packed_kind::columns, cuts, tokens, !split}, one);
  }
  std::printf("%s, rows and columns: %ld checks, %d failures so far\n", format.c_str(), checks - before,
              failures);
  static_cast<void>(std::fflush(stdout));
}

}  // namespace sharded_checks
