// Experts whose neurons are spread over ranks, against one GPU with all of them: ranks that are threads on
// one GPU, and, compiled with MPIROUTER_TEST_NCCL, one rank a GPU over NCCL. Built and run by scripts/gpu.
#include "sharded_support.hpp"
#include "sharded_types.hpp"

#include <mpi_router/distributed/device_loopback.cuh>
#include <mpi_router/distributed/sharded_router_rows.cuh>
#include <mpi_router/distributed/sharded_router_rows_vjp.cuh>
#ifdef MPIROUTER_TEST_NCCL
#include <mpi_router/distributed/nccl.cuh>
#if __has_include(<nccl_device.h>)  // NCCL 2.28
#define MPIROUTER_TEST_NCCL_WINDOWS
#include <mpi_router/distributed/nccl_window.cuh>

#include "nccl_memory.hpp"
#endif
#endif

#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <thread>

using namespace mpi_router;
using namespace sharded_checks;

namespace {

namespace cuda = mpi_router::cuda;  // nccl_device.h brings another

struct layer_numbers {
  index_t n, f, d;
  std::vector<bf16> weights;  // [N, F, D]
  std::vector<float> router, upstream;
};

layer_numbers random_layer(index_t n, index_t f, index_t d, unsigned seed, float scale = 0.125F) {
  std::mt19937 g(seed);
  std::normal_distribution<float> normal;
  layer_numbers l{n, f, d, {}, {}, {}};
  for (index_t i = 0; i < n * f * d; ++i) l.weights.push_back(narrow<bf16>(normal(g) * scale));
  for (index_t i = 0; i < n * d; ++i) l.router.push_back(normal(g)), l.upstream.push_back(normal(g));
  if (n > 1) std::fill_n(l.router.begin() + d, d, 0.0F);  // a row without a step
  return l;
}

/// What a rank has of a layer on its device: neurons [first, first + count).
struct layer_on_device {
  buffer<bf16> weights, to_weights;
  buffer<float> router, rows, upstream, to_router, direction;
  buffer<double> norms, rayleigh;
  buffer<status> statuses;
  index_t n, f, d;

  layer_on_device(const layer_numbers& l, index_t first, index_t count)
      : weights(slice(l, first, count)),
        to_weights(static_cast<std::size_t>(l.n * count * l.d)),
        router(l.router),
        rows(l.router.size()),
        upstream(l.upstream),
        to_router(l.router.size()),
        direction(l.router.size()),
        norms(static_cast<std::size_t>(l.n)),
        rayleigh(static_cast<std::size_t>(l.n)),
        statuses(static_cast<std::size_t>(l.n)),
        n(l.n),
        f(count),
        d(l.d) {}
  static std::vector<bf16> slice(const layer_numbers& l, index_t first, index_t count) {
    std::vector<bf16> out;
    for (index_t e = 0; e < l.n; ++e) {
      const auto* const from = l.weights.data() + (e * l.f + first) * l.d;
      out.insert(out.end(), from, from + count * l.d);
    }
    return out;
  }
  [[nodiscard]] auto experts() const {
    return expert_batch_view<const bf16, device_space>(weights.data(), {n, f, d}, {f * d, d, 1});
  }
  [[nodiscard]] auto to_experts() const {
    return expert_batch_view<bf16, device_space>(to_weights.data(), {n, f, d}, {f * d, d, 1});
  }
  [[nodiscard]] auto matrix(const buffer<float>& b) const {
    return matrix_view<float, device_space>(b.data(), n, d, d, 1);
  }
  [[nodiscard]] cuda::saved_step saved() const { return {direction.data(), norms.data(), statuses.data()}; }
  [[nodiscard]] cuda::step_by_products told() const {
    cuda::step_by_products t;
    t.rayleigh = rayleigh.data();
    return t;
  }
};

using forward_layer = cuda::sharded_layer<const bf16, float, float>;
using backward_layer = cuda::sharded_layer_vjp<const bf16, bf16, float, float, float>;

constexpr std::size_t most_work = 64 << 20;

struct outcome {
  std::vector<std::vector<float>> rows, to_router;
  std::vector<std::vector<bf16>> to_weights;
  std::vector<std::vector<double>> rayleigh;
  std::vector<std::vector<status>> statuses;
};

/// What sends messages: the communicator itself, or for those that have none, one beside it.
template <class Comm>
const Comm& messages_of(const Comm& comm) {
  return comm;
}
#ifdef MPIROUTER_TEST_NCCL_WINDOWS
cuda::nccl_communicator messages_of(const cuda::nccl_window_communicator& comm) {
  return cuda::nccl_communicator(comm.handle());
}
#endif

/// `work`: of the forward, of at least 64 MiB, or none of the caller's.
template <class Comm>
outcome run_rank(const Comm& comm, const std::vector<layer_numbers>& model, const std::vector<index_t>& cuts,
                 bool captured, const cuda::step_options& options, void* work = nullptr) {
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto ctx = cuda::make_context(stream);
  std::vector<std::unique_ptr<layer_on_device>> held;
  std::vector<forward_layer> forward;
  std::vector<backward_layer> backward;
  const auto at = static_cast<std::size_t>(comm.rank());
  for (const auto& l : model) {
    const index_t first = l.f * cuts[at] / cuts.back(), end = l.f * cuts[at + 1] / cuts.back();
    held.push_back(std::make_unique<layer_on_device>(l, first, end - first));
    const auto& h = *held.back();
    forward.push_back({h.experts(), h.matrix(h.router), h.matrix(h.rows), h.told(), h.saved()});
    backward.push_back({h.experts(), h.matrix(h.router), h.saved(), h.matrix(h.upstream),
                        h.matrix(h.to_router), h.to_experts()});
  }
  const std::span<const forward_layer> f(forward);
  const std::span<const backward_layer> b(backward);
  const std::size_t forward_bytes = cuda::sharded_router_rows_workspace(ctx, f, comm.size());
  const std::size_t backward_bytes =
      cuda::sharded_router_rows_vjp_workspace(ctx, b, comm.size(), gradient_mode::write);
  const std::size_t bytes = std::max(forward_bytes, backward_bytes);
  const buffer<unsigned char> scratch(bytes);
  check(work == nullptr || bytes <= most_work, "a workspace beyond the window");
  if (work == nullptr) work = scratch.data();
  const auto& messages = messages_of(comm);
  const auto both = [&] {
    cuda::sharded_router_rows(ctx, comm, f, {work, forward_bytes}, options);
    cuda::sharded_router_rows_vjp(ctx, messages, b, gradient_mode::write, {scratch.data(), backward_bytes},
                                  options);
  };
  run_on(stream, captured, both);
  outcome out;
  for (const auto& h : held) {
    out.rows.push_back(h->rows.host());
    out.to_router.push_back(h->to_router.host());
    out.to_weights.push_back(h->to_weights.host());
    out.rayleigh.push_back(h->rayleigh.host());
    out.statuses.push_back(h->statuses.host());
  }
  must(cudaStreamDestroy(stream));
  return out;
}

bool same(const outcome& a, const outcome& b) {
  bool good = true;
  for (std::size_t l = 0; l < a.rows.size(); ++l) {
    good = good && same_bits(a.rows[l], b.rows[l]) && same_bits(a.to_router[l], b.to_router[l]) &&
           same_bits(a.rayleigh[l], b.rayleigh[l]) && same_bits(a.statuses[l], b.statuses[l]);
  }
  return good;
}

bool same_gradients(const outcome& a, const outcome& b) {
  bool good = true;
  for (std::size_t l = 0; l < a.rows.size(); ++l) good = good && same_bits(a.to_weights[l], b.to_weights[l]);
  return good;
}

/// One GPU with all neurons.
outcome whole(const std::vector<layer_numbers>& model, const cuda::step_options& options) {
  outcome out;
  const auto ctx = cuda::make_context();
  for (const auto& l : model) {
    const layer_on_device h(l, 0, l.f);
    const std::size_t forward = cuda::router_rows_workspace(ctx, h.experts());
    const std::size_t backward =
        cuda::router_rows_vjp_workspace(ctx, h.experts(), h.to_experts(), gradient_mode::write);
    const buffer<unsigned char> scratch(std::max(forward, backward));
    cuda::router_rows(ctx, h.experts(), h.matrix(h.router), h.matrix(h.rows), h.told(), h.saved(),
                      {scratch.data(), forward}, options);
    cuda::router_rows_vjp(ctx, h.experts(), h.matrix(h.router), h.saved(), h.matrix(h.upstream),
                          h.matrix(h.to_router), h.to_experts(), gradient_mode::write,
                          {scratch.data(), backward}, options);
    must(cudaDeviceSynchronize());
    out.rows.push_back(h.rows.host());
    out.to_router.push_back(h.to_router.host());
    out.to_weights.push_back(h.to_weights.host());
    out.rayleigh.push_back(h.rayleigh.host());
    out.statuses.push_back(h.statuses.host());
  }
  return out;
}

/// The neurons [first, end) of each expert.
std::vector<bf16> slice(const std::vector<bf16>& all, const layer_numbers& l, index_t first, index_t end) {
  std::vector<bf16> out;
  for (index_t e = 0; e < l.n; ++e) {
    out.insert(out.end(), all.begin() + (e * l.f + first) * l.d, all.begin() + (e * l.f + end) * l.d);
  }
  return out;
}

void compare(const std::string& what, const std::vector<outcome>& ranks, const outcome& expected,
             const std::vector<layer_numbers>& model, const std::vector<index_t>& cuts) {
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    check(r == 0 || same(ranks[0], ranks[r]), what + ": other bits on rank " + std::to_string(r));
    for (std::size_t l = 0; l < model.size(); ++l) {
      const std::string where = what + ", layer " + std::to_string(l) + ", rank " + std::to_string(r);
      check(difference(ranks[r].rows[l], expected.rows[l]) < 2e-6, where + ": rows");
      check(difference(ranks[r].rayleigh[l], expected.rayleigh[l]) < 1e-6, where + ": rayleigh");
      check(same_bits(ranks[r].statuses[l], expected.statuses[l]), where + ": statuses");
      check(difference(ranks[r].to_router[l], expected.to_router[l]) < 1e-5,
            where + ": gradient to the router");
      const index_t f = model[l].f;
      const auto mine =
          slice(expected.to_weights[l], model[l], f * cuts[r] / cuts.back(), f * cuts[r + 1] / cuts.back());
      check(difference(ranks[r].to_weights[l], mine) < 1e-2, where + ": gradient to the weights");  // bf16
    }
  }
}

/// Layers that differ in all that they can.
std::vector<layer_numbers> mixed_model() {
  std::vector<layer_numbers> model{random_layer(0, 40, 256, 10), random_layer(3, 40, 256, 1),
                                   random_layer(5, 33, 130, 2), random_layer(1, 64, 1024, 3),
                                   random_layer(0, 8, 64, 11), random_layer(2, 19, 2048, 12),
                                   // longer than what stays in registers; squares out of the range of f32; a
                                   // NaN among the neurons of one rank
                                   random_layer(2, 9, 9000, 13), random_layer(3, 24, 128, 7, 0x1p80F),
                                   random_layer(3, 24, 128, 8, 0x1p-80F),
                                   // in two pieces, where messages go beside the reads
                                   random_layer(70, 3, 8192, 15), random_layer(4, 24, 128, 9)};
  model.back().weights[static_cast<std::size_t>(2 * 24 * 128 + 5)] =
      narrow<bf16>(std::numeric_limits<float>::quiet_NaN());
  return model;
}

/// Layers that are alike: so many that it takes two launches to stack them, or of a shape that the forward
/// stacks.
std::vector<layer_numbers> model_of_one_shape(index_t ffn, unsigned layers) {
  std::vector<layer_numbers> model;
  for (unsigned l = 0; l < layers; ++l) model.push_back(random_layer(3, ffn, 72, 30 + l));
  return model;
}

void threads_on_one_gpu(const std::vector<layer_numbers>& model) {
  for (const auto degenerate : {degenerate_row::keep, degenerate_row::zero}) {
    cuda::step_options options;
    options.radius = router_radius::scale_free(4);
    options.degenerate = degenerate;
    const outcome expected = whole(model, options);
    // Even and uneven cuts, and a rank without neurons.
    for (const auto& cuts : std::vector<std::vector<index_t>>{
             {0, 1}, {0, 1, 2}, {0, 1, 3}, {0, 0, 1, 4}, {0, 1, 2, 3, 4, 5, 6, 7}}) {
      const int size = static_cast<int>(cuts.size()) - 1;
      std::vector<outcome> first(static_cast<std::size_t>(size)), second(first), beside(first), peers(first);
      for (auto* const results : {&first, &second}) {
        cuda::run_device_ranks(size, [&](const cuda::device_loopback_communicator& comm) {
          (*results)[static_cast<std::size_t>(comm.rank())] = run_rank(comm, model, cuts, false, options);
        });
      }
      cuda::run_device_ranks(size, [&](const cuda::device_loopback_communicator& comm) {
        const cuda::message_stream messages;
        beside[static_cast<std::size_t>(comm.rank())] =
            run_rank(cuda::overlap_layers(comm, messages), model, cuts, false, options);
      });
      cuda::run_device_ranks(size, [&](const cuda::device_loopback_communicator& comm) {
        const buffer<unsigned char> work(most_work);
        peers[static_cast<std::size_t>(comm.rank())] =
            run_rank(cuda::device_loopback_peer(comm, work.data()), model, cuts, false, options, work.data());
      });
      compare(std::to_string(size) + " threads", first, expected, model, cuts);
      compare(std::to_string(size) + " threads, messages beside", beside, expected, model, cuts);
      for (std::size_t r = 0; r < first.size(); ++r) {
        check(same(first[r], second[r]) && same_gradients(first[r], second[r]),
              std::to_string(size) + " threads: other bits in a second run");
        check(same(first[r], peers[r]) && same_gradients(first[r], peers[r]),
              std::to_string(size) + " threads: other bits where ranks write to each other");
      }
    }
  }
}

/// The stateful form, with a promise that must have no effect there: two calls, one after the other.
void in_place() {
  const auto numbers = random_layer(4, 32, 512, 14);
  cuda::step_options options;
  options.radius = router_radius::fixed(2);
  const layer_on_device whole(numbers, 0, 32);
  const auto ctx = cuda::make_context();
  const std::size_t bytes = cuda::router_rows_workspace(ctx, whole.experts());
  const buffer<unsigned char> scratch(bytes);
  for (int i = 0; i < 2; ++i) {
    cuda::router_rows(ctx, whole.experts(), whole.matrix(whole.router), whole.matrix(whole.router), {}, {},
                      {scratch.data(), bytes}, options);
  }
  must(cudaDeviceSynchronize());
  std::vector<std::vector<float>> rows(2);
  cuda::run_device_ranks(2, [&](const cuda::device_loopback_communicator& comm) {
    const layer_on_device h(numbers, 16 * comm.rank(), 16);
    auto at_rest = cuda::make_context();
    at_rest.inputs_at_rest = true;
    const std::vector<forward_layer> layers{{h.experts(), h.matrix(h.router), h.matrix(h.router)}};
    const std::span<const forward_layer> f(layers);
    const std::size_t need = cuda::sharded_router_rows_workspace(at_rest, f, 2);
    const buffer<unsigned char> work(need);
    must(cudaDeviceSynchronize());
    for (int i = 0; i < 2; ++i) {
      cuda::sharded_router_rows(at_rest, comm, f, {work.data(), need}, options);
    }
    must(cudaDeviceSynchronize());
    rows[static_cast<std::size_t>(comm.rank())] = h.router.host();
  });
  check(same_bits(rows[0], rows[1]), "in place: other bits on rank 1");
  check(difference(rows[0], whole.router.host()) < 1e-5, "in place: rows");
}

/// Of shards: more than `most` says, and a gradient of another part.
template <class Says>
void shard_refusals(const Says& says) {
  using shard = neuron_shard<const bf16, device_space>;
  using to_shard = neuron_shard<bf16, device_space>;
  const auto ctx = cuda::make_context();
  const layer_on_device h(random_layer(4, 8, 64, 4), 0, 8);
  cuda::step_options options;
  options.radius = router_radius::fixed(1);
  const auto here = [&](index_t first) {
    return shard_of_experts(h.experts().middle_experts(0, 2), first, 4);
  };
  const std::vector<cuda::sharded_layer<shard, float, float>> layers{
      {here(1), h.matrix(h.router), h.matrix(h.rows), {}, {}, 1}};
  const std::span<const cuda::sharded_layer<shard, float, float>> f(layers);
  const std::size_t bytes = cuda::sharded_router_rows_workspace(ctx, f, 1);
  const buffer<unsigned char> scratch(bytes);
  says([&] { cuda::sharded_router_rows(ctx, alone{}, f, {scratch.data(), bytes}, options); },
       "this rank has a part of 2 experts, where no rank has more than 1");
  const cuda::sharded_layer named{here(1), h.matrix(h.router), h.matrix(h.rows)};
  static_assert(std::is_same_v<decltype(named), const cuda::sharded_layer<shard, float, float>>);
  const cuda::sharded_layer viewed{h.experts(), h.matrix(h.router), h.matrix(h.rows)};
  static_assert(std::is_same_v<decltype(viewed), const forward_layer>);
  check(named.most == 0 && viewed.most == 0, "a layer says `most` by itself");
  const auto to = shard_of_experts(h.to_experts().middle_experts(0, 2), 0, 4);
  const std::vector<cuda::sharded_layer_vjp<shard, to_shard, float, float, float>> back{
      {here(1), h.matrix(h.router), h.saved(), h.matrix(h.upstream), h.matrix(h.to_router), to}};
  const std::span<const cuda::sharded_layer_vjp<shard, to_shard, float, float, float>> b(back);
  const std::size_t need = cuda::sharded_router_rows_vjp_workspace(ctx, b, 1, gradient_mode::write);
  const buffer<unsigned char> work(need);
  says(
      [&] {
        cuda::sharded_router_rows_vjp(ctx, alone{}, b, gradient_mode::write, {work.data(), need}, options);
      },
      "the gradient is of another part of the experts");
}

/// A rank that is missing, and messages of different lengths, are errors of all ranks.
void broken_groups() {
  const auto fails = [](const char* what, const char* part, const auto& work) {
    try {
      cuda::run_device_ranks(3, work);
      check(false, std::string("not refused: ") + what);
    } catch (const communication_error& e) {
      check(std::string(e.what()).find(part) != std::string::npos, std::string(what) + ": " + e.what());
    }
  };
  const buffer<float> mine(8), all(64);
  const auto gather = [&](const cuda::device_loopback_communicator& comm, index_t size) {
    comm.all_gather(vector_view<const float, device_space>(mine.data(), size),
                    vector_view<float, device_space>(all.data(), 3 * size), nullptr);
  };
  fails("a rank that has gone", "rank 1 has gone", [&](const cuda::device_loopback_communicator& comm) {
    if (comm.rank() != 1) gather(comm, 8);
  });
  fails("messages of different lengths", "rank 2 has 4",
        [&](const cuda::device_loopback_communicator& comm) { gather(comm, comm.rank() == 2 ? 4 : 8); });
  must(cudaDeviceSynchronize());
}

void refusals() {
  const alone comm;
  const auto ctx = cuda::make_context();
  const auto numbers = random_layer(2, 8, 64, 4);
  const layer_on_device h(numbers, 0, 8);
  const auto says = [](const std::function<void()>& call, const std::string& part) {
    try {
      call();
      check(false, "not refused: " + part);
    } catch (const usage_error& e) {
      check(std::string(e.what()).find(part) != std::string::npos, std::string("refused as: ") + e.what());
    }
  };
  const auto run = [&](const matrix_view<float, device_space>& rows, std::size_t bytes, int steps) {
    const std::vector<forward_layer> layers{{h.experts(), h.matrix(h.router), rows}};
    const std::span<const forward_layer> f(layers);
    const buffer<unsigned char> scratch(cuda::sharded_router_rows_workspace(ctx, f, 1));
    cuda::step_options options;
    options.radius = router_radius::fixed(1);
    options.steps = steps;
    cuda::sharded_router_rows(ctx, comm, f, {scratch.data(), bytes}, options);
  };
  says([&] { run(h.matrix(h.rows), 16, 1); }, "a workspace of 16 bytes");
  says([&] { run(h.matrix(h.rows), 1 << 20, 2); }, "2 steps");
  says([&] { run(matrix_view<float, device_space>(h.rows.data(), 1, 64, 64, 1), 1 << 20, 1); },
       "the output of shape [1, 64] for experts [2, 8, 64]");
  says([&] { run(matrix_view<float, device_space>(h.router.data() + 1, 2, 64, 64, 1), 1 << 20, 1); },
       "the router and the output overlap");
  const auto back = [&](const matrix_view<float, device_space>& to_router, const cuda::saved_step& saved,
                        int steps) {
    const std::vector<backward_layer> layers{
        {h.experts(), h.matrix(h.router), saved, h.matrix(h.upstream), to_router, h.to_experts()}};
    const std::span<const backward_layer> b(layers);
    const std::size_t bytes = cuda::sharded_router_rows_vjp_workspace(ctx, b, 1, gradient_mode::write);
    const buffer<unsigned char> scratch(bytes);
    cuda::step_options options;
    options.radius = router_radius::fixed(1);
    options.steps = steps;
    cuda::sharded_router_rows_vjp(ctx, comm, b, gradient_mode::write, {scratch.data(), bytes}, options);
  };
  says([&] { back(h.matrix(h.to_router), h.saved(), 2); }, "the gradient of 2 steps");
  says([&] { back(h.matrix(h.to_router), {}, 1); }, "of the forward are needed");
  says([&] { back(h.matrix(h.upstream), h.saved(), 1); }, "overlap");
  says([&] { back(h.matrix(h.router), h.saved(), 1); }, "overlap");
  shard_refusals(says);
}

#ifdef MPIROUTER_TEST_NCCL
void over_nccl(int devices, bool all_kinds) {
  std::vector<ncclComm_t> comms(static_cast<std::size_t>(devices));
  if (ncclCommInitAll(comms.data(), devices, nullptr) != ncclSuccess) {
    check(false, "ncclCommInitAll");
    return;
  }
  const std::vector<layer_numbers> model{random_layer(8, 96, 512, 5), random_layer(5, 33, 130, 6),
                                         random_layer(70, 9, 8192, 15)};
  cuda::step_options options;
  options.radius = router_radius::scale_free(4);
  must(cudaSetDevice(0));
  const outcome expected = whole(model, options);
  std::vector<index_t> cuts;
  for (index_t r = 0; r <= devices; ++r) cuts.push_back(r);
  std::vector<outcome> eager(static_cast<std::size_t>(devices)), again(eager), captured(eager), beside(eager),
      captured_beside(eager), peers(eager), captured_peers(eager);
  for (auto* const results :
       {&eager, &again, &captured, &beside, &captured_beside, &peers, &captured_peers}) {
    std::vector<std::thread> threads;
    for (int r = 0; r < devices; ++r) {
      threads.emplace_back([&, r] {
        must(cudaSetDevice(r));
        const cuda::nccl_communicator comm(comms[static_cast<std::size_t>(r)]);
        check(comm.rank() == r && comm.size() == devices, "nccl: rank and size");
        outcome& out = (*results)[static_cast<std::size_t>(r)];
        if (results == &beside || results == &captured_beside) {
          const cuda::message_stream messages;
          out = run_rank(cuda::overlap_layers(comm, messages), model, cuts, results == &captured_beside,
                         options);
#ifdef MPIROUTER_TEST_NCCL_WINDOWS
        } else if (results == &peers || results == &captured_peers) {
          const nccl_memory memory(comm.handle(), most_work);
          const cuda::nccl_window_communicator window(comm.handle(), memory.device(), memory.window(),
                                                      memory.data(), memory.size());
          out = run_rank(window, model, cuts, results == &captured_peers, options, memory.data());
#endif
        } else {
          out = run_rank(comm, model, cuts, results == &captured, options);
        }
      });
    }
    for (auto& t : threads) t.join();
  }
  const std::string what = "nccl on " + std::to_string(devices);
  compare(what, eager, expected, model, cuts);
  compare(what + ", messages beside", beside, expected, model, cuts);
#ifdef MPIROUTER_TEST_NCCL_WINDOWS
  compare(what + ", ranks that write to each other", peers, expected, model, cuts);
#endif
  for (std::size_t r = 0; r < eager.size(); ++r) {
    check(same(eager[r], again[r]) && same_gradients(eager[r], again[r]),
          what + ": other bits in a second run");
    check(same(eager[r], captured[r]) && same_gradients(eager[r], captured[r]),
          what + ": other bits from a graph");
    check(same(beside[r], captured_beside[r]) && same_gradients(beside[r], captured_beside[r]),
          what + ": other bits from a graph with messages beside");
#ifdef MPIROUTER_TEST_NCCL_WINDOWS
    check(same(eager[r], peers[r]), what + ": other bits where ranks write to each other");
    check(same(peers[r], captured_peers[r]) && same_gradients(peers[r], captured_peers[r]),
          what + ": other bits from a graph where ranks write to each other");
#endif
  }
  std::uint64_t sum = 0;
  for (const float x : eager[0].rows[0]) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    sum = sum * 1099511628211ULL + bits;
  }
  std::printf("%s: bits %016llx\n", what.c_str(), static_cast<unsigned long long>(sum));
  if (all_kinds) {
    bf16_over_nccl(comms);
    f16_over_nccl(comms);
    f32_over_nccl(comms);
    f64_over_nccl(comms);
    decoded_over_nccl(comms);
  }
  for (const auto c : comms) ncclCommDestroy(c);
  try {
    const cuda::nccl_communicator none(nullptr);
    check(false, "a null ncclComm_t is not refused");
  } catch (const usage_error&) {
  }
}
#endif

}  // namespace

/// `quick`: a few cases of each kind. `bits`: over NCCL alone, whose bits are printed, to be compared between
/// algorithms and protocols of it.
int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  quick = mode == "quick";
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return 77;
  if (mode != "bits") {
    threads_on_one_gpu(mixed_model());
    threads_on_one_gpu(model_of_one_shape(17, 23));
    threads_on_one_gpu(model_of_one_shape(1000, 3));
    bf16_on_one_gpu();
    f16_on_one_gpu();
    f32_on_one_gpu();
    f64_on_one_gpu();
    decoded_on_one_gpu();
    packed_on_one_gpu();
    in_place();
    broken_groups();
    refusals();
  }
#ifdef MPIROUTER_TEST_NCCL
  for (int count = 1; count <= devices; count *= 2) over_nccl(count, mode != "bits");
#endif
  std::printf("%ld checks, %d failures\n", checks, failures);
  return sharded_checks::failures == 0 ? 0 : 1;
}
