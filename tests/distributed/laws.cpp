#include "laws.hpp"

#include "run.hpp"

#include <mpi_router/distributed/overlap.hpp>

#include <support/executors.hpp>
#include <support/messages.hpp>

#include <memory>

namespace test_support {
namespace {

const router_options plain{};

/// The weights' gradient on this rank against that of the whole.
template <class T>
std::string gradient_apart(const owned_part<T>& part, const std::vector<T>& whole, double bound) {
  std::vector<double> here, there;
  part.for_each([&](const T& element, index_t at) {
    here.push_back(widen<double>(element));
    there.push_back(widen<double>(whole[size_of(at)]));
  });
  return apart("grad_experts", here, there, bound);
}

/// Every kind of shard, cut in these ways, against the whole.
template <class T, class R>
std::string parts_are_the_whole(const any_communicator& comm, const expert_shape& shape,
                                const router_options& options,
                                std::initializer_list<cut_kind> all_cuts = {cut_kind::uneven}) {
  using S = router_scalar_t<T, R>;
  const whole_layer<T, R> layer(shape, 7);
  results<R, S> whole(shape, options);
  std::vector<T> grad_whole(layer.weights.size(), narrow<T>(S{1}));
  run_whole(layer, options, whole, grad_whole);
  for (const part_kind kind : all_part_kinds) {
    for (const cut_kind cut : all_cuts) {
      const owned_part<T> weights(kind, cut, shape, comm.rank(), comm.size());
      const owned_part<T> gradient(kind, cut, shape, comm.rank(), comm.size());
      weights.fill_from(layer.weights);
      gradient.fill_from(std::vector<T>(layer.weights.size(), narrow<T>(S{1})));
      results<R, S> parts(shape, options);
      run_sharded(comm, layer, neuron_shard<const T>(weights.shard()), gradient.shard(), options, parts);
      const std::string said =
          difference(parts, whole, reordered<S>) +
          gradient_apart(gradient, grad_whole, 10 * reordered<S> + 2 * tolerance<T>.storage);
      if (!said.empty()) {
        return to_string(kind) + ", cut " + std::to_string(static_cast<int>(cut)) + ": " + said;
      }
    }
  }
  return "";
}

/// Bits do not depend on who has which neurons where cuts fall on leaves of the tree.
template <class T>
std::string powers_of_two_give_the_same_bits(const any_communicator& comm) {
  using S = accumulator_t<T>;
  if (16 % comm.size() != 0) return "";
  const expert_shape shape{16, 48, 9};
  const whole_layer<T, S> layer(shape, 8);
  const router_options options{.steps = 2};
  results<S, S> one(shape, options);
  const owned_part<T> everything(part_kind::neurons, cut_kind::even, shape, 0, 1);
  const owned_part<T> grad_everything(part_kind::neurons, cut_kind::even, shape, 0, 1);
  everything.fill_from(layer.weights);
  run_sharded(alone(), layer, everything.shard(), grad_everything.shard(), options, one);
  std::vector<T> gradient(layer.weights.size());
  grad_everything.for_each([&](const T& element, index_t at) { gradient[size_of(at)] = element; });
  for (const part_kind kind : all_part_kinds) {
    if (kind == part_kind::neurons_by_columns || kind == part_kind::fused_rows)
      continue;  // other bits a leaf
    const owned_part<T> weights(kind, cut_kind::even, shape, comm.rank(), comm.size());
    const owned_part<T> grads(kind, cut_kind::even, shape, comm.rank(), comm.size());
    weights.fill_from(layer.weights);
    results<S, S> parts(shape, options);
    run_sharded(comm, layer, weights.shard(), grads.shard(), options, parts);
    bool same = same_bits(parts, one);
    grads.for_each([&](const T& element, index_t at) {
      same = same && std::memcmp(&element, &gradient[size_of(at)], sizeof(T)) == 0;
    });
    if (!same) return to_string(kind) + ": other bits than on one rank";
  }
  return "";
}

template <class T>
std::string columns_are_the_whole(const any_communicator& comm) {
  using S = accumulator_t<T>;
  const expert_shape shape{3, 6, 11};
  const auto [n, f, d] = shape;
  const whole_layer<T, S> layer(shape, 9);
  const router_options options{.steps = 2};
  results<S, S> whole(shape, options);
  std::vector<T> grad_whole(layer.weights.size());
  run_whole(layer, options, whole, grad_whole);
  for (const cut_kind cut : {cut_kind::even, cut_kind::uneven, cut_kind::one}) {
    const auto at = cuts(cut, d, comm.size());
    const index_t first = at[size_of(comm.rank())];
    const index_t count = at[size_of(comm.rank() + 1)] - first;
    std::vector<T> weights(size_of(n * f * count)), gradient(weights.size());
    std::vector<double> want;
    for (index_t row = 0; row < n * f; ++row) {
      for (index_t c = 0; c < count; ++c) {
        weights[size_of(row * count + c)] = layer.weights[size_of(row * d + first + c)];
        want.push_back(widen<double>(grad_whole[size_of(row * d + first + c)]));
      }
    }
    const expert_shape local{n, f, count};
    const auto shard = shard_of_columns(experts_nfd(weights.data(), local), first, d);
    results<S, S> parts(shape, options);
    run_sharded(comm, layer, shard, shard_of_columns(experts_nfd(gradient.data(), local), first, d), options,
                parts);
    std::string said = difference(parts, whole, 2 * reordered<S>) +
                       apart("grad_experts", gradient, want, 10 * reordered<S> + 2 * tolerance<T>.storage);
    // The same by operators; the gradient in factors, whole in D.
    const auto operators =
        operator_columns([&](index_t i) { return gram<S>(shard[i]); }, first, count, shape);
    std::vector<S> buffer(size_of(router_factors<S>::size(shape, options)));
    const router_factors<S> factors(buffer, shape, options);
    results<S, S> by_operators(shape, options);
    run_sharded(comm, layer, operators, factors, options, by_operators);
    said += same_bits(by_operators, parts) ? "" : "operators have other bits; ";
    std::vector<T> of_factors(layer.weights.size());
    add_factors(factors, experts_nfd(of_factors.data(), shape), gradient_mode::write);
    said += apart("factors", of_factors, grad_whole, 10 * reordered<S> + 2 * tolerance<T>.storage);
    if (!said.empty()) return "cut " + std::to_string(static_cast<int>(cut)) + ": " + said;
  }
  return "";
}

std::string operators_are_the_whole(const any_communicator& comm) {
  const expert_shape shape{5, 6, 7};
  const whole_layer<double, double> layer(shape, 10);
  results<double, double> whole(shape, plain);
  std::vector<double> grad_whole(layer.weights.size());
  run_whole(layer, plain, whole, grad_whole);
  for (const part_kind kind : {part_kind::experts, part_kind::neurons, part_kind::experts_and_neurons}) {
    const owned_part<double> weights(kind, cut_kind::uneven, shape, comm.rank(), comm.size());
    weights.fill_from(layer.weights);
    const auto& placement = weights.shard().placement();
    const auto operators =
        operator_shard([&](index_t k) { return gram(weights.shard()[k]); }, placement, shape);
    const expert_shape local{placement.num_experts, placement.end_neuron - placement.first_neuron, 7};
    std::vector<double> buffer(size_of(router_factors<double>::size(local, plain)));
    const router_factors<double> factors(buffer, local, plain);
    results<double, double> parts(shape, plain);
    run_sharded(comm, layer, operators, factors, plain, parts);
    const owned_part<double> gradient(kind, cut_kind::uneven, shape, comm.rank(), comm.size());
    for (index_t k = 0; k < placement.num_experts; ++k) {
      add_rank2(factors.at(0, k), gradient.shard()[k], gradient_mode::write);
    }
    const std::string said = difference(parts, whole, 1e-14) + gradient_apart(gradient, grad_whole, 1e-13);
    if (!said.empty()) return to_string(kind) + ": " + said;
  }
  return "";
}

/// Three layers of other N and F in one call: each is what it is alone.
template <class Carry>
std::string layers_are_each_alone(const any_communicator& comm, const Carry& carry) {
  const std::vector<whole_layer<float, float>> layers{{{4, 32, 7}, 11},       {{1, 16, 7}, 12},
                                                      {{6, 48, 7}, 13},       {{0, 16, 7}, 14},
                                                      {{2, 16, 7}, 15, 1e30}, {{3, 5, 7}, 16}};
  std::vector<std::unique_ptr<owned_part<float>>> weights, grads, grads_alone;
  std::vector<results<float, float>> together, each;
  std::vector<sharded_layer<neuron_shard<float>, const float, float>> forward;
  std::vector<sharded_layer_vjp<neuron_shard<float>, const float, const float, float, neuron_shard<float>>>
      backward;
  for (const auto& layer : layers) {
    together.emplace_back(layer.shape, plain);
    each.emplace_back(layer.shape, plain);
  }
  std::string said;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto part = [&] {
      return std::make_unique<owned_part<float>>(part_kind::flat_rows, cut_kind::uneven, layers[l].shape,
                                                 comm.rank(), comm.size());
    };
    weights.push_back(part());
    grads.push_back(part());
    grads_alone.push_back(part());
    weights[l]->fill_from(layers[l].weights);
    forward.push_back(
        {weights[l]->shard(), layers[l].matrix(layers[l].router), layers[l].matrix(together[l].rows)});
    backward.push_back({weights[l]->shard(), layers[l].matrix(layers[l].router),
                        layers[l].matrix(layers[l].grad_rows), layers[l].matrix(together[l].grad_router),
                        grads[l]->shard()});
    run_sharded(comm, layers[l], weights[l]->shard(), grads_alone[l]->shard(), plain, each[l]);
  }
  results<float, float> told({16, 0, 7}, plain);
  std::vector<float> workspace(size_of(sharded_router_rows_workspace(std::span(forward), comm.size())));
  sharded_router_rows(carry, std::span(forward), plain, workspace, told.told());
  workspace.assign(size_of(sharded_router_rows_vjp_workspace(std::span(backward), comm.size())), 0);
  sharded_router_rows_vjp(carry, std::span(backward), told.tape, plain, tokens_of_rows::same_on_all_ranks,
                          gradient_mode::accumulate, workspace);
  std::vector<float> rayleigh;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    said += same_bits(together[l].rows, each[l].rows) ? "" : "rows; ";
    said += same_bits(together[l].grad_router, each[l].grad_router) ? "" : "grad_router; ";
    rayleigh.insert(rayleigh.end(), each[l].rayleigh.begin(), each[l].rayleigh.end());
    std::vector<float> a, b;
    grads[l]->for_each([&](float element, index_t) { a.push_back(element); });
    grads_alone[l]->for_each([&](float element, index_t) { b.push_back(element); });
    said += same_bits(a, b) ? "" : "grad_experts; ";
  }
  return said + (same_bits(rayleigh, told.rayleigh) ? "" : "by-products; ");
}

/// A message that takes until it is waited for, and sees what is done meanwhile.
template <class S>
class slow_request {
 public:
  slow_request(const any_communicator& comm, vector_view<const S> mine, vector_view<S> all, std::string& said)
      : comm_(comm), mine_(mine), all_(all), sent_(mine.data(), mine.data() + mine.size()), said_(said) {
    std::fill_n(all_.data(), all_.size(), S{-7});
  }
  void wait() {
    const bool same = std::equal(sent_.begin(), sent_.end(), mine_.data(),
                                 [](S a, S b) { return std::memcmp(&a, &b, sizeof(S)) == 0; });
    said_ += same ? "" : "what is being sent was written; ";
    const bool left = std::all_of(all_.data(), all_.data() + all_.size(), [](S x) { return x == S{-7}; });
    said_ += left ? "" : "where it is received was written; ";
    comm_.all_gather(mine_, all_);
  }

 private:
  any_communicator comm_;
  vector_view<const S> mine_;
  vector_view<S> all_;
  std::vector<S> sent_;
  std::string& said_;
};
class slow_communicator : public any_communicator {
 public:
  slow_communicator(const any_communicator& comm, std::string& said) : any_communicator(comm), said_(&said) {}
  template <class S>
  [[nodiscard]] slow_request<S> start_all_gather(vector_view<const S> mine, vector_view<S> all) const {
    return {*this, mine, all, *said_};
  }

 private:
  std::string* said_;
};

std::string layers_in_one_message_are_each_alone(const any_communicator& comm) {
  return layers_are_each_alone(comm, comm);
}
std::string layers_under_way_are_each_alone(const any_communicator& comm) {
  std::string said;
  said += layers_are_each_alone(comm, overlap_layers(comm));
  said += layers_are_each_alone(comm, overlap_layers(slow_communicator(comm, said)));
  return said;
}

/// Tasks in any order and on several threads: the same bits.
std::string executors_give_the_same_bits(const any_communicator& comm) {
  const expert_shape shape{5, 20, 7};
  const whole_layer<float, float> layer(shape, 16);
  const owned_part<float> weights(part_kind::flat_rows, cut_kind::uneven, shape, comm.rank(), comm.size());
  weights.fill_from(layer.weights);
  std::vector<std::vector<float>> gradients;
  std::vector<results<float, float>> all;
  for (const any_executor& executor : {any_executor(serial_executor{}), any_executor(reverse_executor{}),
                                       any_executor(thread_executor{3})}) {
    const owned_part<float> gradient(part_kind::flat_rows, cut_kind::uneven, shape, comm.rank(), comm.size());
    all.emplace_back(shape, plain);
    run_sharded(comm, layer, weights.shard(), gradient.shard(), plain, all.back(), 0, executor);
    gradients.emplace_back();
    gradient.for_each([&](float element, index_t) { gradients.back().push_back(element); });
    if (!same_bits(all.back(), all.front()) || !same_bits(gradients.back(), gradients.front())) {
      return "executor " + std::to_string(all.size()) + " gives other bits";
    }
  }
  return "";
}

/// Weights whose squares leave the range of float, both ways, in one layer with a dead row, no image and no
/// number.
std::string extreme_weights_and_degenerate_rows(const any_communicator& comm) {
  const expert_shape shape{6, 16, 5};
  whole_layer<float, float> layer(shape, 14);
  const auto scale = [&](index_t expert, float factor) {
    std::for_each_n(layer.weights.begin() + expert * 80, 80, [&](float& x) { x *= factor; });
  };
  scale(0, 1e25F);
  scale(1, 1e-27F);
  std::fill_n(layer.weights.begin() + 80, 20, 0.0F);  // parts of nothing before and behind
  std::fill_n(layer.weights.begin() + 140, 20, 0.0F);
  std::fill_n(layer.router.begin() + 2 * 5, 5, 0.0F);
  scale(3, 0.0F);
  layer.weights[4 * 80 + 7] = std::numeric_limits<float>::infinity();
  for (index_t k = 0; k < 80; k += 2) layer.weights[size_of(5 * 80 + k)] *= 1e24F;  // within one expert
  const std::vector<status> want{status::ok,         status::ok,         status::zero_row,
                                 status::zero_image, status::non_finite, status::ok};
  for (const auto policy : {degenerate_row::keep, degenerate_row::zero}) {
    const router_options options{.degenerate = policy};
    results<float, float> whole(shape, options);
    std::vector<float> grad_whole(layer.weights.size());
    run_whole(layer, options, whole, grad_whole);
    if (whole.statuses != want) return "the whole has other statuses than it should";
    for (const part_kind kind : {part_kind::experts, part_kind::neurons, part_kind::flat_rows}) {
      const owned_part<float> weights(kind, cut_kind::even, shape, comm.rank(), comm.size());
      const owned_part<float> gradient(kind, cut_kind::even, shape, comm.rank(), comm.size());
      weights.fill_from(layer.weights);
      gradient.fill_from(std::vector<float>(layer.weights.size(), 0.0F));
      results<float, float> parts(shape, options);
      run_sharded(comm, layer, weights.shard(), gradient.shard(), options, parts);
      std::string said = apart("rows", parts.rows, whole.rows, 1e-5) +
                         apart("cosine", parts.cosine, whole.cosine, 1e-5) +
                         (parts.statuses == want ? "" : "statuses; ");
      for (index_t i = 0; i < 6; ++i) {  // of other sizes altogether
        const auto row = [&](const std::vector<float>& v) {
          return std::vector<float>(v.begin() + i * 5, v.begin() + (i + 1) * 5);
        };
        if (i != 4) said += apart("grad_router", row(parts.grad_router), row(whole.grad_router), 1e-4);
      }
      if (!said.empty()) return to_string(kind) + ": " + said;
    }
  }
  return "";
}

/// Sums by the communicator's own reduction, a span that knows how many experts a rank has at most, and
/// tokens that are split: what they are given is the sum.
std::string other_ways_to_sum(const any_communicator& comm) {
  const expert_shape shape{4, 10, 6};
  const whole_layer<double, double> layer(shape, 15);
  results<double, double> whole(shape, plain);
  std::vector<double> grad_whole(layer.weights.size());
  run_whole(layer, plain, whole, grad_whole);
  const owned_part<double> weights(part_kind::experts, cut_kind::even, shape, comm.rank(), comm.size());
  const owned_part<double> gradient(part_kind::experts, cut_kind::even, shape, comm.rank(), comm.size());
  weights.fill_from(layer.weights);
  gradient.fill_from(std::vector<double>(layer.weights.size()));
  results<double, double> parts(shape, plain);
  const index_t most = (4 + comm.size() - 1) / comm.size();
  run_sharded(comm, layer, weights.shard(), gradient.shard(), plain, parts, most);
  std::string said = difference(parts, whole, 1e-14) + gradient_apart(gradient, grad_whole, 1e-13);

  const owned_part<double> neurons(part_kind::neurons, cut_kind::uneven, shape, comm.rank(), comm.size());
  const owned_part<double> grad_neurons(part_kind::neurons, cut_kind::uneven, shape, comm.rank(),
                                        comm.size());
  neurons.fill_from(layer.weights);
  grad_neurons.fill_from(std::vector<double>(layer.weights.size()));
  results<double, double> summed(shape, plain);
  run_sharded(backend_sum(comm), layer, neurons.shard(), grad_neurons.shard(), plain, summed);
  said += difference(summed, whole, 1e-14) + gradient_apart(grad_neurons, grad_whole, 1e-13);

  // This rank's share of the gradient of the rows: (rank + 1) of all of them.
  whole_layer<double, double> share = layer;
  const auto total = static_cast<double>(comm.size() * (comm.size() + 1) / 2);
  for (double& g : share.grad_rows) g *= static_cast<double>(comm.rank() + 1) / total;
  const auto split = [&](const auto& any, index_t room) {
    results<double, double> out(shape, plain);
    const sharded_layer_vjp backward{neurons.shard(), share.matrix(share.router),
                                     share.matrix(share.grad_rows), share.matrix(out.grad_router),
                                     no_gradient{}};
    std::vector<double> workspace(size_of(sharded_router_rows_vjp_workspace(backward, comm.size(), room)));
    sharded_router_rows_vjp(any, backward, whole.tape, plain, tokens_of_rows::split_over_ranks,
                            gradient_mode::write, workspace);
    return out.grad_router;
  };
  said += apart("split tokens", split(comm, 0), whole.grad_router, 1e-13);
  said += apart("split tokens by backend", split(backend_sum(comm), 0), whole.grad_router, 1e-13);
  return said;
}

/// A mistake of one rank, or ranks that do not fit each other: an error of all, with the words for it.
std::string mistakes_are_errors_of_all(const any_communicator& comm) {
  const bool odd = comm.rank() == comm.size() - 1;  // the one that errs
  const expert_shape shape{3, 20, 5};
  const std::vector<float> weights(360, 1), router(18, 1);
  std::vector<float> rows(18), workspace(20000);
  struct mistake {
    std::string words;
    expert_shape own;
    router_options options;
    index_t neurons, room;
  };
  const std::string last = "rank " + std::to_string(comm.size() - 1);
  const std::string other = last + " comes with other layers, shapes or options than rank 0: ";
  const std::string refused_words =
      last + " of " + std::to_string(comm.size()) + " has refused its arguments";
  const auto words = [&](const std::string& own, const std::string& others) { return odd ? own : others; };
  const std::vector<mistake> mistakes{
      {other + "1 layers, the first of [N = 3, F = 20, D = 6], not 1 of [3, 20, 5]",
       {3, 20, 6},
       {},
       1,
       20000},
      {other, shape, {.steps = 2}, 1, 20000},
      {other, shape, {.radius = 2}, 1, 20000},
      {other, shape, {.degenerate = degenerate_row::zero}, 1, 20000},
      {words("the radius must be positive", refused_words), shape, {.radius = -1}, 1, 20000},
      {words("the workspace has 10 elements", refused_words), shape, {}, 1, 10},
      {"layer 0, expert 0: the ranks have ", shape, {}, 0, 20000},
      {last + " has room for ", shape, {}, 1, -1},
  };
  for (const mistake& m : mistakes) {
    if (comm.size() == 1 && contains(m.words, "comes with")) continue;  // it has nobody to differ from
    const expert_shape& own = odd ? m.own : shape;
    const index_t whole_f = own.ffn_dim;
    const index_t first = std::min(comm.rank(), whole_f);
    const index_t end = odd ? whole_f : std::min(comm.rank() + 1, whole_f);
    const index_t count = odd && m.neurons == 0 ? 0 : end - first;
    const auto shard = shard_of_neurons(
        experts_nfd(weights.data(), {own.num_experts, std::max(count, index_t{0}), own.hidden_dim}), first,
        whole_f);
    const sharded_layer layer{shard, row_major(router.data(), own.num_experts, own.hidden_dim),
                              row_major(rows.data(), own.num_experts, own.hidden_dim)};
    const index_t tight = sharded_router_rows_workspace(layer, comm.size()) - 1;
    const index_t room = !odd ? 20000 : (m.room < 0 ? tight : m.room);
    const std::string message = message_of([&] {
      sharded_router_rows(comm, layer, odd ? m.options : router_options{},
                          vector_view<float>(workspace.data(), room));
    });
    if (!contains(message, m.words)) return "wanted: " + m.words + "; got: " + message;
  }
  // And the group is as good as before.
  return parts_are_the_whole<float, float>(comm, shape, {});
}

}  // namespace

std::vector<law> distributed_laws() {
  return {
      {"parts are the whole, double",
       [](const auto& comm) {
         return parts_are_the_whole<double, double>(comm, {5, 13, 9}, {.steps = 2},
                                                    {cut_kind::even, cut_kind::uneven, cut_kind::one}) +
                parts_are_the_whole<double, double>(comm, {1, 1, 1}, {}) +
                parts_are_the_whole<double, double>(comm, {7, 32, 17}, {.through = differentiate::last});
       }},
      {"parts are the whole, float",
       [](const auto& comm) { return parts_are_the_whole<float, float>(comm, {5, 13, 9}, {.radius = 2}); }},
      {"parts are the whole, bf16",
       [](const auto& comm) { return parts_are_the_whole<bf16, float>(comm, {5, 13, 9}, {}); }},
      {"parts are the whole, f16",
       [](const auto& comm) { return parts_are_the_whole<f16, f16>(comm, {5, 13, 9}, {}); }},
      {"one, two, four, eight and sixteen ranks give the same bits",
       [](const auto& comm) {
         return powers_of_two_give_the_same_bits<float>(comm) +
                powers_of_two_give_the_same_bits<double>(comm) + powers_of_two_give_the_same_bits<bf16>(comm);
       }},
      {"columns are the whole",
       [](const auto& comm) {
         return columns_are_the_whole<double>(comm) + columns_are_the_whole<float>(comm);
       }},
      {"operators are the whole", operators_are_the_whole},
      {"layers in one message are each alone", layers_in_one_message_are_each_alone},
      {"layers under way are each alone", layers_under_way_are_each_alone},
      {"executors give the same bits", executors_give_the_same_bits},
      {"extreme weights and degenerate rows", extreme_weights_and_degenerate_rows},
      {"other ways to sum", other_ways_to_sum},
      {"mistakes are errors of all", mistakes_are_errors_of_all},
  };
}

}  // namespace test_support
